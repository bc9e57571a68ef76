"""The data sets that are drawn on the spot: `drawn_pets` and `drawn_flowers` to fine-tune on, `drawn_shapes` to pretrain on.

They need no network; what was drawn once is kept on disk. Every image is drawn from its own random numbers, which depend on the data set,
the seed, the split, the class and the number of the image, and on nothing else: asking for fewer images gives the first ones of each
class, unchanged.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PillowImage

from hf_finetune.data.drawing import image_rng, png
from hf_finetune.data.drawn_flowers import FLOWERS, draw_flower
from hf_finetune.data.drawn_pets import BREEDS, draw_pet
from hf_finetune.data.drawn_shapes import FACTORS, SHAPE_NAMES, SHAPES, draw_shape
from hf_finetune.data.stored_arrays import cache_root, digest
from hf_finetune.errors import DataError

logger = logging.getLogger(__name__)

SPECIES = ("cat", "dog")
_SPLITS = ("train", "validation", "test")
Drawer = Callable[[np.random.Generator, int], PillowImage.Image]


def drawn_pets(seed: int = 0, n_train: int = 60, n_test: int = 20) -> DatasetDict:
    """Draw 37 breeds of pets, 12 of cats and 25 of dogs, with the class names, columns and splits of Oxford-IIIT Pet.

    Args:
        seed: Seed of the whole set, not negative.
        n_train: Training images a breed, at least 1.
        n_test: Test images a breed, at least 1.

    Returns:
        Splits `train` and `test` with the columns `image` (RGB, 40 to 80 pixels a side), `label` (37 classes), `image_id` and
        `label_cat_dog`.

    Raises:
        DataError: A seed below 0 or fewer than one image a class.
    """
    _check("drawn_pets", seed, n_train=n_train, n_test=n_test)
    return DatasetDict({"train": _pets(seed, "train", n_train), "test": _pets(seed, "test", n_test)})


def drawn_flowers(seed: int = 0, n_train: int = 10, n_validation: int = 10, n_test: int = 20) -> DatasetDict:
    """Draw 102 kinds of flowers, with the class names and the splits of Oxford Flowers 102.

    Args:
        seed: Seed of the whole set, not negative.
        n_train: Training images a class, at least 1.
        n_validation: Validation images a class, at least 1.
        n_test: Test images a class, at least 1.

    Returns:
        Splits `train`, `validation` and `test` with the columns `image` (RGB, 42 to 80 pixels a side), `label` (102 classes) and
        `image_id`.

    Raises:
        DataError: A seed below 0 or fewer than one image a class.
    """
    counts = {"n_train": n_train, "n_validation": n_validation, "n_test": n_test}
    _check("drawn_flowers", seed, **counts)
    return DatasetDict({split: _flowers(seed, split, counts[f"n_{split}"]) for split in _SPLITS})


def drawn_shapes(seed: int = 0, n_train: int = 100, n_test: int = 10) -> DatasetDict:
    """Draw 240 classes of abstract figures and 56 of scribbles, for pretraining; none of them is a pet, a flower or a digit.

    Args:
        seed: Seed of the whole set, not negative.
        n_train: Training images a class, at least 1.
        n_test: Test images a class, at least 1.

    Returns:
        Splits `train` and `test` with the columns `image` (RGB, 44 to 80 pixels a side), `label` (296 classes), `image_id` and one
        `ClassLabel` column for each entry of `drawn_shapes.FACTORS`.

    Raises:
        DataError: A seed below 0 or fewer than one image a class.
    """
    _check("drawn_shapes", seed, n_train=n_train, n_test=n_test)
    return DatasetDict({"train": _shapes(seed, "train", n_train), "test": _shapes(seed, "test", n_test)})


def _check(name: str, seed: int, **counts: int) -> None:
    if seed < 0:
        raise DataError(f"{name}: the seed is {seed}; it must be 0 or more.")
    for key, value in counts.items():
        if value < 1:
            raise DataError(f"{name}: {key} is {value}; every split needs at least 1 image a class.")


def _rows(name: str, seed: int, split: str, count: int, classes: int, draw: Drawer) -> dict[str, list]:
    """Draw `count` images of every class; the columns `image`, `label` and `image_id`."""
    columns: dict[str, list] = {"image": [], "label": [], "image_id": []}
    for label in range(classes):
        for number in range(count):
            rng = image_rng(name, seed, _SPLITS.index(split), label, number)
            columns["image"].append(png(draw(rng, label)))
            columns["label"].append(label)
            columns["image_id"].append(f"{split}_{label:03d}_{number:03d}")
    return columns


def _features(names: list[str], **more: ClassLabel) -> Features:
    return Features({"image": Image(), "label": ClassLabel(names=names), "image_id": Value("string"), **more})


def drawn_directory() -> Path:
    """Return the folder of the splits that were drawn before."""
    return cache_root() / "drawn"


def _kept(draw: Callable[[int, str, int], Dataset]) -> Callable[[int, str, int], Dataset]:
    """Let a split be drawn once and read from disk ever after; its file is named by the code that drew it."""

    @lru_cache(maxsize=6)
    def kept(seed: int, split: str, count: int) -> Dataset:
        file = drawn_directory() / f"{digest(draw.__name__, str(seed), split, str(count), *_sources())}.arrow"
        if not file.is_file():
            drawn = draw(seed, split, count)
            try:
                _write(drawn, file)
            except OSError as error:
                logger.info("The drawn photos are not kept: %s.", error.strerror)
                return drawn
        return Dataset.from_file(str(file))

    return kept


def _sources() -> Iterator[str | bytes]:
    """Yield what decides the pixels: the code of this folder that draws, and the versions of what it draws with."""
    for name in ("drawing.py", "drawn.py", "drawn_flowers.py", "drawn_pets.py"):
        yield (Path(__file__).parent / name).read_bytes()
    yield from (np.__version__, PIL.__version__)


def _write(split: Dataset, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.part")
    table = split.data.table
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    draft.replace(file)


@_kept
def _pets(seed: int, split: str, count: int) -> Dataset:
    names = [breed.name for breed in BREEDS]
    columns = _rows("drawn_pets", seed, split, count, len(BREEDS), lambda rng, label: draw_pet(rng, BREEDS[label]))
    columns["image_id"] = [f"{names[label]}_{name}" for label, name in zip(columns["label"], columns["image_id"], strict=True)]
    columns["label_cat_dog"] = [0 if BREEDS[label].cat else 1 for label in columns["label"]]
    return Dataset.from_dict(columns, features=_features(names, label_cat_dog=ClassLabel(names=list(SPECIES))))


@_kept
def _flowers(seed: int, split: str, count: int) -> Dataset:
    columns = _rows("drawn_flowers", seed, split, count, len(FLOWERS), lambda rng, label: draw_flower(rng, FLOWERS[label]))
    columns["image_id"] = [f"flower_{name}" for name in columns["image_id"]]
    return Dataset.from_dict(columns, features=_features([flower.name for flower in FLOWERS]))


def _shapes(seed: int, split: str, count: int) -> Dataset:
    columns = _rows("drawn_shapes", seed, split, count, len(SHAPES), draw_shape)
    columns |= {name: [SHAPES[label][name] for label in columns["label"]] for name in FACTORS}
    more = {name: ClassLabel(names=list(values)) for name, values in FACTORS.items()}
    return Dataset.from_dict(columns, features=_features(list(SHAPE_NAMES), **more))
