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
from hf_finetune.training import micro_batches
from hf_finetune.training.losses import CrossEntropy
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


def chosen(
    requested: int | None, layers: list[nn.Module], side: int = 224, device: str = "cpu", optim: str = "adam", **more: bool
) -> int | None:
    args = SimpleNamespace(micro_batch_size=requested, per_device_train_batch_size=32, device=torch.device(device), optim=optim)
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
        "--micro_batch_size cuts every batch in parts, and 1 BatchNorm layers would take the mean and variance of each for those of the "
        "batch; add --batch_norm frozen, or leave it out."
    )
    hold_batchnorm(model)
    assert chosen(5, list(model)) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharded": True}, "FSDP and DeepSpeed count each of them as a batch; use --gradient_accumulation_steps."),
        ({"optim": "galore_adamw_layerwise"}, "--optim galore_adamw_layerwise makes a step after each of them; leave one of the two out."),
        ({"optim": "adalomo"}, "--optim adalomo makes a step after each of them; leave one of the two out."),
    ],
)
def test_what_takes_a_part_for_the_batch_gets_it_whole(settings: dict, message: str):
    assert chosen(None, [PATCHES, nn.LayerNorm(4)], **settings) is None
    with pytest.raises(ModelError) as error:
        chosen(5, [PATCHES, nn.LayerNorm(4)], **settings)
    assert str(error.value) == f"--micro_batch_size cuts every batch in parts, and {message}"


@pytest.mark.parametrize(
    ("kind", "settings", "cached"),
    [
        ("vit", {}, False),
        ("vit", {"adapt": add_lora, "gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1, "feature_cache_gb": 0.0}, False),
        ("vit", {"mixing": BatchMixing(5, 0.4, 0.4)}, False),
        ("timm_resnet", {"batch_norm": BatchNormPolicy(BatchNormMode.FROZEN)}, False),
        ("vit", {"adapt": head_only}, True),
    ],
    ids=["full", "lora accumulated", "mixed", "held", "cached"],
)
def test_parts_give_the_weights_of_whole_batches(kind: str, settings: dict, cached: bool, make_trainer: Callable):
    # plain SGD, since Adam's normalisation would hide a factor
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "logging_steps": 1, **settings}
    whole = make_trainer(kind, **settings)
    cut = make_trainer(kind, micro_batch_size=3, **settings)
    assert (whole.micro_batch, cut.micro_batch) == (None, 3)
    seen: list[int] = []
    cut.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(next(iter(kwargs.values())))) if module.training else None, with_kwargs=True
    )
    assert_close(trained(whole), trained(cut), 1e-5)
    assert max(seen) == 3
    assert (cut.features is not None) == cached
    losses, others = ([entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, cut))
    assert len(losses) == cut.state.global_step
    assert losses == pytest.approx(others, rel=1e-4)


def test_kept_activations_and_another_loss_leave_a_batch_whole_where_nobody_asked(make_trainer, monkeypatch, caplog):
    monkeypatch.setattr(micro_batches, "_PIXELS_ON_CPU", 3 * 32 * 32)
    caplog.set_level("INFO", "hf_finetune")
    for settings, size in (({}, 3), ({"adapt": head_only}, None), ({"loss": CrossEntropy()}, None)):
        caplog.clear()
        trainer = make_trainer("vit", num_train_epochs=1, **settings)
        trainer.train()
        assert trainer.micro_batch == size
        said = "A batch trains in parts of at most 3 photos: the gradient of all of it, in less memory."
        assert (said in caplog.messages) == (size == 3)
