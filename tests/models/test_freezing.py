"""A frozen backbone stays as it is, and the head is found by its real name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hf_finetune.errors import ModelError
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freezing import FreezeSchedule, freeze, head_names, head_parameter_names, head_parameters
from hf_finetune.models.lora import add_lora
from hf_finetune.models.names import block_names
from tests.builders import BUILDERS, LABELS


@pytest.mark.parametrize("kind", BUILDERS)
def test_only_the_head_changes(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freeze(model, FreezeSchedule.head())
    heads = head_parameter_names(model)
    assert heads == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [id(p) for p in head_parameters(model)] == [id(p) for p in model.parameters() if p.requires_grad]
    assert all(name.startswith(tuple(head_names(model))) for name in heads)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(2):
        model.train()
        pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        model(pixel_values=pixels, labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed <= heads
    # A distilled timm DeiT trains both of its heads on the mean of their scores.
    assert changed == heads


def test_in_a_peft_model_the_trained_copy_of_the_head_counts(tmp_path: Path) -> None:
    BUILDERS["timm_vit"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    adapted = add_lora(model)
    assert head_names(adapted) == ["timm_model.head"]
    prefix = "base_model.model.timm_model.head.modules_to_save.default."
    assert head_parameter_names(adapted) == {f"{prefix}weight", f"{prefix}bias"}
    assert all(parameter.requires_grad for parameter in head_parameters(adapted))
    assert len(block_names(adapted)) == 3


def test_a_model_without_a_head_is_told() -> None:
    with pytest.raises(ModelError) as error:
        head_names(nn.ModuleDict({"body": nn.Linear(2, 2)}))
    assert str(error.value) == (
        "No classification head was found in ModuleDict, whose parts are body. "
        "Use a ViT, DeiT, DINOv2, Swin, ConvNeXt, ResNet, BEiT or any timm classifier."
    )
