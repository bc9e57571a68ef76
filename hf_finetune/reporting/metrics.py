"""Classification metrics: plain numpy functions, the `metrics.json` block made of them, and `evaluate.Metric` classes that need no network.

All classes share one signature, `predictions` = one row of class probabilities an image and `references` = class indices, because
`evaluate.combine` hands the same inputs to every metric:

    evaluate.combine([Accuracy(), MacroF1(), ExpectedCalibrationError()]).compute(predictions=probabilities, references=labels)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hf_finetune.errors import DataError, listed

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# A softmax in bfloat16 over 1000 classes still sums to 1 within this; logits practically never do.
_SUM_TOLERANCE = 0.02


class ClassScores(NamedTuple):
    """Scores of every class, four arrays of shape [C]; fractions in [0, 1], support in images."""

    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: IntArray


@dataclass(frozen=True)
class Reliability:
    """Predictions grouped by confidence, for B equal-width bins of (0, 1].

    Attributes:
        edges: Bin borders, shape [B + 1].
        count: Images in each bin, shape [B].
        confidence: Mean probability of the predicted class in each bin, shape [B]; 0 where the bin is empty.
        accuracy: Fraction of correct predictions in each bin, shape [B]; 0 where the bin is empty.
    """

    edges: FloatArray
    count: IntArray
    confidence: FloatArray
    accuracy: FloatArray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence| over images, in [0, 1]."""
        return float(np.sum(self.count * np.abs(self.accuracy - self.confidence)) / max(1, self.count.sum()))


def classification_metrics(probabilities: ArrayLike, labels: ArrayLike, label_names: Sequence[str]) -> dict[str, Any]:
    """Score predictions of one split.

    Probabilities are rounded to float32 first, the type in which `predictions.parquet` keeps them, so that both files agree.

    Args:
        probabilities: Shape [N, C], rows that sum to 1; array, list or tensor of any float type.
        labels: Shape [N], whole numbers in 0..C-1.
        label_names: The C class names, each once.

    Returns:
        `{"accuracy", "top5_accuracy", "macro_f1", "balanced_accuracy", "ece", "per_class"}`, Python floats in [0, 1] ready for JSON, with
        `per_class` as `{name: {"precision", "recall", "f1", "support"}}`, support in images. See `TopKAccuracy`, `MacroF1`,
        `BalancedAccuracy`, `class_scores` for what happens with few classes and with classes that do not occur.

    Raises:
        DataError: For an empty split, shapes or names that do not match, values that are no probabilities, labels outside the classes.
    """
    scores, truth = checked_predictions(probabilities, labels)
    _check_names(label_names, scores.shape[1])
    confusion = confusion_matrix(truth, scores.argmax(axis=1), scores.shape[1])
    return {
        "accuracy": float(np.trace(confusion) / len(truth)),
        "top5_accuracy": top_k_accuracy(scores, truth, k=5),
        "macro_f1": macro_f1(confusion),
        "balanced_accuracy": balanced_accuracy(confusion),
        "ece": reliability(scores, truth).error,
        "per_class": _per_class(confusion, label_names),
    }


def checked_predictions(probabilities: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Return probabilities [N, C] and labels [N] as numpy arrays, or say what is wrong with them.

    Args:
        probabilities: Shape [N, C]; array, list or tensor.
        labels: Shape [N]; array, list or tensor of whole numbers.

    Returns:
        Probabilities as float64 (rounded to float32) and labels as int64.

    Raises:
        DataError: As `classification_metrics`.
    """
    try:
        scores = _as_array(probabilities).astype(np.float32).astype(np.float64)
        truth = _as_array(labels)
    except (TypeError, ValueError) as error:
        raise DataError(f"The predictions are no table of numbers: {str(error).rstrip('.')}.") from None
    if scores.size == 0 or truth.size == 0:
        raise DataError("There is nothing to score: the split has no predictions.")
    if scores.ndim != 2:
        raise DataError(f"The probabilities have shape {scores.shape}; a table of shape [images, classes] is needed.")
    if truth.shape != (len(scores),):
        raise DataError(f"{len(scores)} rows of probabilities came with labels of shape {truth.shape}; one label a row is needed.")
    _check_probabilities(scores)
    _check_labels(truth, scores.shape[1])
    return scores, truth.astype(np.int64)


def confusion_matrix(labels: IntArray, predictions: IntArray, classes: int) -> IntArray:
    """Count images by true class (row) and predicted class (column); shape [C, C]."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def class_scores(confusion: IntArray) -> ClassScores:
    """Score every class of a confusion matrix [C, C] (rows are true classes).

    What is undefined counts as 0, as scikit-learn's `zero_division=0`: the precision of a class that is never predicted, the recall of
    a class that does not occur, and the F1 of either.
    """
    hits = np.diag(confusion).astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassScores(_ratio(hits, predicted), _ratio(hits, support), _ratio(2 * hits, support + predicted), support)


def macro_f1(confusion: IntArray) -> float:
    """Mean F1 over the classes that occur among labels or predictions, as scikit-learn's `f1_score(average="macro")`."""
    occurs = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    return float(class_scores(confusion).f1[occurs].mean())


def balanced_accuracy(confusion: IntArray) -> float:
    """Mean recall over the classes that occur among the labels, as scikit-learn's `balanced_accuracy_score`."""
    scores = class_scores(confusion)
    return float(scores.recall[scores.support > 0].mean())


def top_k_accuracy(probabilities: FloatArray, labels: IntArray, k: int = 5) -> float:
    """Fraction of images whose label is among the `min(k, C)` most probable classes; equal probabilities rank by class index."""
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((ranked == labels[:, None]).any(axis=1).mean())


def reliability(probabilities: FloatArray, labels: IntArray, bins: int = 15) -> Reliability:
    """Group predictions by the confidence of the predicted class into `bins` equal-width bins, each closed on the right.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, https://arxiv.org/abs/1706.04599.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = confidence_bin(confidence, bins)
    count = np.bincount(place, minlength=bins)
    mean_confidence = _ratio(np.bincount(place, weights=confidence, minlength=bins), count)
    return Reliability(edges, count, mean_confidence, _ratio(np.bincount(place, weights=correct, minlength=bins), count))


def confidence_bin(confidence: FloatArray, bins: int = 15) -> IntArray:
    """Index of the bin, 0..bins-1, of confidences in [0, 1], shape [N]; bin i is (i / bins, (i + 1) / bins]."""
    return np.digitize(confidence, np.linspace(0.0, 1.0, bins + 1)[1:-1], right=True)


class ProbabilityMetric(evaluate.Metric, ABC):
    """Base of the metrics below: takes probabilities and class indices, checks them, and hands arrays to `score`.

    Unlike in `evaluate`, a metric of one process keeps its inputs in memory unless told otherwise: files in the cache are locked, so that
    two metrics of one kind wait a second for each other.

    Args:
        **kwargs: As `evaluate.Metric`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"keep_in_memory": kwargs.get("num_process", 1) == 1} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="\npredictions: class probabilities, shape [N, C]; references: class indices, shape [N].",
            features=features,
        )

    def add_batch(self, *, predictions: ArrayLike | None = None, references: ArrayLike | None = None, **kwargs: Any) -> None:
        """Add probabilities [N, C] and class indices [N]; lists, numpy arrays, or tensors on any device and of any float type."""
        if predictions is None or references is None:
            raise DataError("A metric needs both predictions, the class probabilities, and references, the class indices.")
        super().add_batch(predictions=_as_array(predictions), references=_as_array(references), **kwargs)

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, Any]:
        return self.score(*checked_predictions(predictions, references))

    @abstractmethod
    def score(self, probabilities: FloatArray, labels: IntArray) -> dict[str, Any]:
        """Return the metric of checked probabilities [N, C] and labels [N] under its name."""


class Accuracy(ProbabilityMetric):
    """Fraction of images whose most probable class is the label: `{"accuracy"}` in [0, 1]."""

    def score(self, probabilities: FloatArray, labels: IntArray) -> dict[str, float]:
        return {"accuracy": top_k_accuracy(probabilities, labels, k=1)}


class TopKAccuracy(ProbabilityMetric):
    """Fraction of images whose label is among the k most probable classes: `{"top5_accuracy"}` in [0, 1] for k = 5.

    With C < k classes k becomes C, and the metric is 1 by definition; the name keeps the k that was asked for.

    Args:
        k: How many classes count, at least 1.
        **kwargs: As `evaluate.Metric`.
    """

    def __init__(self, k: int = 5, **kwargs: Any) -> None:
        if k < 1:
            raise DataError(f"k is {k}; top-k accuracy needs k of 1 or more.")
        self.k = k
        super().__init__(**kwargs)

    def score(self, probabilities: FloatArray, labels: IntArray) -> dict[str, float]:
        return {f"top{self.k}_accuracy": top_k_accuracy(probabilities, labels, self.k)}


class MacroF1(ProbabilityMetric):
    """Mean F1 over the classes that occur among labels or predictions: `{"macro_f1"}` in [0, 1]; 0 for a class never hit."""

    def score(self, probabilities: FloatArray, labels: IntArray) -> dict[str, float]:
        return {"macro_f1": macro_f1(_confusion(probabilities, labels))}


class BalancedAccuracy(ProbabilityMetric):
    """Mean recall over the classes that occur among the labels: `{"balanced_accuracy"}` in [0, 1]."""

    def score(self, probabilities: FloatArray, labels: IntArray) -> dict[str, float]:
        return {"balanced_accuracy": balanced_accuracy(_confusion(probabilities, labels))}


class PerClassPrecisionRecall(ProbabilityMetric):
    """Precision, recall, F1 and support of every class: `{"per_class": {name: {"precision", "recall", "f1", "support"}}}`.

    Undefined values count as 0 (see `class_scores`); a class that does not occur is listed with support 0.

    Args:
        label_names: The C class names; without them classes are called `"0"`, `"1"`, ...
        **kwargs: As `evaluate.Metric`.
    """

    def __init__(self, label_names: Sequence[str] | None = None, **kwargs: Any) -> None:
        self.label_names = label_names
        super().__init__(**kwargs)

    def score(self, probabilities: FloatArray, labels: IntArray) -> dict[str, Any]:
        classes = probabilities.shape[1]
        names = [str(index) for index in range(classes)] if self.label_names is None else self.label_names
        _check_names(names, classes)
        return {"per_class": _per_class(_confusion(probabilities, labels), names)}


class ExpectedCalibrationError(ProbabilityMetric):
    """Mean gap between confidence and accuracy over equal-width confidence bins: `{"ece"}` in [0, 1], smaller is better.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, https://arxiv.org/abs/1706.04599.

    Args:
        bins: Number of bins of (0, 1], at least 1.
        **kwargs: As `evaluate.Metric`.
    """

    def __init__(self, bins: int = 15, **kwargs: Any) -> None:
        if bins < 1:
            raise DataError(f"bins is {bins}; the calibration error needs 1 bin or more.")
        self.bins = bins
        super().__init__(**kwargs)

    def score(self, probabilities: FloatArray, labels: IntArray) -> dict[str, float]:
        return {"ece": reliability(probabilities, labels, self.bins).error}


def _confusion(probabilities: FloatArray, labels: IntArray) -> IntArray:
    return confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])


def _per_class(confusion: IntArray, names: Sequence[str]) -> dict[str, dict[str, float | int]]:
    rows = zip(names, *class_scores(confusion), strict=True)
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for name, precision, recall, f1, support in rows
    }


def _ratio(parts: NDArray[Any], wholes: NDArray[Any]) -> FloatArray:
    return np.divide(parts, wholes, out=np.zeros(len(parts)), where=wholes > 0)


def _as_array(values: Any) -> NDArray[Any]:
    # numpy knows neither bfloat16 nor tensors that sit on an accelerator or carry a graph
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _check_probabilities(scores: FloatArray) -> None:
    finite = np.isfinite(scores).all(axis=1)
    if not finite.all():
        raise DataError(f"Row {int(finite.argmin())} of the probabilities holds values that are not finite; the model has diverged.")
    sums = scores.sum(axis=1)
    good = (np.abs(sums - 1) <= _SUM_TOLERANCE) & (scores.min(axis=1) >= 0)
    if not good.all():
        row = int(good.argmin())
        raise DataError(
            f"Row {row} of the probabilities sums to {sums[row]:.3g} with a smallest value of {scores[row].min():.3g}; "
            "values from 0 to 1 that sum to 1 are needed. Give softmax outputs, not logits."
        )


def _check_labels(labels: NDArray[Any], classes: int) -> None:
    if labels.dtype.kind not in "iu":
        raise DataError(f"The labels are of type {labels.dtype}; whole numbers are needed.")
    good = (labels >= 0) & (labels < classes)
    if not good.all():
        row = int(good.argmin())
        raise DataError(f"Label {labels[row]} of row {row} is outside 0..{classes - 1}, the {classes} classes of the probabilities.")


def _check_names(names: Sequence[str], classes: int) -> None:
    if len(names) != classes:
        raise DataError(f"{len(names)} label names came with probabilities of {classes} classes; one name a class is needed.")
    twice = sorted({name for name in names if list(names).count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"Label names must differ, but these occur more than once: {listed(twice)}.")
