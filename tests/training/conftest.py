"""Trainers on tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict

from hf_finetune.arguments import FinetuneArguments
from hf_finetune.data.mixing import BatchMixing
from hf_finetune.data.transforms import TrainTransform
from hf_finetune.models.batchnorm import BatchNormPolicy
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freezing import FreezeSchedule
from hf_finetune.training.trainer import FinetuneTrainer
from tests.coloured import NAMES


@pytest.fixture
def make_trainer(photos: DatasetDict, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., FinetuneTrainer]:
    """A function that builds a `FinetuneTrainer` on a tiny checkpoint; keyword arguments override the training arguments."""

    def make(
        kind: str,
        *,
        adapt: Callable[[Any], Any] = lambda model: model,
        augmentation: str = "none",
        views: int | None = None,
        mixing: BatchMixing | None = None,
        schedule: FreezeSchedule | None = None,
        batch_norm: BatchNormPolicy | None = None,
        loss: Any = None,
        callbacks: Any = None,
        **overrides: Any,
    ) -> FinetuneTrainer:
        checkpoint = checkpoint_of(kind)
        torch.manual_seed(0)  # the new head; building the checkpoint draws random numbers too
        model, processor = load_classifier(str(checkpoint), NAMES)
        settings = {
            "output_dir": str(tmp_path / "run"),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "use_cpu": True,
        }
        arguments = FinetuneArguments(**{**settings, **overrides})
        return FinetuneTrainer(
            adapt(model),
            arguments,
            photos["train"],
            photos["validation"],
            processor,
            augmentation=TrainTransform(processor, augmentation, arguments.seed, views),
            mixing=mixing,
            schedule=schedule,
            batch_norm=batch_norm,
            loss=loss,
            callbacks=callbacks,
        )

    return make
