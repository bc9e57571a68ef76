import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from hf_finetune.data import catalog
from hf_finetune.data.catalog import DatasetOrigin, dataset_origin, load_dataset
from hf_finetune.errors import DataError, HubError

Photo = Callable[..., Path]
ALLOWED = "a name (oxford_pets, flowers102, drawn_pets, drawn_flowers, digits), a Hub id (ORG/NAME) or a folder"


def sizes(data: datasets.DatasetDict) -> dict[str, int]:
    return {name: len(split) for name, split in data.items()}


@pytest.fixture
def hub_folder(tmp_path: Path, photo: Photo) -> Callable[..., str]:
    """Writes a folder in Hub layout with 12 training and 6 test photos, and returns its path; arguments are further or other columns."""

    def write(test: dict[str, list[Any]] | None = None, features: dict[str, Any] | None = None, **train: list[Any]) -> str:
        folder = tmp_path / "flat"
        for split, rows, columns in (("train", 12, train), ("test", 6, test)):
            columns = {
                "image": [photo(tmp_path / "raw" / f"{row}.jpg", seed=row).read_bytes() for row in range(rows)],
                "label": [0, 1] * (rows // 2),
            } | ({name: values[:rows] for name, values in train.items()} if columns is None else columns)
            kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), **(features or {})}
            full = datasets.Dataset.from_dict({name: columns[name] for name in columns if name not in kinds})
            for name in kinds:
                if name in columns:
                    part = datasets.Dataset.from_dict(
                        {name: columns[name]}, features=datasets.Features({name: kinds[name]}) if kinds[name] else None
                    )
                    full = part if not full.column_names else datasets.concatenate_datasets([full, part], axis=1)
            path = folder / "data" / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            full.to_parquet(str(path))
        return str(folder)

    return write


def test_class_folders_get_three_splits(class_folders: Path) -> None:
    notices: list[str] = []
    data = load_dataset(str(class_folders), notices=notices)
    assert sizes(data) == {"train": 13, "validation": 3, "test": 4}
    assert data["train"].column_names == ["image", "label", "image_id"]
    assert {name: np.bincount(split["label"]).tolist() for name, split in data.items()} == {
        "train": [6, 7],
        "validation": [2, 1],
        "test": [2, 2],
    }
    everything = [image_id for split in data.values() for image_id in split["image_id"]]
    assert sorted(everything) == sorted(f"{name}/{number}.jpg" for name in ("cat", "dog") for number in range(10))
    assert notices == [
        "The dataset 'pets' has no test split and no validation split: 4 images for test and 3 images for validation were cut from train, "
        "stratified, seed 42."
    ]


def test_the_seed_and_the_fractions_decide_what_is_cut(class_folders: Path) -> None:
    def test_ids(**options: Any) -> list[str]:
        return list(load_dataset(str(class_folders), **options)["test"]["image_id"])

    assert test_ids() == test_ids()
    assert test_ids(seed=1) != test_ids(seed=2)
    assert sizes(load_dataset(str(class_folders), test_fraction=0.5, validation_fraction=0.4)) == {"train": 6, "validation": 4, "test": 10}


def test_official_splits_are_kept(hub_folder: Callable[..., str]) -> None:
    notices: list[str] = []
    data = load_dataset(hub_folder(), notices=notices)
    assert sizes(data) == {"train": 10, "validation": 2, "test": 6}
    assert list(data["test"]["image_id"]) == ["0", "1", "2", "3", "4", "5"]
    assert len({*data["train"]["image_id"], *data["validation"]["image_id"]}) == 12
    assert notices == ["The dataset 'flat' has no validation split: 2 images for validation were cut from train, stratified, seed 42."]


def test_rare_classes_do_not_crash(class_folders: Path, photo: Photo) -> None:
    photo(class_folders / "ape" / "0.jpg")
    notices: list[str] = []
    data = load_dataset(str(class_folders), notices=notices)
    assert [0 in split["label"] for split in data.values()] == [True, False, False]
    assert notices[1:] == [
        "1 class with too few images to be cut from train is not in test: ape.",
        "1 class with too few images to be cut from train is not in validation: ape.",
    ]


def test_another_label_column(hub_folder: Callable[..., str]) -> None:
    data = load_dataset(hub_folder(colour=["white", "black", "tabby"] * 4), label_column="colour")
    assert data["train"].column_names == ["image", "label", "image_id", "label_original"]
    assert data["train"].features["label"].names == ["black", "tabby", "white"]
    assert data["train"].features["label_original"].names == ["cat", "dog"]
    assert list(data["test"]["label"]) == [2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("values", "names"), [([7, -3] * 6, ["-3", "7"]), ([True, False] * 6, ["False", "True"]), ([0, 1] * 6, ["0", "1"])]
)
def test_integers_and_booleans_become_classes(hub_folder: Callable[..., str], values: list[Any], names: list[str]) -> None:
    data = load_dataset(hub_folder(kind=values), label_column="kind")
    assert data["train"].features["label"] == datasets.ClassLabel(names=names)
    assert list(data["test"]["label"]) == [names.index(str(value)) for value in values[:6]]


def test_another_image_column(hub_folder: Callable[..., str], tmp_path: Path, photo: Photo) -> None:
    crops = [str(photo(tmp_path / "crops" / f"{row}.png", (9, 11))) for row in range(12)]
    data = load_dataset(hub_folder(crop=crops), image_column="crop")
    assert data["train"].column_names == ["image", "label", "image_id", "image_original"]
    assert data["train"][0]["image"].size == (9, 11)
    assert data["train"][0]["image_original"].size == (24, 16)


def test_own_image_ids_become_strings(hub_folder: Callable[..., str]) -> None:
    data = load_dataset(hub_folder(image_id=list(range(100, 112))))
    assert data["test"].features["image_id"] == datasets.Value("string")
    assert list(data["test"]["image_id"]) == ["100", "101", "102", "103", "104", "105"]


def test_image_ids_that_are_not_unique_are_replaced(hub_folder: Callable[..., str]) -> None:
    notices: list[str] = []
    data = load_dataset(hub_folder(image_id=["same"] * 12), notices=notices)
    assert list(data["test"]["image_id"]) == ["0", "1", "2", "3", "4", "5"]
    assert list(data["test"]["image_id_original"]) == ["same"] * 6
    assert notices[0] == "The image_id of 'flat' is not unique in every split; the number of the row replaces it."


def test_subsets_are_stratified(hub_folder: Callable[..., str]) -> None:
    data = load_dataset(hub_folder(), max_train_samples=4, max_eval_samples=2)
    assert sizes(data) == {"train": 4, "validation": 2, "test": 2}
    assert all(np.bincount(split["label"]).tolist() in ([2, 2], [1, 1]) for split in data.values())


def test_damaged_images_are_an_error_or_left_out(class_folders: Path, photo: Photo) -> None:
    whole = (class_folders / "cat" / "3.jpg").read_bytes()
    (class_folders / "cat" / "3.jpg").write_bytes(whole[:300])
    (class_folders / "dog" / "4.jpg").write_text("this is no photo")
    with pytest.raises(DataError) as error:
        load_dataset(str(class_folders))
    assert str(error.value) == (
        "2 of 20 images cannot be used: cat/3.jpg in validation (truncated), dog/4.jpg in test (not an image). Mend or remove them, or add "
        "--skip_bad_images, which leaves them out."
    )
    notices: list[str] = []
    data = load_dataset(str(class_folders), skip_bad_images=True, notices=notices)
    assert sum(sizes(data).values()) == 18
    assert notices[-1] == (
        "2 of 20 images left out because they are damaged (validation: 1, test: 1): cat/3.jpg in validation (truncated), dog/4.jpg in test "
        "(not an image)."
    )


def test_a_class_whose_training_images_are_all_damaged(tmp_path: Path, photo: Photo) -> None:
    for split in ("train", "validation", "test"):
        for name in ("ape", "cat", "dog"):
            photo(tmp_path / split / name / "0.jpg")
    (tmp_path / "train" / "dog" / "0.jpg").write_text("this is no photo")
    with pytest.raises(DataError) as error:
        load_dataset(str(tmp_path), skip_bad_images=True)
    assert str(error.value) == f"The validation split of '{tmp_path.name}' holds a class that train lacks: 'dog' (1 image). {LACKING}"


LACKING = "Add images of every class to train, or remove the class from the other splits."


@pytest.mark.parametrize(
    ("others", "problem"),
    [
        (["ape", "cat"], "holds a class that train lacks: 'ape' (2 images). "),
        (["ape", "cat", "eel"], "holds classes that train lacks: 'ape' (2 images), 'eel' (2 images). "),
    ],
)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_class_that_train_lacks(split: str, others: list[str], problem: str, class_folders: Path, photo: Photo) -> None:
    root = class_folders.parent / "split"
    root.mkdir()
    class_folders.rename(root / "train")
    for number in range(2):
        for name in others:
            photo(root / split / name / f"{number}.jpg")
    with pytest.raises(DataError) as error:
        load_dataset(str(root))
    assert str(error.value) == f"The {split} split of 'split' {problem}{LACKING}"


COLUMNS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "label_absent": (
        {"label_column": "lable"},
        {},
        "The dataset 'flat' has no column 'lable' (--label_column); its columns are image, label. Did you mean 'label'?",
    ),
    "image_absent": (
        {"image_column": "picture"},
        {},
        "The dataset 'flat' has no column 'picture' (--image_column); its columns are image, label.",
    ),
    "label_of_floats": (
        {"label_column": "score"},
        {"score": [0.5] * 12},
        "The column 'score' of 'flat' holds float64, not labels: a label is a ClassLabel, an integer or a string. "
        "Columns that can be --label_column: label.",
    ),
    "label_of_images": (
        {"label_column": "image"},
        {},
        "The column 'image' of 'flat' holds Image, not labels: a label is a ClassLabel, an integer or a string. "
        "Columns that can be --label_column: label.",
    ),
    "image_of_integers": (
        {"image_column": "label"},
        {},
        "The column 'label' of 'flat' holds ClassLabel, not images: an image is an Image, or a path or the bytes of one. "
        "Columns that can be --image_column: image.",
    ),
    "label_missing": (
        {"label_column": "kind"},
        {"kind": ["a", "b", None, "a", None, "b"] * 2},
        "4 labels in the train split of 'flat' are missing, the first one in row 2.",
    ),
    "one_class": (
        {"label_column": "kind"},
        {"kind": ["a"] * 12},
        "The train split of 'flat' has one class, 'a'; a classifier needs at least two.",
    ),
    "too_few_samples": (
        {"max_train_samples": 1},
        {},
        "--max_train_samples 1 is below the 2 classes; at least one image of each is needed.",
    ),
    "no_eval_samples": ({"max_eval_samples": 0}, {}, "--max_eval_samples 0 is below 1."),
    "fraction": (
        {"validation_fraction": 1.5},
        {},
        "A split of fraction 1.5 cannot be cut; the fraction lies strictly between 0 and 1.",
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_and_numbers_that_cannot_be_used(name: str, hub_folder: Callable[..., str]) -> None:
    options, columns, message = COLUMNS[name]
    with pytest.raises(DataError) as error:
        load_dataset(hub_folder(**columns), **options)
    assert str(error.value) == message


@pytest.mark.parametrize("value", [5, -1])
def test_a_class_label_out_of_range(hub_folder: Callable[..., str], value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_folder()
    table = datasets.Dataset.from_parquet(f"{folder}/data/train-00000-of-00001.parquet")
    labels = [0, 1, 0, 1, value, value, *[0, 1] * 3]
    feature = table.features["label"]
    broken = table.remove_columns("label").add_column("label", labels).cast_column("label", datasets.Value("int64"))
    broken = datasets.Dataset(broken.data.cast(datasets.Features({**broken.features, "label": feature}).arrow_schema))
    splits = {"train": broken, "test": datasets.Dataset.from_parquet(f"{folder}/data/test-00000-of-00001.parquet")}
    monkeypatch.setattr(catalog, "_open", lambda name, notices: splits)
    with pytest.raises(DataError) as error:
        load_dataset("flat")
    assert str(error.value) == (
        f"The column 'label' of 'flat' has 2 classes, 0 to 1, but 2 labels of its train split are outside: the first is {value} in row 4."
    )


def test_splits_of_other_names(monkeypatch: pytest.MonkeyPatch, hub_folder: Callable[..., str]) -> None:
    train = datasets.Dataset.from_parquet(f"{hub_folder()}/data/train-00000-of-00001.parquet")
    monkeypatch.setattr(catalog, "_open", lambda name, notices: splits)
    notices: list[str] = []
    splits = {"trainval": train, "dev": train, "testing": train, "unlabelled": train}
    assert sizes(load_dataset("x", notices=notices)) == {"train": 12, "validation": 12, "test": 12}
    assert notices == ["Splits of 'x' left out, because they are not train, validation or test: unlabelled."]
    splits = {"val": train, "test": train}
    with pytest.raises(DataError, match=r"^The dataset 'x' has no train split; its splits are val, test\.$"):
        load_dataset("x")
    splits = {"train": train, "val": train, "validation": train}
    with pytest.raises(DataError, match=r"^The dataset 'x' has two validation splits among train, val, validation; keep one\.$"):
        load_dataset("x")
    splits = {"all": train}
    assert sizes(load_dataset("x")) == {"train": 8, "validation": 2, "test": 2}


def test_a_data_set_saved_to_disk(tmp_path: Path, class_folders: Path) -> None:
    load_dataset(str(class_folders)).save_to_disk(str(tmp_path / "saved"))
    assert sizes(load_dataset(str(tmp_path / "saved"))) == {"train": 13, "validation": 3, "test": 4}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("{}", "'splits'"),
        ("[]", "list indices must be integers or slices, not str"),
    ],
)
def test_a_saved_data_set_that_is_broken(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(DataError) as error:
        load_dataset(str(tmp_path))
    assert str(error.value) == f"The data set that was saved in '{tmp_path}' cannot be read ({reason}); save it anew with save_to_disk."


NAMES = {
    "../data/missing": f"The path '../data/missing' does not exist; --dataset takes {ALLOWED}.",
    "/data/missing": f"The path '/data/missing' does not exist; --dataset takes {ALLOWED}.",
    "data/of/mine": f"The path 'data/of/mine' does not exist; --dataset takes {ALLOWED}.",
    "oxford_pet": (
        f"The dataset 'oxford_pet' is not known, and no folder of that name exists; --dataset takes {ALLOWED}. Did you mean 'oxford_pets'?"
    ),
    "zebra": f"The dataset 'zebra' is not known, and no folder of that name exists; --dataset takes {ALLOWED}.",
    "": f"The dataset '' is not known, and no folder of that name exists; --dataset takes {ALLOWED}.",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_nothing(name: str) -> None:
    with pytest.raises(DataError) as error:
        load_dataset(name)
    assert str(error.value) == NAMES[name]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_text("")
    with pytest.raises(DataError) as error:
        load_dataset(str(tmp_path / "pets.zip"))
    assert str(error.value) == f"The path '{tmp_path}/pets.zip' is a file; --dataset takes a folder. Unpack it first."


@pytest.mark.parametrize(
    ("name", "hub_id", "hint"),
    [
        ("oxford_pets", "timm/oxford-iiit-pet", ""),
        ("flowers102", "dpdl-benchmark/oxford_flowers102", ""),
        ("org/missing", "org/missing", " There is no folder 'org/missing' either."),
    ],
)
def test_hub_data_sets_without_the_hub(name: str, hub_id: str, hint: str) -> None:
    with pytest.raises(HubError) as error:
        load_dataset(name)
    assert str(error.value) == (
        f"HF_HUB_OFFLINE is set and the dataset '{hub_id}' is not in the local cache; use --preset demo (drawn pets and a tiny checkpoint, "
        f"no network), --dataset PATH or --model PATH.{hint}"
    )


def test_hub_data_sets_go_through_the_hubs_loader(monkeypatch: pytest.MonkeyPatch, class_folders: Path) -> None:
    asked = []
    splits = load_dataset(str(class_folders))
    monkeypatch.setattr(catalog, "require_hub", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id: asked.append(hub_id) or splits)
    assert sizes(load_dataset("oxford_pets")) == {"train": 13, "validation": 3, "test": 4}
    assert asked == [("timm/oxford-iiit-pet", "dataset", ""), "timm/oxford-iiit-pet"]


def test_a_failure_of_the_hubs_loader_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(hub_id: str) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")

    monkeypatch.setattr(catalog, "require_hub", lambda *arguments: None)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(HubError) as error:
        load_dataset("org/name")
    assert str(error.value) == "The dataset 'org/name' cannot be loaded from the Hub: Config name is missing."


@pytest.mark.parametrize(("name", "module"), [("drawn_pets", "drawn"), ("drawn_flowers", "drawn"), ("digits", "digits")])
def test_data_sets_made_on_the_spot(name: str, module: str, monkeypatch: pytest.MonkeyPatch, class_folders: Path) -> None:
    splits = load_dataset(str(class_folders))
    stub = types.ModuleType(f"hf_finetune.data.{module}")
    stub.__dict__[name] = lambda: splits
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    assert sizes(load_dataset(name)) == {"train": 13, "validation": 3, "test": 4}


def test_origin(class_folders: Path) -> None:
    assert dataset_origin("oxford_pets") == DatasetOrigin("oxford_pets", "timm/oxford-iiit-pet", "cc-by-sa-4.0")
    assert dataset_origin("timm/oxford-iiit-pet") == DatasetOrigin("timm/oxford-iiit-pet", "timm/oxford-iiit-pet", "cc-by-sa-4.0")
    assert dataset_origin("org/other") == DatasetOrigin("org/other", "org/other", None)
    assert dataset_origin("drawn_pets") == DatasetOrigin("drawn_pets", None, "apache-2.0")
    assert dataset_origin(str(class_folders)) == DatasetOrigin("pets", None, None)
