"""Batches that go through the network in parts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from hf_finetune.data.mixing import BatchMixing
from hf_finetune.data.transforms import InputSpec
from hf_finetune.errors import ModelError
from hf_finetune.models.batchnorm import BatchNormMode, BatchNormPolicy, hold_batchnorm
from hf_finetune.models.lora import add_lora
from hf_finetune.training.micro_batches import in_parts, micro_batch_size
from tests.training.helpers import assert_close, head_only, trained


def test_parts_are_as_equal_as_they_can_be():
    batch = {"pixel_values": torch.rand(20, 3, 4, 4), "labels": torch.arange(20)}
    parts = in_parts(batch, 8)
    assert [len(part["labels"]) for part in parts] == [7, 7, 6]
    for name, values in batch.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), values)
    assert in_parts(batch, None) == [batch]
    assert in_parts(batch, 20) == [batch]


CONVOLUTION = nn.Conv2d(3, 4, 3)
PATCHES = nn.Conv2d(3, 4, 16, stride=16)


def chosen(requested: int | None, layers: list[nn.Module], side: int = 224, device: str = "cpu", **more: bool) -> int | None:
    args = SimpleNamespace(micro_batch_size=requested, per_device_train_batch_size=32, device=torch.device(device))
    spec = InputSpec(side, side, InterpolationMode.BICUBIC, (0.5,) * 3, (0.5,) * 3)
    return micro_batch_size(args, nn.Sequential(*layers), spec, **more)


@pytest.mark.parametrize(
    ("requested", "layers", "side", "device", "size"),
    [
        (None, [PATCHES, nn.LayerNorm(4)], 224, "cpu", 16),
        (None, [PATCHES, nn.LayerNorm(4)], 448, "cpu", 4),
        (None, [PATCHES, nn.LayerNorm(4)], 1024, "cpu", 1),
        (None, [PATCHES, nn.LayerNorm(4)], 64, "cpu", None),  # 196 photos, and a batch has 32
        (None, [PATCHES, nn.LayerNorm(4)], 224, "cuda", None),
        (None, [PATCHES, nn.BatchNorm2d(4)], 224, "cpu", None),
        (None, [CONVOLUTION, nn.GroupNorm(2, 4)], 224, "cpu", None),
        (0, [PATCHES, nn.LayerNorm(4)], 224, "cpu", None),
        (5, [CONVOLUTION, nn.GroupNorm(2, 4)], 224, "cuda", 5),
        (32, [CONVOLUTION, nn.GroupNorm(2, 4)], 224, "cuda", None),
    ],
)
def test_size_follows_the_request_the_network_and_the_device(requested, layers, side, device, size):
    assert chosen(requested, layers, side, device) == size


def test_batchnorm_that_is_held_allows_parts_and_one_that_moves_does_not():
    model = nn.Sequential(CONVOLUTION, nn.BatchNorm2d(4))
    with pytest.raises(ModelError) as error:
        chosen(5, list(model))
    assert str(error.value) == (
        "--micro_batch_size cuts every batch in parts, and 1 BatchNorm layers would take the mean and variance of each part for those of "
        "the batch; add --batch_norm frozen, or leave it out."
    )
    hold_batchnorm(model)
    assert chosen(5, list(model)) == 5


def test_sharded_parameters_take_batches_whole():
    assert chosen(None, [PATCHES, nn.LayerNorm(4)], sharded=True) is None
    with pytest.raises(ModelError) as error:
        chosen(5, [PATCHES, nn.LayerNorm(4)], sharded=True)
    assert str(error.value) == "--micro_batch_size does not work with FSDP or DeepSpeed; use --gradient_accumulation_steps."


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("vit", {}),
        ("vit", {"adapt": add_lora, "gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1}),
        ("vit", {"mixing": BatchMixing(5, 0.4, 0.4)}),
        ("timm_resnet", {"batch_norm": BatchNormPolicy(BatchNormMode.FROZEN)}),
        ("vit", {"adapt": head_only}),
    ],
    ids=["full", "lora accumulated", "mixed", "held", "cached"],
)
def test_parts_give_the_weights_of_whole_batches(kind: str, settings: dict, make_trainer: Callable):
    # plain SGD, since Adam's normalisation would hide a factor
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, **settings}
    whole = make_trainer(kind, **settings)
    cut = make_trainer(kind, micro_batch_size=3, **settings)
    assert (whole.micro_batch, cut.micro_batch) == (None, 3)
    seen: list[int] = []
    cut.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(len(next(iter(kwargs.values())))), with_kwargs=True)
    assert_close(trained(whole), trained(cut), 1e-5)
    assert max(seen) == 3
    losses = ([entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, cut))
    assert next(losses) == pytest.approx(next(losses), rel=1e-4)
