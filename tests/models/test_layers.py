"""Layer groups: ordered, complete, and without a parameter in two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_finetune.errors import ModelError
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freezing import freeze, head_parameter_names
from hf_finetune.models.layers import layer_groups
from hf_finetune.models.names import block_names
from tests.builders import BUILDERS, LABELS


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_parameter_is_in_exactly_one_group(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    groups = layer_groups(model)
    members = [name for group in groups for name in group.parameters]
    assert sorted(members) == sorted(name for name, _ in model.named_parameters())
    assert [group.name for group in groups if group.name not in ("stem", "tail", "head")] == block_names(model)
    assert groups[0].name == "stem"
    assert groups[-1].name == "head"
    assert set(groups[-1].parameters) == head_parameter_names(model)


def test_what_follows_the_last_block_is_a_group_where_it_holds_a_convolution(tmp_path: Path) -> None:
    for kind, names in {"timm_efficientnet": ["tail", "head"], "vit": ["vit.layers.2", "head"]}.items():
        BUILDERS[kind](tmp_path / kind)
        model, _ = load_classifier(str(tmp_path / kind), LABELS)
        groups = layer_groups(model)
        assert [group.name for group in groups[-2:]] == names
    assert "vit.layernorm.weight" in groups[-2].parameters


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("layers", [1, 2])
def test_freeze_last_trains_the_last_groups_and_the_head(kind: str, layers: int, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freeze(model, f"last:{layers}")
    expected = {name for group in layer_groups(model)[-1 - layers :] for name in group.parameters}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected


def test_freezing_all_but_all_groups_freezes_nothing(tmp_path: Path) -> None:
    BUILDERS["vit"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freeze(model, "last:4")
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ModelError) as error:
        freeze(model, "last:5")
    assert str(error.value) == "--freeze last:5 asks for more than ViTForImageClassification has: 4 layer groups beside the head."
