"""Photo sets and trainers for the tests of the training room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PillowImage

from hf_finetune.arguments import FinetuneArguments
from hf_finetune.models.classifier import load_classifier
from hf_finetune.training.trainer import FinetuneTrainer
from tests.builders import BUILDERS

NAMES = ["red", "green", "blue", "grey", "white"]
COLOURS = [(200, 60, 60), (60, 200, 60), (60, 60, 200), (120, 120, 120), (220, 220, 220)]


def coloured_photo(label: int, number: int) -> PillowImage.Image:
    """A noisy image of its class's colour."""
    rng = np.random.default_rng([label, number])
    pixels = np.clip(np.array(COLOURS[label]) + rng.normal(0, 50, (36 + number % 5, 40, 3)), 0, 255)
    return PillowImage.fromarray(pixels.astype(np.uint8))


def photo_split(per_class: int, offset: int = 0) -> Dataset:
    """Rows with `image`, `label` and `image_id`, `per_class` for each of the five colours."""
    rows = [(label, offset + number) for number in range(per_class) for label in range(len(NAMES))]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES), "image_id": Value("string")})
    columns = {
        "image": [coloured_photo(label, number) for label, number in rows],
        "label": [label for label, _ in rows],
        "image_id": [f"{NAMES[label]}_{number}" for label, number in rows],
    }
    return Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="session")
def photos() -> DatasetDict:
    """Five colours: 40 photos to train on, 15 to validate, 15 to test."""
    return DatasetDict({"train": photo_split(8), "validation": photo_split(3, 100), "test": photo_split(3, 200)})


@pytest.fixture(scope="session")
def photo_folder(photos: DatasetDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same photos as a folder of split folders of class folders."""
    root = tmp_path_factory.mktemp("photos")
    for split, rows in photos.items():
        for row in rows:
            folder = root / split / NAMES[row["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / f"{row['image_id']}.png")
    return root


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a builder's name to a directory with that tiny checkpoint, built once."""
    built: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in built:
            torch.manual_seed(0)
            built[kind] = BUILDERS[kind](tmp_path_factory.mktemp("checkpoints") / kind)
        return built[kind]

    return build


@pytest.fixture
def make_trainer(photos: DatasetDict, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., FinetuneTrainer]:
    """A function that builds a `FinetuneTrainer` on a tiny checkpoint; keyword arguments override the training arguments."""

    def make(
        kind: str, *, adapt: Callable[[Any], Any] = lambda model: model, augmentation: str = "none", callbacks: Any = None, **overrides: Any
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
            adapt(model), arguments, photos["train"], photos["validation"], processor, augmentation=augmentation, callbacks=callbacks
        )

    return make


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_only_changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], changed: Callable[[str], bool]) -> None:
    """Every tensor that `changed` names has moved, and every other one is bit-identical."""
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if changed(name)}
