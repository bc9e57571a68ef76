"""Parameter groups: rates by part, decay on matrices only, every trainable parameter once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_finetune.errors import ConfigError
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.lora import add_lora
from hf_finetune.training.optim import parameter_groups, spared_from_decay
from tests.coloured import NAMES

RATES = {"learning_rate": 1e-3, "head_lr": 1e-2, "weight_decay": 0.05}


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin", "convnext", "timm_vit", "timm_resnet"])
def test_every_parameter_stands_in_one_group_and_decay_falls_on_matrices_only(kind: str, checkpoint_of: Callable[[str], Path]):
    model, _ = load_classifier(str(checkpoint_of(kind)), NAMES)
    groups = parameter_groups(model, **RATES)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("backbone", 1e-3, 0.05),
        ("backbone without decay", 1e-3, 0.0),
        ("head", 1e-2, 0.05),
        ("head without decay", 1e-2, 0.0),
    ]


@pytest.mark.parametrize(
    ("kind", "embeddings"),
    [
        ("vit", {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}),
        ("timm_vit", {"timm_model.cls_token", "timm_model.pos_embed"}),
    ],
)
def test_tokens_and_position_embeddings_are_spared(kind: str, embeddings: set[str], checkpoint_of: Callable[[str], Path]):
    model, _ = load_classifier(str(checkpoint_of(kind)), NAMES)
    assert {name for name in spared_from_decay(model) if dict(model.named_parameters())[name].ndim > 1} == embeddings


def test_under_lora_only_adapters_and_head_are_held(checkpoint_of: Callable[[str], Path]):
    model, _ = load_classifier(str(checkpoint_of("vit")), NAMES)
    adapted = add_lora(model, rank=2)
    groups = parameter_groups(adapted, **RATES)
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in adapted.parameters() if p.requires_grad}
    head = {id(p) for group in groups if group["name"].startswith("head") for p in group["params"]}
    assert head == {id(p) for name, p in adapted.named_parameters() if "classifier.modules_to_save" in name}


def test_without_a_rate_of_its_own_the_head_gets_the_common_one(checkpoint_of: Callable[[str], Path]):
    model, _ = load_classifier(str(checkpoint_of("vit")), NAMES)
    groups = parameter_groups(model, learning_rate=1e-3, head_lr=None, weight_decay=0.0)
    assert {group["lr"] for group in groups} == {1e-3}
    torch.optim.AdamW(groups)


def test_layer_wise_decay_falls_from_the_head_to_the_stem(checkpoint_of: Callable[[str], Path]):
    model, _ = load_classifier(str(checkpoint_of("vit")), NAMES)
    groups = parameter_groups(model, **RATES, layer_lr_decay=0.5)
    assert {group["name"].removesuffix(" without decay"): group["lr"] for group in groups} == {
        "stem": 1e-3 / 16,
        "vit.layers.0": 1e-3 / 8,
        "vit.layers.1": 1e-3 / 4,
        "vit.layers.2": 1e-3 / 2,
        "head": 1e-2,
    }
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())


def test_adapters_learn_at_the_rate_of_their_layer(checkpoint_of: Callable[[str], Path]):
    model, _ = load_classifier(str(checkpoint_of("vit")), NAMES)
    groups = parameter_groups(add_lora(model, rank=2, layers="1-2"), **RATES, layer_lr_decay=0.5)
    assert {(group["name"].removesuffix(" without decay"), group["lr"]) for group in groups} == {
        ("vit.layers.1", 1e-3 / 4),
        ("vit.layers.2", 1e-3 / 2),
        ("head", 1e-2),
    }


def test_rates_by_name_go_before_decay(checkpoint_of: Callable[[str], Path]):
    model, _ = load_classifier(str(checkpoint_of("timm_resnet")), NAMES)
    groups = parameter_groups(model, **RATES, group_rates={"layer4": 5e-4, "stem": 1e-5, "head": 2e-2})
    rates = {group["name"].removesuffix(" without decay"): group["lr"] for group in groups}
    assert rates["timm_model.layer4.0"] == 5e-4
    assert rates["stem"] == 1e-5
    assert rates["head"] == 2e-2
    assert rates["timm_model.layer3.0"] == 1e-3
    with pytest.raises(ConfigError) as error:
        parameter_groups(model, **RATES, group_rates={"layer9": 1e-3})
    assert str(error.value) == (
        "--group_lr layer9=0.001 names no layer group; there are stem, timm_model.layer1.0, timm_model.layer2.0, timm_model.layer3.0, "
        "timm_model.layer4.0, head."
    )
