"""Labels that the splits of a data set write in different ways."""

import io
from typing import Any

import datasets
import pytest
from PIL import Image

from hf_finetune.data.columns import set_columns
from hf_finetune.data.splits import require_classes
from hf_finetune.errors import DataError

BUFFER = io.BytesIO()
Image.new("RGB", (9, 9)).save(BUFFER, "PNG")
NOTICE = "The splits of 'pets' list their class names differently; labels are matched by name."


def split(labels: list[Any], feature: Any) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    return datasets.Dataset.from_dict({"image": [BUFFER.getvalue()] * len(labels), "label": labels}, features=features)


def named(labels: list[int], *names: str) -> datasets.Dataset:
    return split(labels, datasets.ClassLabel(names=list(names)))


def columns(notices: list[str], **splits: datasets.Dataset) -> dict[str, datasets.Dataset]:
    return set_columns(splits, "pets", label_column="label", image_column="image", notices=notices)


@pytest.mark.parametrize(
    ("names", "labels"), [(["dog", "cat"], [0, 1, 0]), (["ape", "dog", "cat"], [1, 2, 1]), (["dog", "cat", "ape"], [0, 1, 0])]
)
def test_class_names_in_another_order_are_matched_by_name(names: list[str], labels: list[int]) -> None:
    notices: list[str] = []
    result = columns(notices, train=named([0, 1], "cat", "dog"), test=named(labels, *names))
    assert [part.features["label"].names for part in result.values()] == [["cat", "dog"]] * 2
    assert [list(part["label"]) for part in result.values()] == [[0, 1], [1, 0, 1]]
    assert notices == [NOTICE]


def test_equal_class_names_are_left_as_they_are() -> None:
    notices: list[str] = []
    result = columns(notices, train=named([1, 0], "dog", "cat"), test=named([1], "dog", "cat"))
    assert [part.features["label"].names for part in result.values()] == [["dog", "cat"]] * 2
    assert [list(part["label"]) for part in result.values()] == [[1, 0], [1]]
    assert notices == []


def test_an_image_of_a_class_that_train_does_not_list() -> None:
    result = columns([], train=named([0, 1], "cat", "dog"), test=named([0, 1, 2, 2], "ape", "eel", "cat"))
    assert result["test"].features["label"].names == ["cat", "dog", "ape", "eel"]
    with pytest.raises(DataError) as error:
        require_classes(result, "pets")
    assert str(error.value) == (
        "The test split of 'pets' holds classes that train lacks: 'ape' (1 image), 'eel' (1 image). Add images of every class to train, or "
        "remove the class from the other splits."
    )


INTEGERS, TEXT = datasets.Value("int64"), datasets.Value("string")
MIXED = {
    "names_and_integers": (named([0, 1], "cat", "dog"), split([0, 1], INTEGERS), "ClassLabel in train but int64 in test"),
    "names_and_texts": (named([0, 1], "cat", "dog"), split(["cat", "dog"], TEXT), "ClassLabel in train but string in test"),
    "integers_and_names": (split([0, 1], INTEGERS), named([0, 1], "cat", "dog"), "int64 in train but ClassLabel in test"),
    "integers_and_texts": (split([0, 1], INTEGERS), split(["0", "1"], TEXT), "int64 in train but string in test"),
    "integers_and_truth": (split([0, 1], INTEGERS), split([True], datasets.Value("bool")), "int64 in train but bool in test"),
}


@pytest.mark.parametrize("name", MIXED)
def test_labels_of_several_kinds(name: str) -> None:
    train, test, found = MIXED[name]
    with pytest.raises(DataError) as error:
        columns([], train=train, test=test)
    assert str(error.value) == f"The column 'label' of 'pets' holds {found}; labels must be of one kind in every split."


@pytest.mark.parametrize(("first", "second"), [("int64", "uint8"), ("string", "large_string")])
def test_widths_of_one_kind_may_differ(first: str, second: str) -> None:
    values = [7, 3] if first == "int64" else ["7", "3"]
    result = columns([], train=split(values, datasets.Value(first)), test=split(values[:1], datasets.Value(second)))
    assert [part.features["label"].names for part in result.values()] == [["3", "7"]] * 2
    assert [list(part["label"]) for part in result.values()] == [[1, 0], [1]]
