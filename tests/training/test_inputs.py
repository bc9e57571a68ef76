"""Photos are decoded once for all epochs, and training is the one that decodes them every time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from hf_finetune.data import transforms
from hf_finetune.data.decoded import photo_directory
from hf_finetune.data.mixing import BatchMixing
from hf_finetune.models.freezing import FreezeSchedule
from hf_finetune.training.trainer import FinetuneTrainer
from tests.coloured import NAMES, weights_of

RUNS: dict[str, dict[str, Any]] = {
    "the same view in every epoch": {},
    "random views of it": {"augmentation": "flip+rotation"},
    "random crops": {"augmentation": "crop+flip"},
    "mixed batches": {"mixing": BatchMixing(len(NAMES), 0.4)},
    "loader processes": {"augmentation": "flip", "dataloader_num_workers": 1},
    "layers unfrozen one by one": {"schedule": FreezeSchedule.parse("gradual:start=1,every=1"), "feature_cache_gb": 0.0},
}

TABLE = 256  # pictures of one grey that show what an image processor makes of each byte


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def trained(trainer: FinetuneTrainer) -> tuple[dict[str, torch.Tensor], list[float]]:
    trainer.train()
    return weights_of(trainer.model), [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_the_weights_are_those_without_it_bit_for_bit(make_trainer: Callable[..., FinetuneTrainer], settings: dict[str, Any]) -> None:
    settings = {"num_train_epochs": 3, "eval_strategy": "epoch", **settings}
    weights, losses = trained(make_trainer("timm_resnet", **settings, image_cache_gb=0.0))
    assert not photo_directory().exists()
    for _ in ("computed", "found"):
        kept_weights, kept_losses = trained(make_trainer("timm_resnet", **settings))
        # views of training and validation and a table for both; sizes too where the photos of training are kept in place of views
        assert len(list(photo_directory().glob("*.npy"))) == (4 if settings.get("augmentation") == "crop+flip" else 3)
        assert kept_losses == losses
        assert all(torch.equal(kept_weights[name], weights[name]) for name in weights)


def test_a_second_run_decodes_no_photo(make_trainer: Callable[..., FinetuneTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    to_rgb = transforms.to_rgb
    monkeypatch.setattr(transforms, "to_rgb", lambda image: decoded.append(1) or to_rgb(image))
    counts = []
    for _ in range(2):
        trained(make_trainer("vit", num_train_epochs=3, eval_strategy="epoch"))
        counts.append(len(decoded))
    trainer = make_trainer("vit", num_train_epochs=3, eval_strategy="epoch", image_cache_gb=0.0)
    photos = len(trainer.inputs.photos["train"]) + len(trainer.inputs.photos["validation"])
    assert photos <= counts[0] - TABLE < 2 * photos  # each once, and a few for a look at a batch
    assert counts[1] - counts[0] < photos
    trained(trainer)
    assert len(decoded) - counts[1] >= 3 * photos


def test_photos_that_do_not_fit_are_decoded_in_every_epoch(
    make_trainer: Callable[..., FinetuneTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    weights, losses = trained(make_trainer("vit", eval_strategy="epoch", image_cache_gb=0.0))
    with caplog.at_level(logging.INFO, "hf_finetune"):
        small_weights, small_losses = trained(make_trainer("vit", eval_strategy="epoch", image_cache_gb=1e-6))
    assert small_losses == losses
    assert all(torch.equal(small_weights[name], weights[name]) for name in weights)
    lines = [record.getMessage() for record in caplog.records if "decoded" in record.getMessage()]
    told = "The photos of {} are decoded in every epoch: 3072 bytes are needed and 1073 bytes allowed."  # for the table of byte values
    assert lines == [told.format(split) for split in ("train", "validation")]
