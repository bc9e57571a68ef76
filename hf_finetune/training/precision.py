"""Numbers and memory layout in which a run computes, chosen for the hardware."""

from __future__ import annotations

import torch
from torch import nn
from transformers import TrainingArguments

from hf_finetune.argument_parsing.checks import has_native_bf16


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
    dtype, device = computing_dtype(args), args.device.type
    name = str(dtype).removeprefix("torch.")
    why = ""
    if dtype == torch.float32 and getattr(args, "precision", "") == "fp32":
        why = " (--precision fp32)"
    elif dtype == torch.float32 and device in ("cpu", "cuda") and not has_native_bf16(device):
        why = " (this CPU has neither AVX512-BF16 nor AMX)" if device == "cpu" else " (this GPU is older than Ampere)"
    kept = "" if dtype == torch.float32 else ", weights and optimizer state in float32"
    return f"Computing in {name}{why}{kept}; memory layout {layout.replace('_', '-')}."
