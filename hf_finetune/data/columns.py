"""The columns of any data set → `image`, `label` and `image_id`, with everything else kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hf_finetune.data.notices import note
from hf_finetune.errors import DataError, did_you_mean, listed

logger = logging.getLogger(__name__)

Splits = dict[str, datasets.Dataset]


def set_columns(
    splits: Mapping[str, datasets.Dataset], name: str, *, label_column: str, image_column: str, notices: list[str] | None = None
) -> Splits:
    """Bring the columns of a data set into the form that the rest of the toolkit reads.

    Args:
        splits: Split → rows, all with the same columns.
        name: Of the data set, for messages.
        label_column: A `ClassLabel`, matched by name where the splits list its names differently; or a column of integers, strings or
            booleans, whose distinct values over all splits become the classes, sorted. Of one of these kinds in all splits.
        image_column: A `datasets.Image`, or a column of paths, of encoded images, or of `{"bytes", "path"}`.
        notices: Receives a sentence where the data set's own `image_id` cannot be used, and one where class names differ between splits.

    Returns:
        The same rows with `image` (`datasets.Image`), `label` (`ClassLabel`), `image_id` (string, unique within a split: the data set's own
        or the row's number), then the other columns. A column whose name is taken by another one is kept as `NAME_original`.

    Raises:
        DataError: If a column is absent or cannot serve, if a label is missing or out of range, or if labels are of several kinds.
    """
    _require_column(splits, name, label_column, "label_column", _can_be_label)
    _require_column(splits, name, image_column, "image_column", _can_be_image)
    result = {key: _renamed(_renamed(split, label_column, "label"), image_column, "image") for key, split in splits.items()}
    result = {key: split.cast_column("image", datasets.Image()) for key, split in result.items()}
    result = _encode_labels(result, name, label_column, notices)
    result = _identify(result, name, notices)
    return {key: _ordered(split) for key, split in result.items()}


def _require_column(splits: Mapping[str, datasets.Dataset], name: str, column: str, flag: str, usable: Any) -> None:
    for key, split in splits.items():
        features = split.features
        if column not in features:
            where = (
                f"The dataset '{name}'"
                if len({tuple(other.column_names) for other in splits.values()}) == 1
                else f"The {key} split of '{name}'"
            )
            raise DataError(
                f"{where} has no column '{column}' (--{flag}); its columns are {listed(features)}.{did_you_mean(column, features)}"
            )
        if not usable(features[column]):
            others = [other for other, feature in features.items() if usable(feature)]
            role, kinds = (
                ("labels", "a label is a ClassLabel, an integer or a string")
                if flag == "label_column"
                else ("images", "an image is an Image, or a path or the bytes of one")
            )
            raise DataError(
                f"The column '{column}' of '{name}' holds {_kind(features[column])}, not {role}: {kinds}. "
                f"Columns that can be --{flag}: {listed(others) or 'none'}."
            )


def _kind(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _can_be_label(feature: Any) -> bool:
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("string", "large_string", "bool") or feature.dtype.startswith(("int", "uint"))
    return isinstance(feature, datasets.ClassLabel)


def _can_be_image(feature: Any) -> bool:
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _renamed(split: datasets.Dataset, column: str, target: str) -> datasets.Dataset:
    if column == target:
        return split
    if target in split.column_names:
        split = split.rename_column(target, _free_name(split, target))
    return split.rename_column(column, target)


def _free_name(split: datasets.Dataset, column: str) -> str:
    name = f"{column}_original"
    while name in split.column_names:
        name += "_"
    return name


def _column(split: datasets.Dataset, name: str) -> pa.Array:
    column = split.select_columns([name]).with_format("arrow")[:][name]
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _encode_labels(splits: Splits, name: str, label_column: str, notices: list[str] | None) -> Splits:
    """Make `label` one `ClassLabel` for all splits, whose values are all within range."""
    _require_one_kind(splits, name, label_column)
    columns = {key: _column(split, "label") for key, split in splits.items()}
    for key, column in columns.items():
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise DataError(f"{column.null_count} labels in the {key} split of '{name}' are missing, the first one in row {row}.")
    if all(isinstance(split.features["label"], datasets.ClassLabel) for split in splits.values()):
        for key, column in columns.items():
            _require_range(splits[key].features["label"].names, column.to_numpy(zero_copy_only=False), key, name, label_column)
        return _match_names(splits, columns, name, notices)
    values = {key: np.asarray(column.to_pylist()) for key, column in columns.items()}
    classes = np.unique(np.concatenate(list(values.values())))
    feature = datasets.ClassLabel(names=[str(value) for value in classes.tolist()])
    return {key: _relabelled(split, np.searchsorted(classes, values[key]), feature) for key, split in splits.items()}


def _relabelled(split: datasets.Dataset, labels: np.ndarray, feature: datasets.ClassLabel) -> datasets.Dataset:
    return split.remove_columns("label").add_column("label", labels, feature=feature)


def _require_one_kind(splits: Splits, name: str, label_column: str) -> None:
    """Refuse labels whose integers or texts mean different things in different splits, such as a `ClassLabel` beside plain integers."""
    (first, wanted), *others = [(key, split.features["label"]) for key, split in splits.items()]
    for key, feature in others:
        if _family(feature) != _family(wanted):
            raise DataError(
                f"The column '{label_column}' of '{name}' holds {_kind(wanted)} in {first} but {_kind(feature)} in {key}; labels must be "
                "of one kind in every split."
            )


def _family(feature: Any) -> str:
    return "int" if "int" in (kind := _kind(feature)) else kind.removeprefix("large_")


def _match_names(splits: Splits, columns: dict[str, pa.Array], name: str, notices: list[str] | None) -> Splits:
    """Give every split the class names of the first one, in its order; names that only labels of another split use follow."""
    names_of = {key: split.features["label"].names for key, split in splits.items()}
    names = list(next(iter(names_of.values())))
    if all(own == names for own in names_of.values()):
        return splits
    labels = {key: column.to_numpy(zero_copy_only=False) for key, column in columns.items()}
    for key, own in names_of.items():
        names += [own[label] for label in np.unique(labels[key]) if own[label] not in names]
    note(logger, notices, f"The splits of '{name}' list their class names differently; labels are matched by name.")
    position = {class_name: index for index, class_name in enumerate(names)}
    matched = {key: np.asarray([position[own[label]] for label in labels[key]], dtype=np.int64) for key, own in names_of.items()}
    return {key: _relabelled(split, matched[key], datasets.ClassLabel(names=names)) for key, split in splits.items()}


def _require_range(names: list[str], labels: np.ndarray, split: str, name: str, label_column: str) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise DataError(
            f"The column '{label_column}' of '{name}' has {len(names)} classes, 0 to {len(names) - 1}, but {len(wrong)} labels of its "
            f"{split} split are outside: the first is {labels[wrong[0]]} in row {wrong[0]}."
        )


def _identify(splits: Splits, name: str, notices: list[str] | None) -> Splits:
    """Make `image_id` a string that is unique within its split."""
    if any("image_id" not in split.column_names for split in splits.values()):
        return {key: _numbered(split) for key, split in splits.items()}
    identities = {key: _column(split, "image_id") for key, split in splits.items()}
    if not all(_identifies(column) for column in identities.values()):
        note(logger, notices, f"The image_id of '{name}' is not unique in every split; the number of the row replaces it.")
        return {key: _numbered(split) for key, split in splits.items()}
    strings = {key: [str(value) for value in column.to_pylist()] for key, column in identities.items()}
    return {
        key: split
        if split.features["image_id"] == datasets.Value("string")
        else split.remove_columns("image_id").add_column("image_id", strings[key], feature=datasets.Value("string"))
        for key, split in splits.items()
    }


def _identifies(column: pa.Array) -> bool:
    plain = pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return plain and column.null_count == 0 and len(column.unique()) == len(column)


def _numbered(split: datasets.Dataset) -> datasets.Dataset:
    if "image_id" in split.column_names:
        split = split.rename_column("image_id", _free_name(split, "image_id"))
    return split.add_column("image_id", [str(row) for row in range(len(split))], feature=datasets.Value("string"))


def _ordered(split: datasets.Dataset) -> datasets.Dataset:
    first = ["image", "label", "image_id"]
    return split.select_columns(first + [column for column in split.column_names if column not in first])
