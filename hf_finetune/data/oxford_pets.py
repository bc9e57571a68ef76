"""Oxford-IIIT Pet: 37 breeds of cats and dogs (Parkhi et al., Cats and Dogs, CVPR 2012; https://www.robots.ox.ac.uk/~vgg/data/pets/).

The Hub holds it as `timm/oxford-iiit-pet`; here the official archives are read as they are unpacked, into the same columns, class
names and order of classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import datasets

from hf_finetune.errors import DataError

_SPLIT_FILES = {"train": "trainval.txt", "test": "test.txt"}


class _Photo(NamedTuple):
    image_id: str
    breed: int  # from 0
    is_dog: int

    @property
    def breed_name(self) -> str:
        return self.image_id.rsplit("_", 1)[0].lower()


def is_pets_archive(folder: Path) -> bool:
    """Return whether `folder` looks like the unpacked official archives: `images/` beside `annotations/`."""
    return (folder / "images").is_dir() and (folder / "annotations").is_dir()


def load_pets_archive(folder: Path) -> dict[str, datasets.Dataset]:
    """Read the unpacked official archives.

    Args:
        folder: Holds `images/NAME.jpg` and `annotations/{trainval,test}.txt`, whose lines are `NAME CLASS_ID SPECIES BREED_ID` with
            CLASS_ID from 1 and SPECIES 1 for cats, 2 for dogs.

    Returns:
        The official splits `train` (their "trainval") and `test`, with `image`, `label` (37 breeds), `image_id` and `label_cat_dog`.

    Raises:
        DataError: If a list is missing, a line cannot be read, or a class has no name or two.
    """
    photos = {split: _read_list(folder / "annotations" / file) for split, file in _SPLIT_FILES.items()}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=_breed_names(folder, [photo for split in photos.values() for photo in split])),
            "image_id": datasets.Value("string"),
            "label_cat_dog": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    return {split: _dataset(folder / "images", rows, features) for split, rows in photos.items()}


def _dataset(images: Path, photos: list[_Photo], features: datasets.Features) -> datasets.Dataset:
    columns = {
        "image": [str(images / f"{photo.image_id}.jpg") for photo in photos],
        "label": [photo.breed for photo in photos],
        "image_id": [photo.image_id for photo in photos],
        "label_cat_dog": [photo.is_dog for photo in photos],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def _read_list(path: Path) -> list[_Photo]:
    if not path.is_file():
        raise DataError(
            f"The file '{path}' is missing; the Oxford-IIIT Pet archives unpack to images/, annotations/trainval.txt and "
            "annotations/test.txt."
        )
    photos = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            photos.append(_read_line(path, number, line))
    if not photos:
        raise DataError(f"The file '{path}' names no photo.")
    return photos


def _read_line(path: Path, number: int, line: str) -> _Photo:
    fields = line.split()
    if len(fields) == 4 and fields[1].isdecimal() and int(fields[1]) > 0 and fields[2] in ("1", "2"):
        return _Photo(fields[0], int(fields[1]) - 1, int(fields[2]) - 1)
    raise DataError(f"Line {number} of '{path}' is {line!r}; expected NAME CLASS_ID SPECIES BREED_ID, such as 'Abyssinian_100 1 1 1'.")


def _breed_names(folder: Path, photos: list[_Photo]) -> list[str]:
    names = {photo.breed: photo.breed_name for photo in photos}
    for photo in photos:
        if names[photo.breed] != photo.breed_name:
            raise DataError(f"Class {photo.breed + 1} of '{folder}' has two names: '{names[photo.breed]}' and '{photo.breed_name}'.")
    missing = [str(breed + 1) for breed in range(max(names) + 1) if breed not in names]
    if missing:
        raise DataError(f"No photo of '{folder}' is of class {', '.join(missing)}, though there are classes up to {max(names) + 1}.")
    return [names[breed] for breed in sorted(names)]
