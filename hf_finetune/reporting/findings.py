"""What the predictions of a run say beyond one number: intervals of the headline figures, confused pairs, worst mistakes, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_finetune.reporting.finished_run import Predictions
from hf_finetune.reporting.intervals import Interval, bootstrap_interval, wilson_interval
from hf_finetune.reporting.metrics import (
    IntArray,
    Reliability,
    balanced_accuracy,
    confidence_bin,
    confusion_matrix,
    macro_f1,
    reliability,
)


@dataclass(frozen=True)
class ConfusedPair:
    """A true class that was taken for another one.

    Attributes:
        label: Index of the true class.
        taken_for: Index of the predicted class.
        count: How often.
        support: Images of the true class.
        mistaken: Row of the mistake with the highest confidence.
    """

    label: int
    taken_for: int
    count: int
    support: int
    mistaken: int


@dataclass(frozen=True)
class Findings:
    """All that a report derives from one split.

    Attributes:
        confusion: Shape [C, C], rows are true classes.
        reliability: Calibration by confidence bin.
        intervals: 95 % intervals of `accuracy`, `top5_accuracy`, `macro_f1`, `balanced_accuracy`, `ece`.
        pairs: Confused pairs, most frequent first.
        worst: Rows of wrong predictions, most confident first.
        examples: For each class that was recognised at least once, the row that it was recognised in with the highest probability.
        mean_confidence: Mean probability of the predicted class, in [0, 1].
    """

    confusion: IntArray
    reliability: Reliability
    intervals: dict[str, Interval]
    pairs: list[ConfusedPair]
    worst: list[int]
    examples: dict[int, int]
    mean_confidence: float


def find(predictions: Predictions, *, pairs: int = 8, worst: int = 12) -> Findings:
    """Analyse the predictions of one split.

    Args:
        predictions: The split.
        pairs: How many confused pairs to keep at most.
        worst: How many mistakes to keep at most.
    """
    confusion = confusion_matrix(predictions.labels, predictions.predicted, predictions.probabilities.shape[1])
    wrong = np.flatnonzero(predictions.labels != predictions.predicted)
    return Findings(
        confusion=confusion,
        reliability=reliability(predictions.probabilities, predictions.labels),
        intervals=headline_intervals(predictions),
        pairs=_confused_pairs(predictions, confusion, pairs),
        worst=[int(row) for row in _most_confident(predictions, wrong)[:worst]],
        examples=_examples(predictions),
        mean_confidence=float(predictions.confidence.mean()),
    )


def headline_intervals(predictions: Predictions, resamples: int = 1000) -> dict[str, Interval]:
    """Return 95 % intervals: Wilson for accuracy and top-5, a seeded bootstrap over images for the others."""
    labels, probabilities = predictions.labels, predictions.probabilities
    total, classes = probabilities.shape
    rank = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    cells = labels * classes + predictions.predicted
    confidence, correct = probabilities.max(axis=1), rank[:, 0] == labels

    def confusion(rows: IntArray) -> IntArray:
        return np.bincount(cells[rows], minlength=classes * classes).reshape(classes, classes)

    place = confidence_bin(confidence)
    gap = correct - confidence

    def calibration_error(rows: IntArray) -> float:
        # |mean accuracy - mean confidence| x count of a bin is the absolute sum of the gaps in it
        return float(np.abs(np.bincount(place[rows], weights=gap[rows])).sum() / total)

    return {
        "accuracy": wilson_interval(int((predictions.predicted == labels).sum()), total),
        "top5_accuracy": wilson_interval(int((rank == labels[:, None]).any(axis=1).sum()), total),
        "macro_f1": bootstrap_interval(lambda rows: macro_f1(confusion(rows)), total, resamples=resamples),
        "balanced_accuracy": bootstrap_interval(lambda rows: balanced_accuracy(confusion(rows)), total, resamples=resamples),
        "ece": bootstrap_interval(calibration_error, total, resamples=resamples),
    }


def _most_confident(predictions: Predictions, rows: IntArray) -> IntArray:
    # the stable sort keeps the order of the file among equals, so that the same run gives the same page
    return rows[np.argsort(-predictions.confidence[rows], kind="stable")]


def _confused_pairs(predictions: Predictions, confusion: IntArray, limit: int) -> list[ConfusedPair]:
    mistakes = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    support = confusion.sum(axis=1)
    cells = [(int(label), int(taken_for)) for label, taken_for in np.argwhere(mistakes)]
    cells.sort(key=lambda cell: (-mistakes[cell], support[cell[0]], cell))
    pairs = []
    for label, taken_for in cells[:limit]:
        rows = np.flatnonzero((predictions.labels == label) & (predictions.predicted == taken_for))
        mistaken = int(_most_confident(predictions, rows)[0])
        pairs.append(ConfusedPair(label, taken_for, int(mistakes[label, taken_for]), int(support[label]), mistaken))
    return pairs


def _examples(predictions: Predictions) -> dict[int, int]:
    right = np.flatnonzero(predictions.labels == predictions.predicted)
    ordered = _most_confident(predictions, right)
    classes, first = np.unique(predictions.labels[ordered], return_index=True)
    return {int(index): int(ordered[row]) for index, row in zip(classes, first, strict=True)}
