import io
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import scipy.io
from scipy.io.matlab import MatReadError

from hf_finetune.data.catalog import load_dataset
from hf_finetune.data.flowers102 import flower_names, load_flowers_archive, with_flower_names
from hf_finetune.errors import DataError

Photo = Callable[..., Path]


@pytest.fixture
def archive(tmp_path: Path, photo: Photo) -> Path:
    for number in range(1, 9):
        photo(tmp_path / "jpg" / f"image_{number:05d}.jpg")
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[77, 77, 1, 1, 1, 77, 1, 77]], dtype=np.uint8)})
    scipy.io.savemat(tmp_path / "setid.mat", {"trnid": [[3, 1]], "valid": [[2, 4]], "tstid": np.array([[8, 7, 6, 5]], dtype=np.uint16)})
    return tmp_path


def test_official_archive(archive: Path) -> None:
    splits = load_flowers_archive(archive)
    assert list(splits) == ["train", "validation", "test"]
    assert list(splits["train"]["image_id"]) == ["3", "1"]
    assert list(splits["train"]["label"]) == [0, 76]
    assert list(splits["test"]["label"]) == [76, 0, 76, 0]
    assert splits["train"].features["label"].names == flower_names()
    assert splits["train"][0]["image"].size == (24, 16)


def test_load_dataset_recognises_the_archive(archive: Path) -> None:
    data = load_dataset(str(archive))
    assert {name: len(split) for name, split in data.items()} == {"train": 2, "validation": 2, "test": 4}


def test_official_names_in_official_order() -> None:
    names = flower_names()
    assert len(set(names)) == 102
    assert (names[0], names[53], names[76], names[101]) == ("pink primrose", "sunflower", "passion flower", "blackberry lily")


@pytest.mark.parametrize("missing", ["imagelabels.mat", "setid.mat"])
def test_a_missing_file(archive: Path, missing: str) -> None:
    (archive / missing).unlink()
    with pytest.raises(DataError) as error:
        load_dataset(str(archive))
    assert str(error.value) == (
        f"The file '{archive}/{missing}' is missing; Flowers-102 needs imagelabels.mat and setid.mat beside the unpacked jpg/ folder."
    )


BAD = {
    "labels": ("imagelabels.mat", {"labels": [[0, 103]]}, "The labels in '{0}/imagelabels.mat' run from 0 to 103; expected 1 to 102."),
    "photos": (
        "setid.mat",
        {"trnid": [[1, 9]], "valid": [[2]], "tstid": [[3]]},
        "'{0}/setid.mat' names the photos 1 to 9, but imagelabels.mat labels photos 1 to 8.",
    ),
    "key": ("setid.mat", {"train": [[1]]}, "The file '{0}/setid.mat' holds no 'trnid'."),
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_that_cannot_be_used(name: str, archive: Path) -> None:
    file, content, message = BAD[name]
    scipy.io.savemat(archive / file, content)
    with pytest.raises(DataError) as error:
        load_flowers_archive(archive)
    assert str(error.value) == message.format(archive)


def saved(*, compressed: bool) -> bytes:
    """The bytes of a MATLAB file."""
    file = io.BytesIO()
    scipy.io.savemat(file, {"trnid": [[1, 4]], "valid": [[2]], "tstid": [[3]]}, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_is_cut_short_at_any_byte(compressed: bool, archive: Path) -> None:
    whole = saved(compressed=compressed)
    for size in range(len(whole)):
        (archive / "setid.mat").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"setid\.mat' (cannot be read as a MATLAB file|holds no '\w+')"):
            load_flowers_archive(archive)


@pytest.mark.parametrize(
    ("content", "raised"),
    [
        (b"no matlab", MatReadError),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", NotImplementedError),
        (b"MATLAB 5.0 MAT-file".ljust(124), IndexError),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01I", TypeError),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM\x0e", OSError),
        (saved(compressed=True)[:136] + b"\0" + saved(compressed=True)[137:], zlib.error),
        (saved(compressed=False)[:144] + b"\0" + saved(compressed=False)[145:], UnboundLocalError),
    ],
    ids=[
        "text",
        "matlab 7.3",
        "cut before its version",
        "cut in its header",
        "cut in its first array",
        "damaged",
        "unknown class of array",
    ],
)
def test_a_file_that_scipy_does_not_read(content: bytes, raised: type[Exception], archive: Path) -> None:
    (archive / "setid.mat").write_bytes(content)
    with pytest.raises(raised) as quoted:
        scipy.io.loadmat(archive / "setid.mat")
    assert type(quoted.value) is raised
    with pytest.raises(DataError) as error:
        load_flowers_archive(archive)
    assert str(error.value) == f"The file '{archive}/setid.mat' cannot be read as a MATLAB file ({quoted.value})."


def numbered(classes: int) -> dict[str, datasets.Dataset]:
    names = [str(label) for label in range(classes)]
    features = datasets.Features({"label": datasets.ClassLabel(names=names), "row": datasets.Value("int64")})
    return {"train": datasets.Dataset.from_dict({"label": [0, 2], "row": [0, 1]}, features=features)}


def test_a_copy_with_numbers_for_names_gets_the_names() -> None:
    split = with_flower_names(numbered(102), "dpdl-benchmark/oxford_flowers102")["train"]
    assert split.features["label"].int2str(list(split["label"])) == ["pink primrose", "canterbury bells"]


@pytest.mark.parametrize(("name", "classes"), [("org/postcodes", 102), ("org/flowers", 17)])
def test_another_data_set_keeps_its_names(name: str, classes: int) -> None:
    splits = numbered(classes)
    assert with_flower_names(splits, name) is splits


@pytest.mark.real
def test_the_real_photos(real: Path) -> None:
    data = load_dataset(str(real / "data" / "oxford-flowers102"))
    assert {name: len(split) for name, split in data.items()} == {"train": 1020, "validation": 1020, "test": 2040}
    assert data["train"].features["label"].names == flower_names()
    assert data["train"].features["image_id"] == datasets.Value("string")
    row = data["test"][0]
    assert (row["image_id"], row["label"], min(row["image"].size)) == ("4", 76, 240)
    assert np.bincount(data["train"]["label"]).tolist() == [10] * 102
