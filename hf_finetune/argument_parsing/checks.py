"""Ranges, contradictions and the limits of this machine, as sentences that complete "NAME ..." or stand alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_finetune.argument_parsing.fields import shown
from hf_finetune.argument_parsing.rates import parse_rates
from hf_finetune.data.augmentation_text import parse_augmentation
from hf_finetune.errors import ConfigError, did_you_mean, listed
from hf_finetune.models.freeze_text import parse_freeze


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers, and how to say it.

    Attributes:
        text: Completes "must be ...".
        low: Lower end.
        high: Upper end.
        open_low: Whether `low` itself is outside.
        open_high: Whether `high` itself is outside.
    """

    text: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)


_COUNT = Range("at least 1", low=1)
_NOT_NEGATIVE = Range("at least 0", low=0)
_POSITIVE = Range("above 0", low=0, open_low=True)
_FRACTION = Range("above 0 and below 1", low=0, high=1, open_low=True, open_high=True)
_RATE = Range("at least 0 and below 1", low=0, high=1, open_high=True)
_SEED = Range("between 0 and 4294967295", low=0, high=2**32 - 1)

RANGES: dict[str, Range] = {
    **dict.fromkeys(("max_train_samples", "max_eval_samples", "augmentation_views", "image_size", "lora_rank", "lora_alpha"), _COUNT),
    **dict.fromkeys(("validation_fraction", "test_fraction"), _FRACTION),
    **dict.fromkeys(("lora_dropout", "dropout", "drop_path", "label_smoothing_factor", "adam_beta1", "adam_beta2"), _RATE),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), _COUNT),
    **dict.fromkeys(("save_total_limit", "eval_accumulation_steps", "dataloader_prefetch_factor", "ddp_timeout"), _COUNT),
    **dict.fromkeys(("num_train_epochs", "learning_rate", "head_lr", "backbone_lr", "adam_epsilon"), _POSITIVE),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), _POSITIVE),
    **dict.fromkeys(("weight_decay", "warmup_steps", "max_grad_norm", "eval_delay", "feature_cache_gb", "image_cache_gb"), _NOT_NEGATIVE),
    **dict.fromkeys(("mixup_alpha", "cutmix_alpha", "unfreeze_warmup", "micro_batch_size"), _NOT_NEGATIVE),
    "random_erasing": Range("between 0 and 1", low=0, high=1),
    "ema_decay": _FRACTION,
    "early_stopping_patience": _COUNT,
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    **dict.fromkeys(("layer_lr_decay", "crop_pct"), Range("above 0 and at most 1", low=0, high=1, open_low=True)),
    "dataloader_num_workers": Range("at least 0, or -1 to choose by the machine", low=-1),
}

# what `FinetuneTrainer` reports for a split, and so what a run can be selected by
SELECTABLE_METRICS = ("accuracy", "top5_accuracy", "macro_f1", "balanced_accuracy", "ece", "loss")

# a run always trains, selects on validation and scores test once, and its data sets are transformed on access
_FIXED = {
    "do_train": "has no effect here: a run always trains; leave it out.",
    "do_eval": "has no effect here: every run is validated as --eval_strategy says; leave it out.",
    "do_predict": "has no effect here: every run scores its test split once, at the end; leave it out.",
    "remove_unused_columns": "must stay false: the image column would be dropped before it becomes pixels; leave it out.",
    "dataloader_drop_last": "would leave photos out of every evaluation too; leave it out.",
    "prediction_loss_only": "would leave nothing to select and score by; leave it out.",
    "batch_eval_metrics": "cannot be used: the metrics are of a whole split; leave it out.",
    "bf16_full_eval": "would write the checkpoint in half precision; --bf16 evaluates in bfloat16 too, and keeps the weights.",
    "fp16_full_eval": "would write the checkpoint in half precision; --fp16 evaluates in float16 too, and keeps the weights.",
    "hub_always_push": "has no effect here: a run is pushed once, at the end; leave it out.",
}
FIXED_FIELDS = tuple(_FIXED)
# fields of TrainingArguments that only their default suits
_LEFT_ALONE: dict[str, tuple[Any, str]] = {
    "label_names": (None, "has no effect here: the class is the column that --label_column names; leave it out."),
    "hub_revision": (None, "has no effect here: a run is pushed to the main branch; leave it out."),
    "eval_do_concat_batches": (True, "must stay true: the metrics are of a whole split; leave it out."),
}


def range_problem(name: str, value: Any) -> str | None:
    """Return what is wrong with a value of the right type, as the end of a sentence that begins with its name.

    Args:
        name: Field.
        value: Value of the field's type, or None.
    """
    if name in _FIXED and value is True:
        return _FIXED[name]
    if name in _LEFT_ALONE and value != _LEFT_ALONE[name][0]:
        return _LEFT_ALONE[name][1]
    if value is None:
        return None
    if name == "max_steps" and value < 1 and value != -1:
        return f"must be at least 1, or -1 for as many as the epochs hold, not {value}."
    if name in RANGES and value not in RANGES[name]:
        return f"must be {RANGES[name].text}, not {str(value).removesuffix('.0')}."
    check = _TEXT_CHECKS.get(name)
    return check(value) if check else None


def _targets_problem(value: str) -> str | None:
    named = ("attention", "attention+mlp", "all-linear")
    if value in named:
        return None
    if re.fullmatch(r"[\w+-]+", value) and did_you_mean(value, named):
        return f"must be one of {listed(named)} or a regular expression, not {value!r}.{did_you_mean(value, named)}"
    try:
        re.compile(value)
    except re.error as error:
        return f"must be one of {listed(named)} or a regular expression, not {value!r}: {error}."
    return None


def _layers_problem(value: str) -> str | None:
    if value == "all" or re.fullmatch(r"last:[1-9]\d*", value):
        return None
    parts = [re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part) for part in value.split(",")]
    if all(part and (part[2] is None or int(part[1]) <= int(part[2])) for part in parts):
        return None
    return f"must be all, last:N, or block numbers such as 6-11 or 0,2,4, not {value!r}."


def _refused_by(parse: Callable[[str], object]) -> Callable[[str], str | None]:
    """Return a check that says what `parse` says of a text that it does not take."""

    def problem(value: str) -> str | None:
        try:
            parse(value)
        except ConfigError as error:
            return str(error)
        return None

    return problem


def _metric_problem(value: str) -> str | None:
    if value.removeprefix("eval_") in SELECTABLE_METRICS:
        return None
    return f"must be one of {listed(SELECTABLE_METRICS)}, not {value!r}.{did_you_mean(value, SELECTABLE_METRICS)}"


def _resume_problem(value: str) -> str | None:
    if value == "last" or os.path.isdir(value):
        return None
    return f"must be last or a checkpoint folder; there is no folder {value!r}."


def _report_problem(value: str | list[str]) -> str | None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    wanted = [value] if isinstance(value, str) else value
    names = [name for name in wanted if name not in ("none", "all")]
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            allowed = ["none", "all", *INTEGRATION_TO_CALLBACK]
            return f"must be one of {listed(allowed, 20)}, not {shown('', name)}.{did_you_mean(str(name), allowed)}"
        if name not in get_available_reporting_integrations():
            return f"names {name}, which is not installed here; install it, or leave it out."
    return None


def _accelerator_problem(value: dict[str, Any] | str) -> str | None:
    from transformers.trainer_pt_utils import AcceleratorConfig

    if not isinstance(value, dict):
        return _file_problem(value)
    known = [field.name for field in dataclasses.fields(AcceleratorConfig)]
    for key in value:
        if key not in known:
            return f"has no setting {key!r}; it has {listed(known)}.{did_you_mean(str(key), known)}"
    return None


def _file_problem(value: dict[str, Any] | str) -> str | None:
    if isinstance(value, dict) or os.path.isfile(value):
        return None
    return f"must be a JSON object or the path of a JSON file; there is no file {value!r}."


def _mapping_problem(value: dict[str, Any] | str) -> str | None:
    return None if isinstance(value, dict) else f"must be a JSON object such as '{{\"key\": 1}}', not {value!r}."


_TEXT_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "lora_targets": _targets_problem,
    "lora_layers": _layers_problem,
    "augmentation": _refused_by(parse_augmentation),
    "freeze": _refused_by(parse_freeze),
    "group_lr": _refused_by(parse_rates),
    "metric_for_best_model": _metric_problem,
    "resume_from_checkpoint": _resume_problem,
    "report_to": _report_problem,
    "accelerator_config": _accelerator_problem,
    "fsdp_config": _file_problem,
    "deepspeed": _file_problem,
    **dict.fromkeys(("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"), _mapping_problem),
}


# --- flags that people remember -------------------------------------------------------------------------------------------

_TODAY = {
    # gone from transformers
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "warmup_ratio": "warmup_steps (a value below 1 is a fraction of all steps)",
    "group_by_length": "train_sampling_strategy",
    "include_inputs_for_metrics": "include_for_metrics inputs",
    "jit_mode_eval": "torch_compile",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_organization": "hub_model_id (ORGANISATION/NAME)",
    "push_to_hub_token": "hub_token",
    "adafactor": "optim adafactor",
    "dispatch_batches": "accelerator_config",
    "split_batches": "accelerator_config",
    "torchdynamo": "torch_compile_backend",
    "sharded_ddp": "fsdp",
    # names of the stock examples and of other toolkits
    "model_name_or_path": "model",
    "dataset_name": "dataset",
    "image_column_name": "image_column",
    "label_column_name": "label_column",
    "train_val_split": "validation_fraction",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "head_learning_rate": "head_lr",
    "nesterov": "optim nag",
    "drop_path_rate": "drop_path",
    "dropout_rate": "dropout",
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "reprob": "random_erasing",
    "layer_decay": "layer_lr_decay",
    "model_ema_decay": "ema_decay",
    "token": "hub_token",
    "rank": "lora_rank",
}
_GONE = {
    "save_safetensors": "every checkpoint is saved as safetensors; leave it out.",
    "tokenizer": "the image processor comes with the checkpoint that --model names; leave it out.",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR instead.",
}


def renamed(name: str, prefix: str = "") -> str | None:
    """Return what to write today for a setting that was removed or is called so elsewhere, or None.

    Args:
        name: Setting without dashes.
        prefix: `"--"` where the answer is a flag.
    """
    if name in _GONE:
        return _GONE[name]
    today = _TODAY.get(name)
    return f"today it is {prefix}{today}." if today else None


# --- contradictions ---------------------------------------------------------------------------------------------------------

LORA_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_layers", "lora_dora", "lora_rslora")


def moot_fields(values: Mapping[str, Any]) -> set[str]:
    """Return the settings that other settings leave without effect, such as the LoRA rank of a run without LoRA."""
    moot = set(LORA_FIELDS) if values["adapter"] == "none" else set()
    if values["max_steps"] > 0:
        moot.add("num_train_epochs")
    if values["augmentation"] == "none" and not values["random_erasing"]:
        moot.add("augmentation_views")
    if values["batch_norm"] is None:
        moot.add("batch_norm_scope")
    return moot


# --- this machine -----------------------------------------------------------------------------------------------------------


def device_kind(use_cpu: bool = False) -> str:
    """Return the kind of device that a run uses: `"cpu"`, `"cuda"`, `"mps"`, `"xpu"` and so on.

    Args:
        use_cpu: The setting of that name; `accelerate launch --cpu` has the same effect.
    """
    if use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        return "cpu"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        return accelerator.type
    # torch/xla devices are not accelerators to torch.accelerator
    return "xla" if importlib.util.find_spec("torch_xla") else "cpu"


def has_native_bf16(device: str) -> bool:
    """Return whether the hardware computes in bfloat16 rather than imitating it.

    Args:
        device: As from `device_kind`.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True


def prefers_bf16(device: str) -> bool:
    """Return whether `--precision auto` computes in bfloat16.

    A CPU needs AMX for it: one with AVX512-BF16 alone can be slower than in float32 (docs/results/speed.md).

    Args:
        device: As from `device_kind`.
    """
    if device == "cpu":
        return torch.cpu._is_amx_tile_supported()
    return device == "cuda" and has_native_bf16(device)


def launched_precision() -> str | None:
    """Return the half precision that `accelerate launch --mixed_precision` asks for, or None.

    Raises:
        ConfigError: It is none that a run can compute in.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", "bf16", "fp16"):
        raise ConfigError(f"accelerate's mixed_precision must be one of no, bf16 and fp16, not {asked!r}; leave it out for float32.")
    return None if asked == "no" else asked


def loader_processes(device: str) -> int:
    """Return how many processes should load photos for one training process on a device of this kind (see `device_kind`)."""
    if device == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1, 0))


def precision_problems(values: Mapping[str, Any], name: Callable[[str], str]) -> list[tuple[str, str]]:
    """Return what this machine cannot do of the precision that was asked for, as pairs of field and sentence.

    Args:
        values: Needs `precision`, `bf16`, `fp16` and `use_cpu`.
        name: How to write a setting.
    """
    problems = []
    device = device_kind(values["use_cpu"])
    missing = {"cpu": "its CPU has neither AVX512-BF16 nor AMX", "cuda": "its GPU is older than Ampere"}
    if values["bf16"] and not has_native_bf16(device):
        why = f"which this machine lacks ({missing[device]})"
        problems.append(("bf16", f"{name('bf16')} needs native bfloat16, {why}; leave it out for float32."))
    if values["fp16"] and device == "cpu":
        problems.append(("fp16", f"{name('fp16')} needs a GPU, and this run is on the CPU; leave it out for float32."))
    if values["fp16"] and values["bf16"]:
        problems.append(("fp16", f"{name('fp16')} and {name('bf16')} exclude each other; give one."))
    for half in ("bf16", "fp16"):
        if values["precision"] == "fp32" and values[half]:
            problems.append((half, f"{name('precision')} fp32 and {name(half)} exclude each other; give one."))
    return problems
