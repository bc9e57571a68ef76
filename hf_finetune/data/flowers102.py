"""Oxford Flowers-102 (Nilsback and Zisserman, ICVGIP 2008; https://www.robots.ox.ac.uk/~vgg/data/flowers/102/).

The Hub holds it as `dpdl-benchmark/oxford_flowers102`; here the official archives are read as they are unpacked, into the same columns and
order of classes.
"""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

import datasets
import numpy as np
import scipy.io

from hf_finetune.errors import DataError

logger = logging.getLogger(__name__)


_SPLIT_KEYS = {"train": "trnid", "validation": "valid", "test": "tstid"}
# what scipy raises for a file that is no MATLAB file, is of MATLAB 7.3, which it does not read, is damaged, or is cut short at any byte
_UNREADABLE = (scipy.io.matlab.MatReadError, NotImplementedError, UnboundLocalError, zlib.error, OSError, ValueError, IndexError, TypeError)


def flower_names() -> list[str]:
    """Return the names of the 102 classes, in the order of the official class numbers."""
    from torchvision.datasets import Flowers102  # only here: it takes seconds to import, and few data sets need it

    return list(Flowers102.classes)


def is_flowers_archive(folder: Path) -> bool:
    """Return whether `folder` looks like the unpacked official archive: `jpg/` beside one of the two `.mat` files."""
    return (folder / "jpg").is_dir() and any((folder / name).is_file() for name in ("imagelabels.mat", "setid.mat"))


def load_flowers_archive(folder: Path) -> dict[str, datasets.Dataset]:
    """Read the unpacked official archive.

    Args:
        folder: Holds `jpg/image_00001.jpg` and so on, `imagelabels.mat` (`labels`, from 1) and `setid.mat` (`trnid`, `valid` and `tstid`,
            photos from 1).

    Returns:
        The official splits `train`, `validation` and `test`, with `image`, `label` (102 flowers) and `image_id` (the photo's number).

    Raises:
        DataError: If a `.mat` file is missing or cannot be read, or if it holds numbers out of range.
    """
    names = flower_names()
    labels = _read(folder / "imagelabels.mat", "labels") - 1
    if labels.min() < 0 or labels.max() >= len(names):
        raise DataError(
            f"The labels in '{folder / 'imagelabels.mat'}' run from {labels.min() + 1} to {labels.max() + 1}; expected 1 to {len(names)}."
        )
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names), "image_id": datasets.Value("string")}
    )
    return {split: _dataset(folder, _read(folder / "setid.mat", key), labels, features) for split, key in _SPLIT_KEYS.items()}


def _dataset(folder: Path, numbers: np.ndarray, labels: np.ndarray, features: datasets.Features) -> datasets.Dataset:
    if numbers.min() < 1 or numbers.max() > len(labels):
        raise DataError(
            f"'{folder / 'setid.mat'}' names the photos {numbers.min()} to {numbers.max()}, "
            f"but imagelabels.mat labels photos 1 to {len(labels)}."
        )
    columns = {
        "image": [str(folder / "jpg" / f"image_{number:05d}.jpg") for number in numbers],
        "label": labels[numbers - 1].tolist(),
        "image_id": [str(number) for number in numbers],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def _read(path: Path, key: str) -> np.ndarray:
    try:
        content = scipy.io.loadmat(str(path))
    except FileNotFoundError:
        raise DataError(
            f"The file '{path}' is missing; Flowers-102 needs imagelabels.mat and setid.mat beside the unpacked jpg/ folder."
        ) from None
    except _UNREADABLE as error:
        raise DataError(f"The file '{path}' cannot be read as a MATLAB file ({error}).") from None
    if key not in content or content[key].size == 0:
        raise DataError(f"The file '{path}' holds no '{key}'.")
    return content[key].ravel().astype(np.int64)


def with_flower_names(splits: dict[str, datasets.Dataset], name: str) -> dict[str, datasets.Dataset]:
    """Name the 102 classes where a copy of the data set calls them "0" to "101", as the one on the Hub does.

    Args:
        splits: Any data set.
        name: Its Hub id or folder; only one that speaks of flowers is renamed.

    Returns:
        The same rows; the order of the classes is the official one, and stays.
    """
    numbers = [str(label) for label in range(102)]
    features = [split.features.get("label") for split in splits.values()]
    if "flower" not in name.lower() or not all(getattr(feature, "names", None) == numbers for feature in features):
        return splits
    logger.info("The classes 0 to 101 of '%s' get the official names of Flowers-102.", name)
    feature = datasets.ClassLabel(names=flower_names())
    return {key: _renamed(split, feature) for key, split in splits.items()}


def _renamed(split: datasets.Dataset, feature: datasets.ClassLabel) -> datasets.Dataset:
    labels = split.select_columns(["label"]).with_format("arrow")[:]["label"].to_pylist()
    return split.remove_columns("label").add_column("label", labels, feature=feature)
