"""Finished runs as training leaves them on disk.

`write_finished_run` writes every file of the contract, weights of a few bytes, and local paths wherever a real run has them: what a model
card and a push read. `write_predicted_run` writes real predictions and learning curves: what a report reads.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from hf_finetune.reporting.metrics import classification_metrics

DATASET_PATH = "/home/ann/private place/my pets"
LABELS = ["Abyssinian", "american_bulldog", "cat|dog"]
HUB_MODEL = {
    "name": "google/vit-base-patch16-224-in21k",
    "base_model": "google/vit-base-patch16-224-in21k",
    "license": "apache-2.0",
    "adapter": {"type": "lora", "rank": 8, "alpha": 16, "targets": "attention", "layers": "all"},
}
HUB_DATASET = {
    "name": "oxford_pets",
    "hub_id": "timm/oxford-iiit-pet",
    "license": "cc-by-sa-4.0",
    "label_column": "label",
    "label_names": LABELS,
    "splits": {"train": 2944, "validation": 736, "test": 3669},
}


def run_metrics(**changes: Any) -> dict[str, Any]:
    """Return the contents of `metrics.json`; `changes` replace whole sections."""
    scores = ((0.9, 0.9, 0.9, 10), (0.8, 0.8, 0.8, 10), (1.0, 0.9, 0.947368, 10))
    per_class = {
        name: dict(zip(("precision", "recall", "f1", "support"), row, strict=True)) for name, row in zip(LABELS, scores, strict=True)
    }
    figures = {"accuracy": 26 / 30, "top5_accuracy": 1.0, "macro_f1": 0.882456, "balanced_accuracy": 26 / 30, "ece": 0.0512}
    metrics = {
        "test": figures | {"per_class": per_class},
        "validation": figures | {"per_class": per_class},
        "train": {"runtime_s": 81.4, "trainable_parameters": 1500, "total_parameters": 120000, "epochs": 5.0},
        "environment": {"python": "3.11.9", "torch": "2.14.1", "timm": None, "hf_finetune": "0.1.0", "device": "cpu", "seed": 42},
        "dataset": {
            "name": "drawn_pets",
            "hub_id": None,
            "license": None,
            "label_column": "label",
            "label_names": LABELS,
            "splits": {"train": 100, "validation": 20, "test": 30},
        },
        "model": {"name": "tiny_vit", "base_model": None, "license": None, "adapter": None},
        "notices": [],
    }
    return metrics | changes


def run_config(**changes: Any) -> dict[str, Any]:
    """Return the contents of `config.yaml`."""
    config = {
        "dataset": "drawn_pets",
        "model": "tiny_vit",
        "adapter": "none",
        "lora_rank": 8,
        "num_train_epochs": 5,
        "learning_rate": 0.001,
        "weight_decay": 0.0,
        "max_steps": -1,
        "bf16": False,
        "image_size": None,
        "gradient_accumulation_steps": 1,
        "output_dir": "/home/ann/secret/runs/demo",
        "seed": 42,
    }
    return config | changes


def write_finished_run(directory: Path, *, adapter: bool = False, metrics: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a run to `directory`, which is made when absent; with an adapter and a data set from a folder on request."""
    model = {"name": "tiny_vit", "base_model": None, "license": None, "adapter": {"type": "lora", "rank": 8} if adapter else None}
    contents = {
        "metrics.json": json.dumps(metrics or run_metrics(model=model), indent=1),
        "config.yaml": yaml.safe_dump(run_config(adapter="lora" if adapter else "none", **config), sort_keys=False),
        "report.md": f"# Report\n\nphotos: {DATASET_PATH}/1.jpg\n",
        "report.html": f"<p title='{DATASET_PATH}'>photos</p><script>/a+/g</script>",
        "model/config.json": json.dumps({"model_type": "vit", "_name_or_path": "/home/ann/models/vit"}),
        "model/preprocessor_config.json": "{}",
        "predictions.parquet": "PAR1",
        "trainer_state.json": "{}",
        "checkpoint-7/model.safetensors": "last",
    }
    binaries = {
        "model/model.safetensors": bytes(range(256)) * 64,
        "model/training_args.bin": b"pickle",
        "plots/confusion.png": b"\x89PNG" + bytes(99),
    }
    if adapter:
        contents["adapter/adapter_config.json"] = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/home/ann/models/vit"})
        contents["adapter/README.md"] = "---\nbase_model: /home/ann/models/vit\n---\n"
        binaries["adapter/adapter_model.safetensors"] = bytes(range(256))
    for name, content in (contents | binaries).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


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


def write_predicted_run(
    directory: Path, label_names: list[str], *, images: int = 400, trained: bool = True, seed: int = 0, **changes: Any
) -> Path:
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
    train = {"runtime_s": 744.2, "samples_per_second": 19.8, "peak_memory_bytes": 2_130_000_000, "epochs": 5}
    sections = {split: classification_metrics(*given, label_names) for split, given in splits.items()} | {
        "train": train | {"trainable_parameters": 304_165, "total_parameters": 86_102_821},
        "dataset": HUB_DATASET | {"label_names": label_names, "splits": {"train": 2944, "validation": images // 2, "test": images}},
        "model": HUB_MODEL,
    }
    (directory / "metrics.json").write_text(json.dumps(run_metrics(**(sections | changes))))
    config = run_config(dataset="oxford_pets", model=HUB_MODEL["name"], adapter="lora", hub_token=None)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    if trained:
        state = {"log_history": make_log(), "best_global_step": 48, "global_step": 60}
        (directory / "trainer_state.json").write_text(json.dumps(state))
    return directory


def draw_image(split: str, image_id: str) -> Image.Image:
    """Return a small image whose colour depends on its identifier."""
    number = int(image_id.split("_")[-1])
    return Image.new("RGB", (160 + number % 60, 120 + number % 90), ((number * 37) % 256, (number * 91) % 256, (number * 53) % 256))


def checksums(directory: Path) -> dict[str, str]:
    """Return path → SHA-256 of every file below `directory`."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
