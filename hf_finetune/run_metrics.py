"""`metrics.json`: what a run measured, on what, with what."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import platform
import resource
import sys
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from datasets import DatasetDict
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers.trainer_utils import TrainOutput

from hf_finetune.arguments import Arguments, FinetuneArguments, ModelArguments
from hf_finetune.data.catalog import dataset_origin
from hf_finetune.models.layers import layer_groups
from hf_finetune.models.sources import embedded_names
from hf_finetune.training.evaluation import Evaluation
from hf_finetune.training.precision import computing_dtype
from hf_finetune.training.trainer import FinetuneTrainer

_PACKAGES = ("torch", "transformers", "datasets", "peft", "timm", "accelerate", "evaluate", "hf_finetune")
_PROCESS = Path("/proc/self")  # under Linux


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from now on; on a CPU outside Linux it goes on counting from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")  # see proc_pid_clear_refs(5)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the highest memory in use since `reset_peak_memory`: of a CUDA device, else of this process (resident set size)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in (_PROCESS / "status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment(trainer: FinetuneTrainer) -> dict[str, Any]:
    """Return versions, device, dtype, seed and process count of a run."""
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package.replace("_", "-")) for package in _PACKAGES}
    args = trainer.args
    return versions | {
        "device": str(args.device.type),
        "processor": _processor_name(),
        "threads": torch.get_num_threads(),
        "dtype": str(computing_dtype(args)).removeprefix("torch."),
        "memory_layout": trainer.layout,
        "micro_batch_size": trainer.micro_batch,
        "seed": args.seed,
        "processes": args.world_size,
    }


def training_figures(trainer: FinetuneTrainer, output: TrainOutput, resumed_from_step: int, train_images: int) -> dict[str, Any]:
    """Return time, throughput, memory and parameter counts; times are seconds of this process.

    `runtime_s` holds what the feature cache took, `caching_s` says how much of it that was.
    """
    validation = sum(entry.get("eval_runtime", 0.0) for entry in trainer.state.log_history if entry["step"] >= resumed_from_step)
    features = trainer.inputs.summary()
    total, steps = output.metrics["train_runtime"], trainer.state.global_step - resumed_from_step
    images = train_images * trainer.state.epoch * steps / max(trainer.state.global_step, 1)
    parameters = list(trainer.accelerator.unwrap_model(trainer.model).parameters())
    return {
        "runtime_s": total,
        "validation_s": validation,
        "samples_per_second": images / max(total - validation, 1e-9),
        "peak_memory_bytes": peak_memory_bytes(trainer.args.device),
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "feature_cache": features,
        "caching_s": features["seconds"] if features else 0.0,
        "resumed_from_step": resumed_from_step,
        "best_checkpoint": Path(trainer.state.best_model_checkpoint).name if trainer.state.best_model_checkpoint else None,
        "stages": stages(trainer),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "total_parameters": sum(p.numel() for p in parameters),
    }


def stages(trainer: FinetuneTrainer) -> list[dict[str, Any]]:
    """Return what trained when: for each epoch in which that changed, the layer groups with a parameter that trained, and how many did.

    Empty without a freezing schedule, as for LoRA.
    """
    if trainer.freezer is None:
        return []
    model, epochs = trainer.freezer.model, max(math.ceil(trainer.state.epoch or 0) - 1, 0)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    groups = layer_groups(model, cast(FinetuneArguments, trainer.args).layer_groups)
    return [
        {
            "epoch": epoch,
            "groups": [group.name for group in groups if not trained.isdisjoint(group.parameters)],
            "trainable_parameters": sum(sizes[name] for name in trained),
        }
        for epoch, trained in trainer.freezer.stages(epochs)
    ]


def model_facts(arguments: ModelArguments) -> dict[str, Any]:
    """Return the base checkpoint and the adapter's settings; the license only where it is known."""
    local = arguments.model in embedded_names() or Path(arguments.model).expanduser().is_dir()
    adapter = None
    if arguments.adapter != "none":
        adapter = {
            "type": arguments.adapter,
            "rank": arguments.lora_rank,
            "alpha": arguments.lora_alpha,
            "dropout": arguments.lora_dropout,
            "targets": arguments.lora_targets,
            "layers": arguments.lora_layers,
            "dora": arguments.lora_dora,
            "rslora": arguments.lora_rslora,
        }
    return {
        "name": arguments.model,
        "base_model": None if local else arguments.model,
        "license": model_license(arguments.model),
        "adapter": adapter,
        "freeze": arguments.freeze,
        "batch_norm": arguments.batch_norm,
    }


def model_license(name: str) -> str | None:
    """Return the license that the checkpoint's own model card states, or None where it cannot be read or states none.

    For a checkpoint of the Hub this asks the Hub, so it belongs right after loading the checkpoint, when the Hub has just answered.
    """
    if name in embedded_names():
        return "apache-2.0"
    directory = Path(name).expanduser()
    card = directory / "README.md"
    if directory.is_dir() and not card.is_file():
        return None
    try:
        return ModelCard.load(card if directory.is_dir() else name).data.license
    except (OSError, ValueError, yaml.YAMLError, HfHubHTTPError):
        return None


def describe_run(
    arguments: Arguments,
    dataset: DatasetDict,
    model: dict[str, Any],
    trainer: FinetuneTrainer,
    training: dict[str, Any],
    scores: dict[str, Evaluation],
    notices: list[str],
) -> dict[str, Any]:
    """Return the contents of `metrics.json` for a finished run; `model` is from `model_facts`, `training` from `training_figures`."""
    label = dataset["train"].features["label"]
    return {
        "test": scores["test"].metrics,
        "validation": scores["validation"].metrics,
        "train": training,
        "environment": environment(trainer),
        "dataset": dataset_origin(arguments.data.dataset)._asdict()
        | {
            "label_column": arguments.data.label_column,
            "label_names": label.names,
            "splits": {split: len(rows) for split, rows in dataset.items()},
        },
        "model": model,
        "notices": notices,
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
