"""The feature cache: the weights of a run are those without it, and a file is found only where it is right."""

from __future__ import annotations

import copy
import errno
import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import nn

from hf_finetune.data.stored_arrays import ArrayStore
from hf_finetune.data.transforms import EvalTransform, TrainTransform
from hf_finetune.models.batchnorm import BatchNormMode, BatchNormPolicy
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freezing import FreezeSchedule, freeze
from hf_finetune.models.lora import add_lora
from hf_finetune.training.features import FeatureCache, feature_directory
from hf_finetune.training.prefix import CACHED, find_frozen_prefix
from hf_finetune.training.trainer import FinetuneTrainer
from tests.coloured import NAMES, photo_split, weights_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of `datasets`, so that no test finds what another one computed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def frozen(which: str) -> Callable[[nn.Module], nn.Module]:
    def adapt(model: nn.Module) -> nn.Module:
        freeze(model, FreezeSchedule.parse(which))
        return model

    return adapt


def lora_on_top(model: Any) -> nn.Module:
    return add_lora(model, rank=2, layers="last:1")


def assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "adapt", "views"),
    [
        ("vit", frozen("head"), None),
        ("vit", lora_on_top, None),
        ("vit", frozen("last:1"), 2),
        ("timm_resnet", frozen("head"), None),
        ("timm_resnet", frozen("last:2"), 2),
        ("dinov2", frozen("last:1"), None),
    ],
)
def test_cached_and_uncached_training_give_the_same_weights(kind, adapt, views, make_trainer, photos) -> None:
    found = {}
    for cached in (True, False):
        settings = {"num_train_epochs": 3, "eval_strategy": "epoch", "views": views, "augmentation": "light" if views else "none"}
        trainer = make_trainer(kind, adapt=adapt, feature_cache_gb=float(cached), **settings)
        trainer.train()
        if cached:
            assert trainer.features.computed == len(photos["train"]) * (views or 1) + len(photos["validation"])
        else:
            assert trainer.features is None
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        found[cached] = weights_of(trainer.model), losses, torch.from_numpy(trainer.predict_split(photos["test"]))
    assert_near(found[True][0], found[False][0])
    torch.testing.assert_close(found[True][1], found[False][1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[True][2], found[False][2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "timm_vit", "timm_resnet"])
def test_activations_that_are_computed_again_in_the_backward_pass(kind: str, make_trainer) -> None:
    found = []
    for checkpointing in (True, False):
        settings = {
            "activation_checkpointing": checkpointing,
            "batch_norm": BatchNormPolicy(BatchNormMode.FROZEN) if "res" in kind else None,
        }
        trainer = make_trainer(kind, schedule=FreezeSchedule.parse("last:2"), num_train_epochs=1, **settings)
        trainer.train()
        assert trainer.features is not None
        found.append(weights_of(trainer.model))
    assert_near(*found)


@pytest.mark.parametrize(("kind", "which"), [("vit", "last:1"), ("vit", "head"), ("timm_vit", "last:2"), ("timm_resnet", "last:1")])
def test_activations_keep_their_own_dtype_under_autocast(kind: str, which: str, checkpoint_of) -> None:
    torch.manual_seed(0)
    model, _ = load_classifier(str(checkpoint_of(kind)), NAMES)
    freeze(model, FreezeSchedule.parse(which))
    images = torch.randn(2, 3, 32, 32)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    prefix = find_frozen_prefix(model, images, autocast)
    with autocast(), torch.no_grad():
        expected = model(pixel_values=images).logits
        kept = prefix.activations(images).float().to(prefix.dtype)  # as the file and the loader make it
        prefix.attach()
        assert torch.equal(model(**{CACHED: kept}).logits, expected)


def test_a_trained_model_has_no_hooks_of_the_cache(make_trainer, photos) -> None:
    trainer = make_trainer("timm_resnet", adapt=frozen("last:1"), eval_strategy="epoch", num_train_epochs=1)
    trainer.train()
    expected = trainer.predict_split(photos["test"])
    twin = copy.deepcopy(trainer.model)
    pickle.loads(pickle.dumps(trainer.model))
    with torch.no_grad():
        trainer.model.timm_model.conv1[0].weight.zero_()  # the copy must not compute with the modules of the original
    pixels = torch.stack([EvalTransform(trainer.processing_class)(photos["test"][:4])["pixel_values"][row] for row in range(4)])
    found = twin.eval()(pixel_values=pixels).logits.softmax(-1)
    torch.testing.assert_close(found.detach(), torch.from_numpy(expected[:4]), rtol=1e-4, atol=1e-5)


def test_validation_is_read_from_the_cache_where_training_draws_views(make_trainer, photos, caplog) -> None:
    with caplog.at_level("INFO"):
        trainer = make_trainer("timm_resnet", adapt=frozen("head"), augmentation="light", eval_strategy="epoch")
        trainer.train()
    assert CACHED in trainer.inputs.validation[0]
    assert "pixel_values" in trainer.inputs.train[0]
    assert trainer.inputs.summary()["computed"] == len(photos["validation"])
    assert "Feature cache for validation alone, since --augmentation light draws new views in every epoch" in caplog.text
    plain = make_trainer("timm_resnet", adapt=frozen("head"), augmentation="light", eval_strategy="epoch", feature_cache_gb=0.0)
    plain.train()
    assert_near(weights_of(trainer.model), weights_of(plain.model))
    losses = [[entry["eval_loss"] for entry in one.state.log_history if "eval_loss" in entry] for one in (trainer, plain)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_the_summary_counts_every_stage_of_a_schedule(make_trainer, photos) -> None:
    trainer = make_trainer("timm_resnet", schedule=FreezeSchedule.parse("gradual:start=1,every=1,stop=2"))
    trainer.train()
    summary = trainer.inputs.summary()
    assert len(summary["boundaries"]) == 2
    assert summary["computed"] == 2 * len(photos["train"])
    whole = make_trainer("timm_resnet", schedule=FreezeSchedule.parse("head_then_all:epochs=1"))
    whole.train()
    assert whole.features is None
    assert whole.inputs.summary()["computed"] == len(photos["train"])


def test_loader_processes_that_are_not_forked_map_the_same_file(make_trainer) -> None:
    trainer = make_trainer("timm_resnet", adapt=frozen("head"), augmentation="light", views=2, max_steps=1)
    trainer.train()
    source = trainer.inputs.train.source
    written = pickle.dumps(source)
    twin = pickle.loads(written)
    assert isinstance(twin.views[0], np.memmap)
    assert [view.filename for view in twin.views] == [view.filename for view in source.views]
    assert torch.equal(twin[3][CACHED], source[3][CACHED])


def test_a_second_run_with_another_seed_finds_everything(make_trainer, photos) -> None:
    for seed, computed in ((1, 70), (2, 0)):
        trainer = make_trainer("timm_resnet", adapt=frozen("head"), seed=seed, max_steps=1, eval_strategy="epoch")
        trainer.train()
        trainer.predict_split(photos["test"])
        assert (trainer.features.computed, trainer.features.reused) == (computed, 70 - computed)


def test_a_resumed_run_is_the_uninterrupted_one(make_trainer) -> None:
    settings = {"adapt": frozen("last:1"), "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 7, "augmentation": "none"}
    found = []
    for checkpoint in (None, "checkpoint-7"):
        trainer = make_trainer("timm_resnet", **settings)
        trainer.train(resume_from_checkpoint=checkpoint and str(Path(trainer.args.output_dir) / checkpoint))
        found.append(weights_of(trainer.model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# --- stale features -------------------------------------------------------------------------------------------------------------


def computed_for(
    checkpoint: Path,
    photos: datasets.Dataset,
    *,
    which: str = "head",
    change: Callable[[Any], None] | None = None,
    image_size: int = 32,
    augmentation: str = "none",
    seed: int = 0,
    views: int | None = None,
) -> int:
    """How many views of photos a cache has to compute for a model that `change` changes."""
    torch.manual_seed(0)
    model, processor = load_classifier(str(checkpoint), NAMES, image_size=image_size)
    freeze(model, FreezeSchedule.parse(which))
    if change is not None:
        change(model)
    prefix = find_frozen_prefix(model, torch.randn(2, 3, image_size, image_size))
    features = FeatureCache(prefix, ArrayStore(feature_directory(), 2**30), EvalTransform(processor))
    features.rows(photos, TrainTransform(processor, augmentation, seed, views))
    return features.computed


def nudge(name: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        with torch.no_grad():
            dict([*model.named_parameters(), *model.named_buffers()])[name].add_(1e-3)

    return change


def other_epsilon(model: Any) -> None:
    model.timm_model.bn1.eps = 1e-3


@pytest.mark.parametrize(
    "other",
    [
        {"change": nudge("timm_model.layer1.0.conv1.weight")},
        {"change": nudge("timm_model.layer2.0.bn1.running_mean")},
        {"change": other_epsilon},
        {"which": "last:1"},
        {"augmentation": "light", "views": 1},
        {"image_size": 64},
    ],
    ids=["weights", "statistics", "settings", "depth", "augmentation", "size"],
)
def test_what_changes_the_activations_is_never_served_old_ones(other: dict[str, Any], checkpoint_of) -> None:
    photos = photo_split(2)
    assert computed_for(checkpoint_of("timm_resnet"), photos) == 10
    assert computed_for(checkpoint_of("timm_resnet"), photos) == 0
    assert computed_for(checkpoint_of("timm_resnet"), photos, **other) == 10


@pytest.mark.parametrize(
    ("mode", "computed"),
    [
        (BatchNormMode.FROZEN, 0),
        (BatchNormMode.RECALIBRATE, 40),
        (BatchNormMode.TRAIN, None),
        (BatchNormMode.STATISTICS_ONLY, None),
        (BatchNormMode.AFFINE_ONLY, None),
    ],
    ids=str,
)
def test_another_batchnorm_mode_is_never_served_old_ones(mode: BatchNormMode, computed: int | None, make_trainer) -> None:
    settings = {"schedule": FreezeSchedule.head(), "max_steps": 1}
    make_trainer("timm_resnet", batch_norm=BatchNormPolicy(BatchNormMode.FROZEN), **settings).train()
    trainer = make_trainer("timm_resnet", batch_norm=BatchNormPolicy(mode), **settings)
    trainer.train()
    assert (trainer.features and trainer.features.computed) == computed
    assert (CACHED if computed is not None else "pixel_values") in trainer.inputs.train[0]


def test_other_photos_and_other_views_are_computed(checkpoint_of) -> None:
    checkpoint = checkpoint_of("timm_resnet")
    assert computed_for(checkpoint, photo_split(2), augmentation="light", views=2) == 20
    assert computed_for(checkpoint, photo_split(2), augmentation="light", views=3) == 10
    assert computed_for(checkpoint, photo_split(2), augmentation="light", views=2, seed=1) == 20
    assert computed_for(checkpoint, photo_split(2, 1), augmentation="light", views=2) == 20


def test_a_file_that_was_written_over_is_read_again(checkpoint_of, tmp_path: Path) -> None:
    from hf_finetune.data.catalog import load_dataset

    for row in photo_split(12):
        folder = tmp_path / "photos" / NAMES[row["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{row['image_id']}.png")

    def train() -> datasets.Dataset:
        return load_dataset(str(tmp_path / "photos"))["train"]

    checkpoint, count = checkpoint_of("timm_resnet"), len(train())
    assert computed_for(checkpoint, train()) == count
    assert computed_for(checkpoint, train()) == 0
    for file in (tmp_path / "photos" / "red").iterdir():
        os.utime(file, (1, 1))
    assert computed_for(checkpoint, train()) == count


def test_weights_that_only_the_trained_part_uses_do_not_matter(checkpoint_of) -> None:
    photos = photo_split(2)
    assert computed_for(checkpoint_of("timm_resnet"), photos, which="last:1") == 10
    assert computed_for(checkpoint_of("timm_resnet"), photos, which="last:1", change=nudge("timm_model.layer4.0.conv1.weight")) == 0


# --- when it cannot be used -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "limit", "line"),
    [
        ({"augmentation": "light"}, 1.0, "--augmentation light draws new views in every epoch; --augmentation_views K keeps K of them"),
        ({}, 0.0, "--feature_cache_gb is 0"),
        ({}, 1e-6, "2560 bytes are needed and 1073 bytes allowed"),
    ],
)
def test_one_line_says_why_there_is_no_cache(overrides, limit, line, make_trainer, caplog) -> None:
    trainer: FinetuneTrainer = make_trainer("timm_resnet", adapt=frozen("head"), feature_cache_gb=limit, max_steps=1, **overrides)
    caplog.clear()
    with caplog.at_level("INFO"):
        trainer.train()
    assert [record.getMessage() for record in caplog.records if "cache" in record.getMessage()] == [f"No feature cache: {line}."]
    assert trainer.features is None


def test_full_fine_tuning_says_nothing(make_trainer, caplog) -> None:
    trainer = make_trainer("vit", max_steps=1)
    with caplog.at_level("INFO"):
        trainer.train()
    assert "cache" not in caplog.text


def test_a_folder_that_cannot_be_written_is_no_obstacle(make_trainer, cache: Path, caplog) -> None:
    cache.mkdir()
    (cache / "hf_finetune").write_text("in the way")
    trainer = make_trainer("timm_resnet", adapt=frozen("head"), max_steps=1)
    with caplog.at_level("INFO"):
        trainer.train()
    assert "No feature cache: " in caplog.text
    assert "pixel_values" in trainer.inputs.train[0]


def test_a_file_cut_short_is_computed_again(make_trainer, caplog) -> None:
    make_trainer("timm_resnet", adapt=frozen("head"), max_steps=1).train()
    for file in feature_directory().iterdir():
        os.truncate(file, file.stat().st_size // 2)
    trainer = make_trainer("timm_resnet", adapt=frozen("head"), max_steps=1)
    caplog.clear()
    with caplog.at_level("INFO"):
        trainer.train()
    assert trainer.features.computed == 40
    assert trainer.inputs.train[0][CACHED].shape == (16,)
    (line,) = [record.getMessage() for record in caplog.records if "eature cache" in record.getMessage()]
    assert re.fullmatch(r"Feature cache: .* \(40 photos computed in \d+ s, 0 found\)\.", line)


def test_a_full_disk_is_no_obstacle(make_trainer, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    class FullDisk(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return FullDisk(path, "x") if mode == "xb" and path.is_relative_to(cache) else open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    trainer = make_trainer("timm_resnet", adapt=frozen("head"), max_steps=1, image_cache_gb=0)
    with caplog.at_level("INFO"):
        trainer.train()
    assert [record.getMessage() for record in caplog.records if "eature cache" in record.getMessage()] == [
        f"No feature cache: {feature_directory()} cannot be written (No space left on device)."
    ]
    assert trainer.state.global_step == 1


def test_validation_that_does_not_fit_is_told_and_read_as_photos(make_trainer, caplog) -> None:
    settings = {"adapt": frozen("head"), "augmentation": "light", "eval_strategy": "epoch", "num_train_epochs": 1}
    with caplog.at_level("INFO"):
        trainer = make_trainer("timm_resnet", feature_cache_gb=1e-7, **settings)
        trainer.train()
    assert [record.getMessage() for record in caplog.records if "eature cache" in record.getMessage()] == [
        "No feature cache: 960 bytes are needed and 107 bytes allowed."
    ]
    assert "pixel_values" in trainer.inputs.validation[0]
