"""The drawn data sets: counts, names, columns, and that the same seed gives the same bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value

from hf_finetune.data import drawn
from hf_finetune.data.digits import digits
from hf_finetune.data.drawn import drawn_flowers, drawn_pets, drawn_shapes
from hf_finetune.data.drawn_flowers import FLOWERS
from hf_finetune.data.drawn_pets import BREEDS, draw_pet
from hf_finetune.data.drawn_shapes import FACTORS, SHAPE_NAMES
from hf_finetune.errors import DataError

CATS = {
    "abyssinian",
    "bengal",
    "birman",
    "bombay",
    "british_shorthair",
    "egyptian_mau",
    "maine_coon",
    "persian",
    "ragdoll",
    "russian_blue",
    "siamese",
    "sphynx",
}


def bytes_of(dataset: Dataset) -> list[bytes]:
    return [row["bytes"] for row in dataset.cast_column("image", Image(decode=False))["image"]]


@pytest.fixture(scope="module")
def pets() -> DatasetDict:
    return drawn_pets(seed=0, n_train=3, n_test=2)


@pytest.fixture(scope="module")
def flowers() -> DatasetDict:
    return drawn_flowers(seed=0, n_train=1, n_validation=1, n_test=1)


def test_a_split_is_drawn_once_and_read_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_finetune.data.drawn.cache_root", lambda: tmp_path / "cache")
    counted = Counter()
    monkeypatch.setattr("hf_finetune.data.drawn.draw_pet", lambda *args: (counted.update(["drawn"]), draw_pet(*args))[1])
    first = drawn_pets(seed=11, n_train=1, n_test=1)
    assert counted["drawn"] == 74
    drawn._pets.cache_clear()
    second = drawn_pets(seed=11, n_train=1, n_test=1)
    assert counted["drawn"] == 74
    for split in first:
        assert bytes_of(first[split]) == bytes_of(second[split])
        assert first[split].features == second[split].features
        assert first[split]._fingerprint == second[split]._fingerprint
    monkeypatch.setattr("hf_finetune.data.drawn._sources", lambda: iter(["other code"]))
    drawn._pets.cache_clear()
    drawn_pets(seed=11, n_train=1, n_test=1)
    assert counted["drawn"] == 148


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("hf_finetune.data.drawn.cache_root", lambda: tmp_path / "file")
    assert len(drawn_pets(seed=12, n_train=1, n_test=1)["test"]) == 37


def test_pets_have_the_splits_columns_and_names_of_the_real_set(pets: DatasetDict) -> None:
    assert {split: len(rows) for split, rows in pets.items()} == {"train": 37 * 3, "test": 37 * 2}
    features = pets["train"].features
    assert list(features) == ["image", "label", "image_id", "label_cat_dog"]
    assert features["image"] == Image()
    assert features["image_id"] == Value("string")
    assert features["label_cat_dog"] == ClassLabel(names=["cat", "dog"])
    names = features["label"].names
    assert names == sorted(names)
    assert len(set(names)) == 37
    assert set(names) >= CATS


def test_every_breed_has_as_many_images_as_asked_for(pets: DatasetDict) -> None:
    assert np.bincount(pets["train"]["label"][:]).tolist() == [3] * 37
    assert np.bincount(pets["test"]["label"][:]).tolist() == [2] * 37


def test_label_cat_dog_follows_from_the_breed(pets: DatasetDict) -> None:
    names = pets["train"].features["label"].names
    for rows in pets.values():
        for label, species in zip(rows["label"][:], rows["label_cat_dog"][:], strict=True):
            assert species == (0 if names[label] in CATS else 1)
    assert sum(breed.cat for breed in BREEDS) == 12


def test_flowers_have_three_splits_and_102_names(flowers: DatasetDict) -> None:
    assert {split: len(rows) for split, rows in flowers.items()} == {"train": 102, "validation": 102, "test": 102}
    assert list(flowers["test"].features) == ["image", "label", "image_id"]
    names = flowers["train"].features["label"].names
    assert len(set(names)) == 102
    assert names[:3] == ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]
    assert names[-1] == "blackberry lily"
    assert len(set(FLOWERS)) == 102


def test_the_full_sets_are_as_large_as_documented() -> None:
    pets_counts, flower_counts = drawn_pets.__defaults__, drawn_flowers.__defaults__
    assert pets_counts == (0, 60, 20)
    assert flower_counts == (0, 10, 10, 20)


@pytest.mark.parametrize("draw", [drawn_pets, drawn_shapes])
def test_the_seed_decides_every_byte(draw) -> None:
    from hf_finetune.data import drawn

    first = bytes_of(draw(seed=3, n_train=1, n_test=1)["train"])
    drawn._pets.cache_clear()
    again = draw(seed=3, n_train=1, n_test=1)["train"]
    other = bytes_of(draw(seed=4, n_train=1, n_test=1)["train"])
    assert bytes_of(again) == first
    assert not set(first) & set(other)


def test_the_same_seed_gives_the_same_fingerprint() -> None:
    from hf_finetune.data import drawn

    first = drawn_pets(seed=5, n_train=1, n_test=1)["test"]._fingerprint
    drawn._pets.cache_clear()
    assert drawn_pets(seed=5, n_train=1, n_test=1)["test"]._fingerprint == first


def test_fewer_images_are_the_first_ones_of_each_class(pets: DatasetDict) -> None:
    fewer = drawn_pets(seed=0, n_train=1, n_test=1)
    assert bytes_of(fewer["train"]) == bytes_of(pets["train"])[::3]
    assert fewer["train"]["image_id"][:] == pets["train"]["image_id"][:][::3]


@pytest.mark.parametrize("name", ["pets", "flowers"])
def test_no_image_is_in_two_splits(name: str, request: pytest.FixtureRequest) -> None:
    dataset = request.getfixturevalue(name)
    images = [image for rows in dataset.values() for image in bytes_of(rows)]
    names = [name for rows in dataset.values() for name in rows["image_id"]]
    assert len(set(images)) == len(images)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["pets", "flowers"])
def test_sizes_and_aspects_vary_within_the_documented_range(name: str, request: pytest.FixtureRequest) -> None:
    images = request.getfixturevalue(name)["train"]["image"][:]
    assert {image.mode for image in images} == {"RGB"}
    sides = np.array([image.size for image in images])
    assert sides.min() >= 40
    assert sides.max() <= 80
    assert len({tuple(size) for size in sides.tolist()}) > 30
    assert (sides[:, 0] > sides[:, 1]).any()
    assert (sides[:, 0] < sides[:, 1]).any()


def test_shapes_carry_a_column_for_every_factor() -> None:
    shapes = drawn_shapes(seed=0, n_train=1, n_test=1)["train"]
    assert len(shapes) == len(set(SHAPE_NAMES)) == 296
    for row in shapes.remove_columns("image"):
        name = shapes.features["label"].names[row["label"]]
        if row["outline"] == FACTORS["outline"].index("scribble"):
            assert name.startswith("scribble ")
            continue
        for factor, values in FACTORS.items():
            assert shapes.features[factor].names == list(values)
            assert values[row[factor]] in name
        assert row["colour"] != row["second"]


def test_shapes_share_no_class_with_the_sets_to_fine_tune_on() -> None:
    pretraining = set(SHAPE_NAMES) | {value for values in FACTORS.values() for value in values}
    assert not pretraining & {breed.name for breed in BREEDS}
    assert not pretraining & {flower.name for flower in FLOWERS}
    assert not pretraining & {str(digit) for digit in range(10)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drawn_pets(seed=-1), "drawn_pets: the seed is -1; it must be 0 or more."),
        (lambda: drawn_pets(n_test=0), "drawn_pets: n_test is 0; every split needs at least 1 image a class."),
        (lambda: drawn_flowers(n_validation=-2), "drawn_flowers: n_validation is -2; every split needs at least 1 image a class."),
        (lambda: drawn_shapes(n_train=0), "drawn_shapes: n_train is 0; every split needs at least 1 image a class."),
    ],
)
def test_impossible_counts_and_seeds_are_refused(call, message: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    assert str(caught.value) == message


def test_digits_are_split_in_a_stratified_way_and_always_the_same() -> None:
    first, again = digits(), digits()
    assert list(first["train"].features) == ["image", "label", "image_id"]
    assert first["train"].features["label"].names == [str(digit) for digit in range(10)]
    assert len(first["train"]) + len(first["test"]) == 1797
    share = np.bincount(first["test"]["label"][:]) / np.bincount(first["train"]["label"][:] + first["test"]["label"][:])
    assert np.ptp(share) < 0.02
    assert not set(first["train"]["image_id"]) & set(first["test"]["image_id"])
    assert bytes_of(first["train"]) == bytes_of(again["train"])
    image = first["train"][0]["image"]
    assert (image.mode, image.size) == ("RGB", (8, 8))
