"""Stratified, seeded selections of rows: a split cut from another one, and a subset of a given size.

Both work on the integer column `label`, keep rows in their order, and depend on nothing but the labels and the seed, so that two runs,
two machines and two processes select the same rows.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from hf_finetune.errors import DataError


def labels_of(dataset: Dataset) -> np.ndarray:
    """Return the column `label` as int64 of shape `[rows]`, without decoding an image; a missing label is -1."""
    column = dataset.select_columns(["label"]).with_format("arrow")[:]["label"]
    return column.combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def stratified_split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Cut a part out of `dataset` in which every class has the same share, as nearly as whole rows allow.

    A class keeps at least one row in the rest, so that training never loses a class; a class of one row is therefore not in the part.

    Args:
        dataset: Rows with an integer column `label`.
        fraction: Share of the rows that goes into the part, strictly between 0 and 1.
        seed: Seed of the draw, at least 0.

    Returns:
        `(rest, part)`, each in the order of `dataset`.

    Raises:
        DataError: If `fraction` is outside (0, 1), or if no class has a row to spare.
    """
    if not 0 < fraction < 1:
        raise DataError(f"A split of fraction {fraction} cannot be cut; the fraction lies strictly between 0 and 1.")
    labels = labels_of(dataset)
    counts = _class_counts(labels)
    spare = np.maximum(counts - 1, 0)
    wanted = max(1, round(fraction * len(labels)))
    if spare.sum() == 0:
        raise DataError(f"No split can be cut: none of the {np.count_nonzero(counts)} classes has more than one image.")
    quotas = _allot(counts, min(wanted, int(spare.sum())), at_most=spare)
    chosen = _draw(labels, quotas, seed)
    rest = np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True)
    return dataset.select(rest), dataset.select(chosen)


def stratified_subset(dataset: Dataset, n: int, seed: int) -> Dataset:
    """Return `n` rows in which every class has the same share as in `dataset`.

    A class keeps at least one row wherever `n` is at least the number of classes that occur.

    Args:
        dataset: Rows with an integer column `label`.
        n: Rows to keep, at least 1; where it is not below `len(dataset)`, all rows are kept.
        seed: Seed of the draw, at least 0.

    Returns:
        The rows, in the order of `dataset`.

    Raises:
        DataError: If `n` is below 1.
    """
    if n < 1:
        raise DataError(f"A subset of {n} images cannot be drawn; at least 1 is needed.")
    if n >= len(dataset):
        return dataset
    labels = labels_of(dataset)
    counts = _class_counts(labels)
    present = (counts > 0).astype(np.int64)
    at_least = present if n >= present.sum() else np.zeros_like(present)
    quotas = _allot(counts, n, at_most=counts, at_least=at_least)
    return dataset.select(_draw(labels, quotas, seed))


def _class_counts(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels, minlength=1)


def _allot(counts: np.ndarray, total: int, *, at_most: np.ndarray, at_least: np.ndarray | None = None) -> np.ndarray:
    """Share `total` rows out over classes in proportion to `counts`, within per-class bounds (largest remainders)."""
    ideal = counts * (total / counts.sum())
    quotas = np.minimum(np.floor(ideal).astype(np.int64), at_most)
    if at_least is not None:
        quotas = np.maximum(quotas, at_least)
    # one row at a time, where a class is furthest below its share (or above it, when the lower bounds took too much); first class of equals
    while quotas.sum() < total:
        quotas[np.argmax(np.where(quotas < at_most, ideal - quotas, -np.inf))] += 1
    while quotas.sum() > total:
        floor = np.zeros_like(quotas) if at_least is None else at_least
        quotas[np.argmax(np.where(quotas > floor, quotas - ideal, -np.inf))] -= 1
    return quotas


def _draw(labels: np.ndarray, quotas: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(labels == label))[:quota] for label, quota in enumerate(quotas)]
    return np.sort(np.concatenate(chosen))
