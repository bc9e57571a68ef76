from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from hf_finetune.data.image_folder import load_class_folders, load_hub_layout
from hf_finetune.errors import DataError

Photo = Callable[..., Path]
EXPECTED = " Expected CLASS/photo.jpg, SPLIT/CLASS/photo.jpg, data/*.parquet, or the unpacked archives of Oxford-IIIT Pet or Flowers-102."


def test_class_folders_become_one_train_split(class_folders: Path, photo: Photo) -> None:
    photo(class_folders / "ape" / "deeper" / "x.PNG")
    photo(class_folders / ".hidden" / "x.png")
    splits = load_class_folders(class_folders)
    assert list(splits) == ["train"]
    train = splits["train"]
    assert train.features["label"].names == ["ape", "cat", "dog"]
    assert train[0]["image_id"] == "ape/deeper/x.PNG"
    assert list(train["label"]) == [0, *[1] * 10, *[2] * 10]
    assert train[0]["image"].size == (24, 16)


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "Val"])
def test_splits_on_the_first_level(tmp_path: Path, photo: Photo, validation: str) -> None:
    for split in ("train", validation, "test"):
        photo(tmp_path / split / "cat" / "a.jpg")
        photo(tmp_path / split / "dog" / "a.jpg")
    photo(tmp_path / "raw" / "a.jpg")
    notices: list[str] = []
    splits = load_class_folders(tmp_path, notices)
    assert list(splits) == ["train", "validation", "test"]
    assert list(splits["validation"]["image_id"]) == [f"{validation}/cat/a.jpg", f"{validation}/dog/a.jpg"]
    assert notices == [f"Folders of '{tmp_path.name}' that are no split left out: raw."]


def test_a_class_called_test_is_a_class_where_nothing_is_called_train(tmp_path: Path, photo: Photo) -> None:
    photo(tmp_path / "test" / "a.jpg")
    photo(tmp_path / "control" / "a.jpg")
    assert load_class_folders(tmp_path)["train"].features["label"].names == ["control", "test"]


def test_files_that_are_no_images_are_noted(class_folders: Path) -> None:
    (class_folders / "cat" / "notes.txt").write_text("fed twice")
    (class_folders / "cat" / ".DS_Store").write_text("")
    notices: list[str] = []
    assert len(load_class_folders(class_folders, notices)["train"]) == 20
    assert notices == ["1 file of 'pets' left out, with no suffix of an image: cat/notes.txt."]


def test_photos_in_no_class_folder_are_noted(tmp_path: Path, photo: Photo) -> None:
    for place in ("train/cat", "train/dog", "test/cat", "test/dog", "train", "."):
        photo(tmp_path / place / "a.JPG")
    (tmp_path / "train" / "notes.txt").write_text("fed twice")
    notices: list[str] = []
    splits = load_class_folders(tmp_path, notices)
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "test": 2}
    assert notices == [f"2 images of '{tmp_path.name}' left out, because they lie in no class folder: a.JPG, train/a.JPG."]


def test_a_photo_beside_class_folders_is_noted(class_folders: Path, photo: Photo) -> None:
    photo(class_folders / "cover.png")
    notices: list[str] = []
    assert len(load_class_folders(class_folders, notices)["train"]) == 20
    assert notices == ["1 image of 'pets' left out, because it lies in no class folder: cover.png."]


def one_class(folder: Path, photo: Photo) -> None:
    photo(folder / "cat" / "a.jpg")


def empty_class(folder: Path, photo: Photo) -> None:
    photo(folder / "cat" / "a.jpg")
    (folder / "dog").mkdir()


def empty_class_in_a_split(folder: Path, photo: Photo) -> None:
    for split in ("train", "test"):
        photo(folder / split / "cat" / "a.jpg")
        photo(folder / split / "dog" / "a.jpg")
    (folder / "test" / "cat" / "a.jpg").unlink()
    (folder / "test" / "dog" / "a.jpg").unlink()


def no_images(folder: Path, photo: Photo) -> None:
    (folder / "cat").mkdir()
    (folder / "cat" / "notes.txt").write_text("fed twice")


def loose_photos(folder: Path, photo: Photo) -> None:
    photo(folder / "a.jpg")


def no_train(folder: Path, photo: Photo) -> None:
    for split in ("val", "test"):
        photo(folder / split / "cat" / "a.jpg")
        photo(folder / split / "dog" / "a.jpg")


def train_without_classes(folder: Path, photo: Photo) -> None:
    photo(folder / "train" / "a.jpg")
    photo(folder / "test" / "cat" / "a.jpg")


def two_of_a_split(folder: Path, photo: Photo) -> None:
    for split in ("train", "valid", "val"):
        photo(folder / split / "cat" / "a.jpg")
        photo(folder / split / "dog" / "a.jpg")


SPLITS_ALONE = "but no train folder with class folders in it. Expected CLASS/photo.jpg or train/CLASS/photo.jpg."
BAD = {
    "one_class": (one_class, "The folder '{0}' has one class, 'cat'; a classifier needs at least two class folders."),
    "empty_class": (empty_class, "1 class folder without images: {0}/dog. Fill or remove it."),
    "empty_class_in_a_split": (empty_class_in_a_split, "2 class folders without images: {0}/test/cat, {0}/test/dog. Fill or remove them."),
    "no_images": (no_images, "The folder '{0}' holds no images." + EXPECTED),
    "no_train": (no_train, "The folder '{0}' holds only folders called like splits (test, val), " + SPLITS_ALONE),
    "train_without_classes": (
        train_without_classes,
        "The folder '{0}' holds only folders called like splits (test, train), " + SPLITS_ALONE,
    ),
    "two_of_a_split": (two_of_a_split, "The folder '{0}' has two validation splits, 'val' and 'valid'; keep one."),
    "nothing": (lambda folder, photo: None, "The folder '{0}' holds no images." + EXPECTED),
    "loose_photos": (loose_photos, "The folder '{0}' holds no images in class folders; they lie beside each other." + EXPECTED),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_cannot_be_used(name: str, tmp_path: Path, photo: Photo) -> None:
    build, message = BAD[name]
    build(tmp_path, photo)
    with pytest.raises(DataError) as error:
        load_class_folders(tmp_path)
    assert str(error.value) == message.format(tmp_path)


def parquet(path: Path, rows: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"label": [0] * rows}).to_parquet(str(path))


def test_hub_layout_takes_the_split_from_the_name(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", 2)
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", 3)
    parquet(tmp_path / "data" / "val-00000-of-00001.parquet", 1)
    parquet(tmp_path / "data" / "test.parquet", 4)
    assert {name: len(split) for name, split in load_hub_layout(tmp_path).items()} == {"test": 4, "train": 5, "validation": 1}


def test_parquet_files_may_lie_at_the_top(tmp_path: Path) -> None:
    parquet(tmp_path / "train_part1.parquet")
    assert list(load_hub_layout(tmp_path)) == ["train"]


def test_a_parquet_file_of_no_split(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "cats.parquet")
    with pytest.raises(DataError) as error:
        load_hub_layout(tmp_path)
    assert str(error.value) == (
        f"The file '{tmp_path}/data/cats.parquet' belongs to no split; the name of a Parquet file begins with train, validation or test, "
        "such as train-00000-of-00001.parquet."
    )


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("not parquet")
    with pytest.raises(DataError) as error:
        load_hub_layout(tmp_path)
    with pytest.raises(pyarrow.ArrowInvalid) as quoted:
        pyarrow.parquet.ParquetFile(pyarrow.BufferReader(b"not parquet"))
    assert str(error.value) == f"The Parquet files of '{tmp_path}' cannot be read: {str(quoted.value).rstrip('.')}."
