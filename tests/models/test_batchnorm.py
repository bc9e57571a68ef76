"""BatchNorm that is held keeps its statistics bit for bit, whatever `model.train()` says."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_finetune.errors import ModelError
from hf_finetune.models.batchnorm import BatchNormMode, BatchNormPolicy, batchnorm_modules, hold_batchnorm, recalibrate
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freezing import FreezeSchedule, freeze
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


GROUPS = {"affine": ("weight", "bias"), "statistics": ("running_mean", "running_var", "num_batches_tracked")}
# mode → what of a BatchNorm moves
MOVES = {
    "train": {"affine", "statistics"},
    "frozen": set(),
    "statistics_only": {"statistics"},
    "affine_only": {"affine"},
    "recalibrate": set(),
}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> dict[str, set[str]]:
    """BatchNorm → which of its two groups moved, each either whole or not at all."""
    state = model.state_dict()
    found = {}
    for name in batchnorm_modules(model):
        key = name if f"{name}.weight" in state else name.removeprefix("timm_model.")
        found[name] = set()
        for group, parts in GROUPS.items():
            changed = {not torch.equal(state[f"{key}.{part}"], before[f"{key}.{part}"]) for part in parts}
            assert len(changed) == 1, f"{name}.{group} moved in part"
            found[name] |= {group} if changed.pop() else set()
    return found


@pytest.mark.parametrize("mode", BatchNormMode)
@pytest.mark.parametrize("schedule", ["none", "head", "last:1"])
@pytest.mark.parametrize("scope", ["all", "frozen"])
def test_each_policy_moves_what_it_says(mode: BatchNormMode, schedule: str, scope: str, tmp_path: Path) -> None:
    BUILDERS["timm_resnet"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freeze(model, FreezeSchedule.parse(schedule, "stage"), 0, BatchNormPolicy(mode, scope))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model)
    for name, found in moved(model, before).items():
        frozen = schedule == "head" or (schedule == "last:1" and "layer4" not in name)
        ruled = scope == "all" or frozen
        assert found == (MOVES[mode.value] if ruled else {"affine", "statistics"}), name


def test_without_a_policy_batchnorm_goes_with_its_layer(tmp_path: Path) -> None:
    BUILDERS["timm_resnet"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freezer = freeze(model, FreezeSchedule.last(1, "stage"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model)
    assert all(found == (MOVES["train"] if "layer4" in name else set()) for name, found in moved(model, before).items())
    freezer.remove()
    train(model)
    assert all("statistics" in found for found in moved(model, before).values())


def test_a_policy_needs_batchnorm(tmp_path: Path) -> None:
    BUILDERS["vit"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    with pytest.raises(ModelError) as error:
        freeze(model, FreezeSchedule.none(), 0, BatchNormPolicy(BatchNormMode.FROZEN))
    assert str(error.value) == "--batch_norm frozen does not apply to ViTForImageClassification, which has no BatchNorm."


def test_another_freezer_takes_the_place_of_the_first_and_the_model_can_be_pickled(tmp_path: Path) -> None:
    BUILDERS["timm_resnet"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freeze(model, FreezeSchedule.head())
    freeze(model, FreezeSchedule.none())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(pickle.loads(pickle.dumps(model)))
    train(model)
    assert all(found == {"affine", "statistics"} for found in moved(model, before).values())


def test_a_frozen_model_goes_away_with_its_last_user(tmp_path: Path) -> None:
    BUILDERS["timm_resnet"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freeze(model, FreezeSchedule.head())
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


class OneNorm(nn.Module):
    """A classifier as far as `recalibrate` needs one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other, self.dropout = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Dropout(0.5)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.other(self.norm(self.dropout(pixel_values)))


def test_recalibrated_statistics_are_the_mean_of_those_of_the_batches() -> None:
    model = OneNorm().train()
    model.norm.running_mean += 7
    batches = torch.randn(3, 8, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    assert recalibrate(model, [model.norm], batches) == 24
    torch.testing.assert_close(model.norm.running_mean, batches.mean((1, 3, 4)).mean(0))
    torch.testing.assert_close(
        model.norm.running_var, torch.stack([batch.transpose(0, 1).reshape(3, -1).var(1) for batch in batches]).mean(0)
    )
    assert torch.equal(model.other.running_mean, torch.zeros(3))
    assert model.norm.momentum == 0.1
    assert all(module.training for module in model.modules())
    assert model.norm.weight.grad is None


def test_holds_inside_copies_and_pickles_and_for_any_caller() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    hold_batchnorm(net)
    for model in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        model.train()
        model[1](model[0](torch.randn(2, 3, 8, 8)))
        assert torch.equal(model[1].running_mean, torch.zeros(4))
        assert model[0].training
