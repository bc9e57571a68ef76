"""BatchNorm that is held keeps its statistics bit for bit, whatever `model.train()` says."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_finetune.models.batchnorm import hold_batchnorm
from hf_finetune.models.classifier import load_classifier
from tests.builders import BUILDERS, LABELS


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all BatchNorm buffers."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {f"{name}.{key}": value.clone() for name, module in norms.items() for key, value in module.named_buffers()}


def train(model: nn.Module, steps: int = 3) -> None:
    """Some steps as the Trainer makes them: `train()` before every forward pass."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        model.train()
        pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        model(pixel_values=pixels, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["resnet", "timm_resnet", "timm_efficientnet"])
def test_statistics_are_bit_identical_after_training(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    before = statistics(model)
    assert before
    weight = next(module.weight for module in model.modules() if isinstance(module, _BatchNorm))
    gain = weight.detach().clone()
    hold = hold_batchnorm(model)
    assert len(hold.names) * 3 == len(before)
    train(model)
    assert all(torch.equal(before[key], value) for key, value in statistics(model).items())
    assert not torch.equal(gain, weight)

    hold.remove()
    train(model)
    assert not any(torch.equal(before[key], value) for key, value in statistics(model).items())


def test_a_predicate_chooses(tmp_path: Path) -> None:
    BUILDERS["timm_resnet"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    before = statistics(model)
    hold = hold_batchnorm(model, lambda name, _: ".layer1." in name)
    assert hold.names
    assert all(".layer1." in name for name in hold.names)
    train(model)
    after = statistics(model)
    assert {key for key in before if torch.equal(before[key], after[key])} == {key for key in before if ".layer1." in key}


def test_holds_inside_copies_and_pickles_and_for_any_caller() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    hold_batchnorm(net)
    for model in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        model.train()
        model[1](model[0](torch.randn(2, 3, 8, 8)))
        assert torch.equal(model[1].running_mean, torch.zeros(4))
        assert model[0].training
