"""Metrics against scikit-learn and by hand, as functions and as `evaluate` metrics; intervals."""

import json

import evaluate
import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from hf_finetune.errors import DataError
from hf_finetune.reporting.intervals import bootstrap_interval, wilson_interval
from hf_finetune.reporting.metrics import (
    Accuracy,
    BalancedAccuracy,
    ExpectedCalibrationError,
    MacroF1,
    PerClassPrecisionRecall,
    TopKAccuracy,
    classification_metrics,
    reliability,
)

EVERY_METRIC = (Accuracy, TopKAccuracy, MacroF1, BalancedAccuracy, PerClassPrecisionRecall, ExpectedCalibrationError)


def random_predictions(images: int = 300, classes: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(images, classes)) * 2
    labels = generator.integers(0, classes, images)
    logits[np.arange(images), labels] += 1.5
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), labels


def names(classes: int) -> list[str]:
    return [f"class {index}" for index in range(classes)]


@pytest.fixture(autouse=True)
def metric_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


@pytest.mark.parametrize("absent", ["none", "from labels", "from predictions", "from both"])
def test_agrees_with_scikit_learn(absent):
    probabilities, labels = random_predictions()
    if absent in ("from labels", "from both"):
        probabilities, labels = probabilities[labels != 3], labels[labels != 3]
    if absent in ("from predictions", "from both"):
        probabilities[:, 3] = 0
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)

    result = classification_metrics(probabilities, labels, names(9))

    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(labels, predicted, labels=range(9), zero_division=0)
    assert result["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert result["top5_accuracy"] == pytest.approx(sklearn_metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(9)))
    assert result["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0))
    assert result["balanced_accuracy"] == pytest.approx(np.mean(recall[support > 0]))
    for index, scores in enumerate(result["per_class"].values()):
        assert scores == pytest.approx({"precision": precision[index], "recall": recall[index], "f1": f1[index], "support": support[index]})


def test_calibration_error_by_hand():
    # bin (0.8, 0.8667] holds three images, one of them wrong; bin (0.5333, 0.6] holds one, right
    probabilities = np.array([[0.85, 0.15], [0.85, 0.15], [0.15, 0.85], [0.55, 0.45]])
    labels = np.array([0, 1, 1, 0])
    expected = (3 * abs(2 / 3 - 0.85) + 1 * abs(1 - 0.55)) / 4
    assert classification_metrics(probabilities, labels, ["a", "b"])["ece"] == pytest.approx(expected, abs=1e-7)


def test_bins_are_closed_on_the_right():
    # 0.5 is the border of two bins and exactly representable
    bins = reliability(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]), bins=2)
    assert bins.count.tolist() == [1, 1]


def test_a_perfectly_calibrated_coin_has_no_error():
    probabilities = np.full((10, 2), 0.5)
    labels = np.array([0, 1] * 5)
    assert classification_metrics(probabilities, labels, ["a", "b"])["ece"] == 0


def test_few_classes_make_top5_certain():
    probabilities, labels = random_predictions(classes=4)
    assert classification_metrics(probabilities, labels, names(4))["top5_accuracy"] == 1.0


def test_equal_probabilities_rank_by_class_index():
    probabilities = np.full((4, 4), 0.25)
    assert TopKAccuracy(k=2).compute(predictions=probabilities, references=[0, 1, 2, 3]) == {"top2_accuracy": 0.5}


def test_result_is_plain_json():
    probabilities, labels = random_predictions()
    result = classification_metrics(torch.tensor(probabilities), torch.tensor(labels), names(9))
    assert json.loads(json.dumps(result)) == result
    assert type(result["accuracy"]) is float
    assert type(result["per_class"]["class 0"]["support"]) is int


@pytest.mark.parametrize(
    "convert",
    [list, np.asarray, torch.tensor, lambda rows: torch.tensor(rows, requires_grad=True), lambda rows: torch.tensor(rows).double()],
    ids=["list", "numpy", "torch", "with gradient", "double"],
)
def test_combined_metrics_take_any_kind_of_input(convert):
    probabilities, labels = random_predictions(images=60)
    expected = classification_metrics(probabilities, labels, [str(index) for index in range(9)])
    combined = evaluate.combine([metric() for metric in EVERY_METRIC])
    assert combined.compute(predictions=convert(probabilities.tolist()), references=labels.tolist()) == expected


def test_batches_and_single_images_add_up():
    probabilities, labels = random_predictions(images=50)
    whole, batched, single = (evaluate.combine([metric() for metric in EVERY_METRIC]) for _ in range(3))
    for start in range(0, 50, 20):
        batched.add_batch(predictions=torch.tensor(probabilities[start : start + 20]), references=labels[start : start + 20])
    for row, label in zip(probabilities, labels, strict=True):
        single.add(prediction=row, reference=label)
    expected = whole.compute(predictions=probabilities, references=labels)
    assert batched.compute() == expected
    assert single.compute() == expected


def test_a_metric_can_be_used_twice():
    metric = Accuracy()
    assert metric.compute(predictions=[[0.9, 0.1]], references=[0]) == {"accuracy": 1.0}
    assert metric.compute(predictions=[[0.9, 0.1]], references=[1]) == {"accuracy": 0.0}


def test_per_class_metric_takes_names():
    result = PerClassPrecisionRecall(label_names=["cat", "dog"]).compute(predictions=[[0.9, 0.1], [0.6, 0.4]], references=[0, 1])
    assert result["per_class"]["cat"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert result["per_class"]["dog"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([], [], "There is nothing to score: the split has no predictions."),
        ([0.5, 0.5], [0, 1], "The probabilities have shape (2,); a table of shape [images, classes] is needed."),
        ([[0.5, 0.5]], [0, 1], "1 rows of probabilities came with labels of shape (2,); one label a row is needed."),
        ([[0.5, 0.5]], [0.0], "The labels are of type float64; whole numbers are needed."),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 2], "Label 2 of row 1 is outside 0..1, the 2 classes of the probabilities."),
        ([[0.5, 0.5]], [-1], "Label -1 of row 0 is outside 0..1, the 2 classes of the probabilities."),
        (
            [[0.5, 0.5], [np.nan, 1.0]],
            [0, 1],
            "Row 1 of the probabilities holds values that are not finite; the model has diverged.",
        ),
        (
            [[3.0, -1.0]],
            [0],
            "Row 0 of the probabilities sums to 2 with a smallest value of -1; values from 0 to 1 that sum to 1 are needed. "
            "Give softmax outputs, not logits.",
        ),
    ],
)
def test_bad_predictions_are_explained(probabilities, labels, message):
    with pytest.raises(DataError) as caught:
        classification_metrics(probabilities, labels, ["a", "b"])
    assert str(caught.value) == message


def test_ragged_rows_are_explained():
    with pytest.raises(ValueError, match="inhomogeneous") as quoted:
        np.asarray([[0.5, 0.5], [1.0]])
    with pytest.raises(DataError) as caught:
        classification_metrics([[0.5, 0.5], [1.0]], [0, 1], ["a", "b"])
    assert str(caught.value) == f"The predictions are no table of numbers: {str(quoted.value).rstrip('.')}."


@pytest.mark.parametrize(
    ("label_names", "message"),
    [
        (["a"], "1 label names came with probabilities of 2 classes; one name a class is needed."),
        (["a", "a"], "Label names must differ, but these occur more than once: a."),
    ],
)
def test_bad_label_names_are_explained(label_names, message):
    with pytest.raises(DataError) as caught:
        classification_metrics([[0.5, 0.5]], [0], label_names)
    assert str(caught.value) == message


def test_bad_metric_settings_are_explained():
    with pytest.raises(DataError) as caught:
        TopKAccuracy(k=0)
    assert str(caught.value) == "k is 0; top-k accuracy needs k of 1 or more."
    with pytest.raises(DataError) as caught:
        ExpectedCalibrationError(bins=0)
    assert str(caught.value) == "bins is 0; the calibration error needs 1 bin or more."
    with pytest.raises(DataError) as caught:
        Accuracy().compute(predictions=[[0.5, 0.5]])
    assert str(caught.value) == "A metric needs both predictions, the class probabilities, and references, the class indices."


def test_wilson_interval_matches_published_values():
    # Newcombe 1998, table I: 81 of 263 and 15 of 148
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


@pytest.mark.parametrize("successes", [0, 1, 19, 20])
def test_wilson_interval_holds_the_rate_and_stays_inside(successes):
    low, high = wilson_interval(successes, 20)
    assert 0 <= low <= successes / 20 <= high <= 1
    assert low < high


def test_wilson_interval_refuses_impossible_counts():
    with pytest.raises(DataError) as caught:
        wilson_interval(3, 2)
    assert str(caught.value) == "3 of 2 is no proportion; give at least one trial and 0..trials successes."


def test_bootstrap_interval_is_seeded_and_near_wilson():
    right = np.arange(400) % 10 > 0
    interval = bootstrap_interval(lambda rows: float(right[rows].mean()), 400)
    assert interval == bootstrap_interval(lambda rows: float(right[rows].mean()), 400)
    assert interval == pytest.approx(wilson_interval(360, 400), abs=0.01)


def test_bootstrap_interval_holds_a_biased_figure():
    # the spread of resamples is always smaller, so that plain percentiles would miss the figure
    values = np.linspace(0, 1, 30)
    low, high = bootstrap_interval(lambda rows: len(np.unique(values[rows])) / 30, 30)
    assert low <= 1.0 <= high
