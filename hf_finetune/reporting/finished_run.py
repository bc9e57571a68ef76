"""What a finished run left on disk for its report, checked: metrics, predictions, settings and learning curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import yaml

from hf_finetune.errors import DataError, FinetuneError, listed
from hf_finetune.reporting.metrics import FloatArray, IntArray, checked_predictions

_COLUMNS = ("image_id", "split", "label", "prediction", "probabilities")


@dataclass(frozen=True)
class Predictions:
    """Predictions of one split of N images over C classes.

    Attributes:
        split: `"test"` or `"validation"`.
        image_ids: N identifiers, unique within the split.
        labels: True class indices, int64, shape [N].
        predicted: Predicted class indices, int64, shape [N].
        probabilities: Float64, shape [N, C].
    """

    split: str
    image_ids: list[str]
    labels: IntArray
    predicted: IntArray
    probabilities: FloatArray

    @property
    def confidence(self) -> FloatArray:
        """Probability of the predicted class, shape [N]."""
        return self.probabilities[np.arange(len(self.labels)), self.predicted]


@dataclass(frozen=True)
class Curves:
    """What the Trainer logged, each curve a list of (epoch, value); empty where nothing was logged."""

    train_loss: list[tuple[float, float]]
    validation_loss: list[tuple[float, float]]
    validation_accuracy: list[tuple[float, float]]
    best_epoch: float | None

    def __bool__(self) -> bool:
        return bool(self.train_loss or self.validation_loss or self.validation_accuracy)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        directory: Where it lies.
        metrics: `metrics.json` as it is.
        config: `config.yaml`; empty where the run has none.
        label_names: The C class names.
        predictions: Of the test split, or of validation where test was not scored.
        curves: Learning curves; empty for a run that only evaluated.
    """

    directory: Path
    metrics: dict[str, Any]
    config: dict[str, Any]
    label_names: list[str]
    predictions: Predictions
    curves: Curves


def read_run(directory: str | Path) -> FinishedRun:
    """Read a run directory.

    Args:
        directory: The `--output_dir` of a finished run; `config.yaml` and `trainer_state.json` may be absent.

    Raises:
        FinetuneError: When `metrics.json` or `predictions.parquet` is absent.
        DataError: When a file cannot be read, or when they do not fit each other.
    """
    directory = Path(directory)
    for name in ("metrics.json", "predictions.parquet"):
        if not (directory / name).is_file():
            raise FinetuneError(f"{directory} has no {name}, so there is nothing to report. Give the --output_dir of a finished run.")
    metrics = _read_json(directory / "metrics.json")
    names = metrics.get("dataset", {}).get("label_names")
    split = next((split for split in ("test", "validation") if metrics.get(split)), None)
    if not names or split is None:
        missing = "no dataset.label_names" if not names else "neither test nor validation figures"
        raise DataError(f"{directory / 'metrics.json'} has {missing}; it was not written by a finished run.")
    return FinishedRun(
        directory=directory,
        metrics=metrics,
        config=_read_config(directory / "config.yaml"),
        label_names=[str(name) for name in names],
        predictions=_read_predictions(directory / "predictions.parquet", split, names),
        curves=_read_curves(directory / "trainer_state.json"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}. The run was cut off or the file was edited; run it again.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} where an object is needed; it was not written by a finished run.")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no flags; one `name: value` a line is needed.")
    return content


def _read_predictions(path: Path, split: str, names: Sequence[str]) -> Predictions:
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}.") from None
    missing = [column for column in _COLUMNS if column not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {listed(missing)}; it was not written by a finished run.")
    rows = table.filter(pyarrow.compute.equal(table["split"], split)).to_pydict()
    probabilities, labels = checked_predictions(rows["probabilities"], np.asarray(rows["label"], dtype=np.int64))
    if probabilities.shape[1] != len(names):
        raise DataError(f"{path} has probabilities of {probabilities.shape[1]} classes, but metrics.json names {len(names)} classes.")
    predicted = np.asarray(rows["prediction"], dtype=np.int64)
    return Predictions(split, [str(image_id) for image_id in rows["image_id"]], labels, predicted, probabilities)


def _read_curves(path: Path) -> Curves:
    if not path.is_file():
        return Curves([], [], [], None)
    state = _read_json(path)
    log = [entry for entry in state.get("log_history", []) if isinstance(entry, dict)]
    accuracy = _curve(log, "eval_accuracy")
    return Curves(_curve(log, "loss"), _curve(log, "eval_loss"), accuracy, _best_epoch(state, log, accuracy))


def _curve(log: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    points = {entry["epoch"]: entry[key] for entry in log if key in entry and entry.get("epoch") is not None}
    return sorted((float(epoch), float(value)) for epoch, value in points.items() if math.isfinite(value))


def _best_epoch(state: dict[str, Any], log: list[dict[str, Any]], accuracy: list[tuple[float, float]]) -> float | None:
    step = state.get("best_global_step")
    chosen = [entry["epoch"] for entry in log if step and entry.get("step") == step and "eval_loss" in entry and "epoch" in entry]
    if chosen:
        return float(chosen[-1])
    # without a recorded choice the first of the highest accuracies is the one that the Trainer would have kept
    return max(accuracy, key=lambda point: (point[1], -point[0]))[0] if accuracy else None
