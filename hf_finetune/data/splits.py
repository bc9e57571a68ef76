"""The three splits: their names, those that are cut where a data set lacks them, and what they must hold."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import datasets
import numpy as np

from hf_finetune.data.notices import counted, note
from hf_finetune.data.subsets import labels_of, stratified_split, stratified_subset
from hf_finetune.errors import DataError, listed

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "validation", "test")
_ALIASES = {"training": "train", "trainval": "train", "valid": "validation", "val": "validation", "dev": "validation", "testing": "test"}


def split_name(name: str) -> str | None:
    """Return `train`, `validation` or `test` for any usual name of one, and None for another name."""
    name = name.lower()
    return name if name in SPLIT_NAMES else _ALIASES.get(name)


def name_splits(splits: Mapping[str, datasets.Dataset], name: str, notices: list[str] | None = None) -> dict[str, datasets.Dataset]:
    """Give the splits of a data set their three names.

    Args:
        splits: Split → rows, with names as the data set has them.
        name: Of the data set, for messages.
        notices: Receives a sentence about splits left out because their name says nothing.

    Returns:
        `train`, and `validation` and `test` where the data set has them; a data set of one split is `train`, whatever its name.

    Raises:
        DataError: If there is no train split among several, or two names of the same split.
    """
    if len(splits) == 1:
        return {"train": next(iter(splits.values()))}
    named: dict[str, datasets.Dataset] = {}
    for key, split in splits.items():
        target = split_name(key)
        if target in named:
            raise DataError(f"The dataset '{name}' has two {target} splits among {listed(splits)}; keep one.")
        if target:
            named[target] = split
    left_out = [key for key in splits if split_name(key) is None]
    if "train" not in named:
        raise DataError(f"The dataset '{name}' has no train split; its splits are {listed(splits)}.")
    if left_out:
        note(logger, notices, f"Splits of '{name}' left out, because they are not train, validation or test: {listed(left_out)}.")
    return {key: named[key] for key in SPLIT_NAMES if key in named}


def cut_missing_splits(
    splits: Mapping[str, datasets.Dataset],
    name: str,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    notices: list[str] | None = None,
) -> dict[str, datasets.Dataset]:
    """Cut the test split, then the validation split, from train where the data set lacks them, stratified and seeded.

    Args:
        splits: At least `train`, with `label`.
        name: Of the data set, for messages.
        validation_fraction: Share of train, after the test split was cut, strictly between 0 and 1.
        test_fraction: Share of train, strictly between 0 and 1.
        seed: At least 0.
        notices: Receives a sentence about what was cut, and one about classes too rare to be in every split.

    Returns:
        `train`, `validation` and `test`.

    Raises:
        DataError: If nothing can be cut.
    """
    splits = dict(splits)
    cut = []
    for key, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if key not in splits:
            splits["train"], splits[key] = stratified_split(splits["train"], fraction, seed)
            cut.append(key)
    if cut:
        sizes = " and ".join(f"{len(splits[key])} images for {key}" for key in cut)
        lacking = " and ".join(f"no {key} split" for key in cut)
        note(logger, notices, f"The dataset '{name}' has {lacking}: {sizes} were cut from train, stratified, seed {seed}.")
        _note_rare_classes(splits, cut, notices)
    return {key: splits[key] for key in SPLIT_NAMES}


def _note_rare_classes(splits: Mapping[str, datasets.Dataset], cut: list[str], notices: list[str] | None) -> None:
    names = splits["train"].features["label"].names
    in_train = set(labels_of(splits["train"]).tolist())
    for key in cut:
        rare = sorted(in_train - set(labels_of(splits[key]).tolist()))
        if rare:
            note(
                logger,
                notices,
                f"{counted(len(rare), 'class', 'classes')} with too few images to be cut from train {'is' if len(rare) == 1 else 'are'} "
                f"not in {key}: {listed(names[label] for label in rare)}.",
            )


def require_classes(splits: Mapping[str, datasets.Dataset], name: str) -> None:
    """Make sure that train holds at least two classes and every class that another split holds.

    Args:
        splits: With `label` as a `ClassLabel`.
        name: Of the data set, for the message.

    Raises:
        DataError: It names the classes that are missing, or the empty split.
    """
    for key, split in splits.items():
        if len(split) == 0:
            raise DataError(f"The {key} split of '{name}' holds no images.")
    names = splits["train"].features["label"].names
    in_train = set(labels_of(splits["train"]).tolist())
    if len(in_train) < 2:
        raise DataError(f"The train split of '{name}' has one class, '{names[in_train.pop()]}'; a classifier needs at least two.")
    for key, split in splits.items():
        labels, counts = np.unique(labels_of(split), return_counts=True)
        lacking = [
            f"'{names[label]}' ({counted(count, 'image')})" for label, count in zip(labels, counts, strict=True) if label not in in_train
        ]
        if lacking:
            raise DataError(
                f"The {key} split of '{name}' holds {'a class' if len(lacking) == 1 else 'classes'} that train lacks: {listed(lacking)}. "
                "Add images of every class to train, or remove the class from the other splits."
            )


def limit_splits(
    splits: Mapping[str, datasets.Dataset], *, max_train_samples: int | None, max_eval_samples: int | None, seed: int
) -> dict[str, datasets.Dataset]:
    """Draw stratified, seeded subsets.

    Args:
        splits: `train`, `validation` and `test`.
        max_train_samples: Images of train to keep; None keeps all.
        max_eval_samples: Images of validation, and of test, to keep; None keeps all.
        seed: At least 0.

    Returns:
        The three splits; a split that is small enough is unchanged.

    Raises:
        DataError: If train would not hold every class, or a number is below 1.
    """
    limits = {"train": max_train_samples, "validation": max_eval_samples, "test": max_eval_samples}
    classes = len(np.unique(labels_of(splits["train"])))
    if max_train_samples is not None and max_train_samples < classes:
        raise DataError(f"--max_train_samples {max_train_samples} is below the {classes} classes; at least one image of each is needed.")
    if max_eval_samples is not None and max_eval_samples < 1:
        raise DataError(f"--max_eval_samples {max_eval_samples} is below 1.")
    return {key: split if (limit := limits[key]) is None else stratified_subset(split, limit, seed) for key, split in splits.items()}
