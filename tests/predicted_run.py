"""A synthetic finished run with predictions, as training leaves it on disk; `draw_image` is its source of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from hf_finetune.reporting.metrics import classification_metrics


def make_predictions(classes: int, images: int, seed: int, skill: float = 3.5) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities [images, classes] and labels [images]; neighbours are confused more often than strangers."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    logits = generator.normal(size=(images, classes))
    logits[np.arange(images), labels] += skill
    logits[np.arange(images), (labels + 1) % classes] += generator.uniform(0, skill, images) * (labels % 4 == 0)
    powers = np.exp(1.6 * logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), labels


def write_predictions(directory: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write `predictions.parquet` with one row an image."""
    tables = []
    for split, (probabilities, labels) in splits.items():
        columns = {
            "image_id": pa.array([f"{split}_{row:05d}" for row in range(len(labels))], pa.string()),
            "split": pa.array([split] * len(labels), pa.string()),
            "label": pa.array(labels, pa.int64()),
            "prediction": pa.array(probabilities.argmax(axis=1), pa.int64()),
            "probabilities": pa.array(list(probabilities), pa.list_(pa.float32())),
        }
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), directory / "predictions.parquet")


def make_log(epochs: int = 5, steps: int = 12) -> list[dict[str, float]]:
    """Return a Trainer's log_history whose fourth epoch is the best."""
    log: list[dict[str, float]] = []
    for step in range(1, epochs * steps + 1):
        epoch = step / steps
        log.append({"loss": 3.2 * np.exp(-0.7 * epoch) + 0.2, "learning_rate": 1e-3, "epoch": epoch, "step": step})
        if step % steps == 0:
            accuracy = 0.9 - 0.5 * np.exp(-0.8 * epoch) - (0.02 if epoch == epochs else 0)
            log.append({"eval_loss": 1.4 - accuracy, "eval_accuracy": accuracy, "epoch": epoch, "step": step})
    return log


def write_run(directory: Path, label_names: list[str], *, images: int = 400, trained: bool = True, seed: int = 0, **changes: Any) -> Path:
    """Write a run directory: metrics.json, predictions.parquet, config.yaml and, for a trained run, trainer_state.json.

    Args:
        directory: Made when absent.
        label_names: The class names.
        images: Test images; validation has half of them.
        trained: Whether the run trained, or only evaluated.
        seed: Seed of the predictions.
        **changes: Top-level keys of metrics.json to replace.
    """
    directory.mkdir(parents=True, exist_ok=True)
    splits = {
        "validation": make_predictions(len(label_names), images // 2, seed + 1),
        "test": make_predictions(len(label_names), images, seed),
    }
    write_predictions(directory, splits)
    metrics: dict[str, Any] = {split: classification_metrics(*given, label_names) for split, given in splits.items()}
    metrics["train"] = {
        "runtime_s": 744.2,
        "samples_per_second": 19.8,
        "peak_memory_bytes": 2_130_000_000,
        "epochs": 5,
        "trainable_parameters": 304_165,
        "total_parameters": 86_102_821,
    }
    metrics["environment"] = {"python": "3.11.2", "torch": "2.14.1", "device": "cpu", "dtype": "float32", "seed": 42, "processes": 1}
    metrics["dataset"] = {
        "name": "oxford_pets",
        "hub_id": "timm/oxford-iiit-pet",
        "license": "cc-by-sa-4.0",
        "label_column": "label",
        "label_names": label_names,
        "splits": {"train": 2944, "validation": images // 2, "test": images},
    }
    metrics["model"] = {
        "name": "google/vit-base-patch16-224-in21k",
        "base_model": "google/vit-base-patch16-224-in21k",
        "license": "apache-2.0",
        "adapter": {"type": "lora", "rank": 8, "alpha": 16, "targets": "attention", "layers": "all"},
    }
    metrics["notices"] = []
    (directory / "metrics.json").write_text(json.dumps(metrics | changes))
    config = {
        "dataset": "oxford_pets",
        "model": "google/vit-base-patch16-224-in21k",
        "adapter": "lora",
        "lora_rank": 8,
        "learning_rate": 0.001,
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config | {"num_train_epochs": 5, "seed": 42, "hub_token": None}))
    if trained:
        state = {"log_history": make_log(), "best_global_step": 48, "global_step": 60}
        (directory / "trainer_state.json").write_text(json.dumps(state))
    return directory


def draw_image(split: str, image_id: str) -> Image.Image:
    """Return a small image whose colour depends on its identifier."""
    number = int(image_id.split("_")[-1])
    return Image.new("RGB", (160 + number % 60, 120 + number % 90), ((number * 37) % 256, (number * 91) % 256, (number * 53) % 256))
