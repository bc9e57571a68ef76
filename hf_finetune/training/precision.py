"""Numbers and memory layout in which a run computes, chosen for the hardware."""

from __future__ import annotations

import torch
from torch import nn
from transformers import TrainingArguments

from hf_finetune.argument_parsing.checks import has_native_bf16, prefers_bf16


def is_convolutional(model: nn.Module) -> bool:
    """Return whether a network has overlapping convolutions; cutting an image into patches, as a ViT does, is none."""
    return any(isinstance(module, nn.Conv2d) and module.kernel_size > module.stride for module in model.modules())


def set_layout(model: nn.Module) -> str:
    """Store the weights of a convolutional network channels-last, where convolutions are faster, and return the layout's name.

    The values are the same. Activations follow the weights, so the input may come in either layout.
    """
    if not is_convolutional(model):
        return "contiguous"
    model.to(memory_format=torch.channels_last)
    return "channels_last"


def computing_dtype(args: TrainingArguments) -> torch.dtype:
    """Return the dtype of autocast regions; weights and optimizer state are float32 in every case."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def describe(args: TrainingArguments, layout: str) -> str:
    """Return one line that says in which numbers and layout a run computes, and why not faster."""
    dtype = computing_dtype(args)
    name = str(dtype).removeprefix("torch.")
    more = f" ({why})" if dtype == torch.float32 and (why := _why_not_bf16(args)) else ""
    kept = "" if dtype == torch.float32 else ", weights and optimizer state in float32"
    return f"Computing in {name}{more}{kept}; memory layout {layout.replace('_', '-')}."


def _why_not_bf16(args: TrainingArguments) -> str:
    device = args.device.type
    if getattr(args, "precision", "") == "fp32":
        return "--precision fp32"
    if not has_native_bf16(device):
        return "this CPU has neither AVX512-BF16 nor AMX" if device == "cpu" else "this GPU is older than Ampere"
    if device == "cpu" and not prefers_bf16(device):
        return "this CPU has AVX512-BF16 but no AMX, without which bfloat16 can be slower; --bf16 uses it"
    return ""
