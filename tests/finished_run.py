"""A finished run as small as can be: every file of the contract, weights of a few bytes, and local paths wherever a real run has them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

DATASET_PATH = "/home/ann/private place/my pets"
LABELS = ["Abyssinian", "american_bulldog", "cat|dog"]


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


def checksums(directory: Path) -> dict[str, str]:
    """Return path → SHA-256 of every file below `directory`."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
