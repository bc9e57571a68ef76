"""What tests of the trainer do with one."""

from __future__ import annotations

import torch

from hf_finetune.models.freezing import FreezeSchedule, freeze
from hf_finetune.training.trainer import FinetuneTrainer
from tests.coloured import weights_of


def trained(trainer: FinetuneTrainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return weights_of(trainer.model)


def head_only(model: torch.nn.Module) -> torch.nn.Module:
    freeze(model, FreezeSchedule.head())
    return model


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
