"""Folders on disk → splits: class folders with photos in them, or Parquet files in the layout of the Hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import datasets

from hf_finetune.data.notices import counted, note
from hf_finetune.data.splits import SPLIT_NAMES, split_name
from hf_finetune.errors import DataError, listed

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm")


def parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder in Hub layout: `data/*.parquet`, or `*.parquet` where there are none."""
    return sorted((folder / "data").glob("*.parquet")) or sorted(folder.glob("*.parquet"))


def load_hub_layout(folder: Path) -> dict[str, datasets.Dataset]:
    """Read a folder in the layout of a Hub data set, such as `data/train-00000-of-00001.parquet`.

    Args:
        folder: Holds Parquet files (see `parquet_files`) whose names begin with the name of their split.

    Returns:
        Split → rows, with the columns of the files.

    Raises:
        DataError: If the name of a file begins with no split, or if a file cannot be read.
    """
    files: dict[str, list[str]] = {}
    for path in parquet_files(folder):
        split = split_name(path.stem.replace("_", "-").replace(".", "-").split("-")[0])
        if split is None:
            raise DataError(
                f"The file '{path}' belongs to no split; the name of a Parquet file begins with train, validation or test, "
                "such as train-00000-of-00001.parquet."
            )
        files.setdefault(split, []).append(str(path))
    try:
        return dict(datasets.load_dataset("parquet", data_files=files))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise DataError(f"The Parquet files of '{folder}' cannot be read: {str(cause).splitlines()[0].rstrip('.')}.") from None


def load_class_folders(folder: Path, notices: list[str] | None = None) -> dict[str, datasets.Dataset]:
    """Read a folder in which every class is a folder of photos, perhaps below `train`, `validation` (`valid`, `val`) and `test`.

    Photos may lie in folders below their class. Names that begin with a dot are ignored.

    Args:
        folder: `CLASS/photo.jpg`, or `SPLIT/CLASS/photo.jpg` where there is a `train` folder.
        notices: Receives a sentence about files that are no images by their suffix, about images in no class folder, and about folders
            beside the splits.

    Returns:
        Split → rows with `image`, `label` (classes sorted by name, over all splits) and `image_id` (the path from `folder`);
        `train` alone where the folder has no splits.

    Raises:
        DataError: If there is no class folder, only one class, a class folder without images, or no image at all; if all class folders
            are called like splits, or two folders are the same split.
    """
    roots = _split_folders(folder, notices) or {"train": folder}
    ignored: list[Path] = []
    photos = {split: _photos_by_class(root, ignored) for split, root in roots.items()}
    _require_classes(folder, roots, photos)
    if ignored:
        left_out = listed((path.relative_to(folder).as_posix() for path in ignored), 5)
        files = f"{counted(len(ignored), 'file')} of '{folder.resolve().name}'"
        note(logger, notices, f"{files} left out, with no suffix of an image: {left_out}.")
    _note_loose_images(folder, roots, notices)
    names = sorted({name for classes in photos.values() for name in classes})
    return {split: _dataset(folder, classes, names) for split, classes in photos.items()}


def _dataset(folder: Path, photos: dict[str, list[Path]], names: list[str]) -> datasets.Dataset:
    rows = [(path, names.index(name)) for name, paths in photos.items() for path in paths]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names), "image_id": datasets.Value("string")}
    )
    columns = {
        "image": [str(path) for path, _ in rows],
        "label": [label for _, label in rows],
        "image_id": [path.relative_to(folder).as_posix() for path, _ in rows],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def _split_folders(folder: Path, notices: list[str] | None) -> dict[str, Path]:
    """Return split → folder, or nothing where no folder is called `train`."""
    children = _folders(folder)
    found: dict[str, Path] = {}
    doubled: list[tuple[str, Path]] = []
    for child in children:
        if split := split_name(child.name):
            doubled += [(split, child)] if split in found else []
            found.setdefault(split, child)
    if "train" not in found or not _folders(found["train"]):
        return {}
    for split, child in doubled:
        raise DataError(f"The folder '{folder}' has two {split} splits, '{found[split].name}' and '{child.name}'; keep one.")
    left_out = [child.name for child in children if child not in found.values()]
    if left_out:
        note(logger, notices, f"Folders of '{folder.resolve().name}' that are no split left out: {listed(left_out)}.")
    return {name: found[name] for name in SPLIT_NAMES if name in found}


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _photos_by_class(root: Path, ignored: list[Path]) -> dict[str, list[Path]]:
    photos = {}
    for folder in _folders(root):
        files = sorted(_files_below(folder))
        photos[folder.name] = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        ignored += [path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    return photos


def _loose_images(folder: Path) -> list[Path]:
    """Return the images that lie in `folder` itself."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _note_loose_images(folder: Path, roots: dict[str, Path], notices: list[str] | None) -> None:
    loose = [
        path.relative_to(folder).as_posix() for place in {folder: None} | dict.fromkeys(roots.values()) for path in _loose_images(place)
    ]
    if loose:
        images, lie = counted(len(loose), "image"), "it lies" if len(loose) == 1 else "they lie"
        note(logger, notices, f"{images} of '{folder.resolve().name}' left out, because {lie} in no class folder: {listed(loose, 5)}.")


def _files_below(folder: Path) -> Iterable[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _require_classes(folder: Path, roots: dict[str, Path], photos: dict[str, dict[str, list[Path]]]) -> None:
    if not any(paths for classes in photos.values() for paths in classes.values()):
        loose = _loose_images(folder)
        raise DataError(
            f"The folder '{folder}' holds no images"
            + (" in class folders; they lie beside each other." if loose else ".")
            + " Expected CLASS/photo.jpg, SPLIT/CLASS/photo.jpg, data/*.parquet, or the unpacked archives of "
            "Oxford-IIIT Pet or Flowers-102."
        )
    if list(roots.values()) == [folder] and all(split_name(name) for name in photos["train"]):
        raise DataError(
            f"The folder '{folder}' holds only folders called like splits ({listed(photos['train'])}), but no train folder with class "
            "folders in it. Expected CLASS/photo.jpg or train/CLASS/photo.jpg."
        )
    for split, classes in photos.items():
        empty = [str(roots[split] / name) for name, paths in classes.items() if not paths]
        if empty:
            raise DataError(f"{counted(len(empty), 'class folder')} without images: {listed(empty)}. Fill or remove {_them(len(empty))}.")
    names = {name for classes in photos.values() for name in classes}
    if len(names) == 1:
        raise DataError(f"The folder '{folder}' has one class, '{names.pop()}'; a classifier needs at least two class folders.")


def _them(count: int) -> str:
    return "it" if count == 1 else "them"
