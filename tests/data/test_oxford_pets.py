from collections.abc import Callable
from pathlib import Path

import pytest

from hf_finetune.data.catalog import load_dataset
from hf_finetune.data.oxford_pets import load_pets_archive
from hf_finetune.errors import DataError

Photo = Callable[..., Path]

TRAINVAL = """\
# list of photos
Abyssinian_1 1 1 1
Abyssinian_2 1 1 1
american_bulldog_10 2 2 1
american_bulldog_11 2 2 1
British_Shorthair_7 3 1 2
British_Shorthair_8 3 1 2
"""
TEST = "Abyssinian_3 1 1 1\namerican_bulldog_12 2 2 1\nBritish_Shorthair_9 3 1 2\n"


@pytest.fixture
def archive(tmp_path: Path, photo: Photo) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "trainval.txt").write_text(TRAINVAL)
    (tmp_path / "annotations" / "test.txt").write_text(TEST)
    for line in (TRAINVAL + TEST).splitlines():
        if not line.startswith("#"):
            photo(tmp_path / "images" / f"{line.split()[0]}.jpg")
    return tmp_path


def test_official_archives(archive: Path) -> None:
    splits = load_pets_archive(archive)
    assert list(splits) == ["train", "test"]
    train = splits["train"]
    assert train.column_names == ["image", "label", "image_id", "label_cat_dog"]
    assert train.features["label"].names == ["abyssinian", "american_bulldog", "british_shorthair"]
    assert train.features["label_cat_dog"].names == ["cat", "dog"]
    assert list(train["label"]) == [0, 0, 1, 1, 2, 2]
    assert list(train["label_cat_dog"]) == [0, 0, 1, 1, 0, 0]
    assert list(splits["test"]["image_id"]) == ["Abyssinian_3", "american_bulldog_12", "British_Shorthair_9"]
    assert train[0]["image"].size == (24, 16)


def test_load_dataset_recognises_the_archives(archive: Path) -> None:
    data = load_dataset(str(archive), validation_fraction=0.5)
    assert {name: len(split) for name, split in data.items()} == {"train": 3, "validation": 3, "test": 3}


def test_a_missing_photo_is_found(archive: Path) -> None:
    (archive / "images" / "Abyssinian_3.jpg").unlink()
    with pytest.raises(DataError) as error:
        load_dataset(str(archive))
    assert str(error.value) == (
        "1 of 9 images cannot be used: Abyssinian_3 in test (the file is missing). Mend or remove it, or add --skip_bad_images, which "
        "leaves it out."
    )


BAD = {
    "line": (
        "Abyssinian_1 one 1 1\n",
        "Line 1 of '{0}' is 'Abyssinian_1 one 1 1'; expected NAME CLASS_ID SPECIES BREED_ID, such as 'Abyssinian_100 1 1 1'.",
    ),
    "species": ("A_1 1 3 1\n", "Line 1 of '{0}' is 'A_1 1 3 1'; expected NAME CLASS_ID SPECIES BREED_ID, such as 'Abyssinian_100 1 1 1'."),
    "names": ("A_1 1 1 1\nB_1 1 1 1\n", "Class 1 of '{1}' has two names: 'b' and 'a'."),
    "gap": ("A_1 9 1 1\n", "No photo of '{1}' is of class 4, 5, 6, 7, 8, though there are classes up to 9."),
    "empty": ("# nothing\n", "The file '{0}' names no photo."),
}


@pytest.mark.parametrize("name", BAD)
def test_a_list_that_cannot_be_used(name: str, archive: Path) -> None:
    content, message = BAD[name]
    path = archive / "annotations" / "trainval.txt"
    path.write_text(content)
    if name == "names":
        (archive / "annotations" / "test.txt").write_text("C_1 2 1 1\n")
    with pytest.raises(DataError) as error:
        load_pets_archive(archive)
    assert str(error.value) == message.format(path, archive)


def test_a_missing_list(archive: Path) -> None:
    (archive / "annotations" / "test.txt").unlink()
    with pytest.raises(DataError) as error:
        load_pets_archive(archive)
    assert str(error.value) == (
        f"The file '{archive}/annotations/test.txt' is missing; the Oxford-IIIT Pet archives unpack to images/, annotations/trainval.txt "
        "and annotations/test.txt."
    )


@pytest.mark.real
def test_the_real_photos(real: Path) -> None:
    data = load_dataset(str(real / "data" / "oxford-iiit-pet"))
    assert {name: len(split) for name, split in data.items()} == {"train": 588, "validation": 147, "test": 735}
    names = data["train"].features["label"].names
    assert len(names) == 37
    assert names == sorted(names)
    assert names[:6] == ["abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "bengal"]
    assert data["train"].column_names == ["image", "label", "image_id", "label_cat_dog"]
    assert (data["test"][0]["image_id"], data["test"][0]["label"], data["test"][0]["image"].size) == ("Abyssinian_105", 0, (240, 240))
    assert all(len(set(split["label"])) == 37 for split in data.values())


@pytest.mark.real
def test_real_cats_and_dogs(real: Path) -> None:
    data = load_dataset(str(real / "data" / "oxford-iiit-pet"), label_column="label_cat_dog", max_train_samples=100, max_eval_samples=50)
    assert data["train"].features["label"].names == ["cat", "dog"]
    assert data["train"].features["label_original"].names[0] == "abyssinian"
    assert {name: len(split) for name, split in data.items()} == {"train": 100, "validation": 50, "test": 50}
    assert sum(data["train"]["label"]) == 68  # dogs are 68 % of the photos
