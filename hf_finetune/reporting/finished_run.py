"""Reads what a finished run left on disk, and says which file is missing or damaged when a folder is no finished run.

The card and a push need only `metrics.json` and `config.yaml`; the report needs the predictions and learning curves too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hf_finetune.errors import DataError, listed

if TYPE_CHECKING:
    from hf_finetune.reporting.metrics import FloatArray, IntArray

_SECTIONS = ("train", "environment", "dataset", "model")
_COLUMNS = ("image_id", "split", "label", "prediction", "probabilities")
_RUN_ON = "Run the training to its end."
_RUN_AGAIN = "The run was cut off or the file was edited; run it again."


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
        metrics: `metrics.json`, as `read_metrics` returns it.
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


def run_folder(directory: str | Path) -> Path:
    """Return `directory` as a path.

    Raises:
        DataError: There is no such folder.
    """
    folder = Path(directory)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"The run folder {str(directory)!r} {found}; give the --output_dir of a finished run.")
    return folder


def require_file(folder: Path, name: str) -> Path:
    """Return `folder / name`.

    Raises:
        DataError: There is no such file.
    """
    if not (folder / name).is_file():
        raise DataError(f"{str(folder)!r} is not a finished run: {name} is missing. {_RUN_ON}")
    return folder / name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of names and values.

    Raises:
        DataError: The file is missing or damaged.
    """
    return _read(path, "JSON", json.loads)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.yaml`, the flat settings of the run.

    Raises:
        DataError: The file is missing or damaged.
    """
    return _read(folder / "config.yaml", "YAML", yaml.safe_load)


def read_metrics(folder: Path, splits: Sequence[str] = ("test",)) -> dict[str, Any]:
    """Read `metrics.json`.

    Args:
        folder: The folder of the run.
        splits: Names of splits, of which at least one must have figures.

    Returns:
        Its contents; sections that the run did not record are empty instead of absent.

    Raises:
        DataError: The file is missing, damaged, or has no figures.
    """
    path = folder / "metrics.json"
    metrics = read_json(path)
    if not any(isinstance(metrics.get(split), dict) and metrics[split] for split in splits):
        raise DataError(f"{str(folder)!r} is not a finished run: metrics.json has no {' or '.join(splits)} figures. {_RUN_ON}")
    metrics |= {name: metrics.get(name) or {} for name in _SECTIONS}
    wrong = [name for name in _SECTIONS if not isinstance(metrics[name], dict)]
    if wrong:
        raise _damaged(path, f"{listed(wrong)} must hold names and values")
    return metrics | {"notices": [str(notice) for notice in metrics.get("notices") or []]}


def read_run(directory: str | Path) -> FinishedRun:
    """Read all that a report needs.

    Args:
        directory: The `--output_dir` of a finished run; `config.yaml` and `trainer_state.json` may be absent.

    Raises:
        DataError: There is no such folder, `metrics.json` or `predictions.parquet` is missing, a file cannot be read, or they do not
            fit each other.
    """
    folder = run_folder(directory)
    splits = ("test", "validation")
    metrics = read_metrics(folder, splits)
    names = metrics["dataset"].get("label_names")
    if not names:
        raise DataError(f"{str(folder)!r} is not a finished run: metrics.json has no dataset.label_names. {_RUN_ON}")
    return FinishedRun(
        directory=folder,
        metrics=metrics,
        config=read_config(folder) if (folder / "config.yaml").is_file() else {},
        label_names=[str(name) for name in names],
        predictions=_read_predictions(folder, next(split for split in splits if metrics.get(split)), names),
        curves=_read_curves(folder / "trainer_state.json"),
    )


def _read(path: Path, kind: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    require_file(path.parent, path.name)
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise _damaged(path, f"it is not valid {kind} ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise DataError(f"{path.name} in {str(path.parent)!r} cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        raise _damaged(path, "it must hold names and values")
    return content


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path.name} in {str(path.parent)!r} is damaged: {reason}. {_RUN_AGAIN}")


def _read_predictions(folder: Path, split: str, names: Sequence[str]) -> Predictions:
    # only here: a push reads no predictions, and need not wait seconds for these imports
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    from hf_finetune.reporting.metrics import checked_predictions

    path = require_file(folder, "predictions.parquet")
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise _damaged(path, f"it is not valid Parquet ({' '.join(str(error).split())})") from None
    missing = [column for column in _COLUMNS if column not in table.column_names]
    if missing:
        raise _damaged(path, f"it lacks the columns {listed(missing)}")
    rows = table.filter(pyarrow.compute.equal(table["split"], split)).to_pydict()
    if not rows["label"]:
        raise _damaged(path, f"it has no predictions of the {split} split")
    probabilities, labels = checked_predictions(rows["probabilities"], np.asarray(rows["label"], dtype=np.int64))
    if probabilities.shape[1] != len(names):
        raise _damaged(path, f"it has probabilities of {probabilities.shape[1]} classes, but metrics.json names {len(names)} classes")
    predicted = np.asarray(rows["prediction"], dtype=np.int64)
    return Predictions(split, [str(image_id) for image_id in rows["image_id"]], labels, predicted, probabilities)


def _read_curves(path: Path) -> Curves:
    if not path.is_file():
        return Curves([], [], [], None)
    state = read_json(path)
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
