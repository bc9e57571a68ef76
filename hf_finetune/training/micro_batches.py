"""A batch that goes through the network in parts: the gradient of the whole batch in the memory of one part."""

from __future__ import annotations

import torch
from torch import nn

from hf_finetune.arguments import FinetuneArguments
from hf_finetune.data.transforms import InputSpec
from hf_finetune.errors import ModelError
from hf_finetune.models.batchnorm import moving_batchnorm
from hf_finetune.training.precision import is_convolutional

# 16 photos of 224 pixels cost a ViT-S on two cores up to a twentieth of the time of 32, fewer cost more, and so do convolutions in parts.
_PIXELS_ON_CPU = 16 * 224 * 224


def micro_batch_size(args: FinetuneArguments, model: nn.Module, spec: InputSpec, *, sharded: bool = False) -> int | None:
    """Return how many photos of a batch go through a network at once in training, or None for all of them.

    Args:
        args: The batch size, the device, and what was asked for.
        model: As it trains, its BatchNorm held where it is never to move.
        spec: The size of a photo.
        sharded: Whether parameters are spread over processes.

    Raises:
        ModelError: If parts are asked for where they would not give the gradient of the batch.
    """
    requested, moving = args.micro_batch_size, moving_batchnorm(model)
    if requested and sharded:
        raise ModelError("--micro_batch_size does not work with FSDP or DeepSpeed; use --gradient_accumulation_steps.")
    if requested and moving:
        raise ModelError(
            f"--micro_batch_size cuts every batch in parts, and {len(moving)} BatchNorm layers would take the mean and variance of each "
            "part for those of the batch; add --batch_norm frozen, or leave it out."
        )
    size = requested or 0
    if requested is None and args.device.type == "cpu" and not (sharded or moving or is_convolutional(model)):
        size = max(1, _PIXELS_ON_CPU // (spec.height * spec.width))
    return size if 0 < size < args.per_device_train_batch_size else None


def in_parts(batch: dict[str, torch.Tensor], size: int | None) -> list[dict[str, torch.Tensor]]:
    """Cut a batch in the fewest parts of at most `size` examples, as equal as they can be; None leaves it whole."""
    examples = len(batch["labels"])
    count = -(-examples // size) if size else 1
    if count == 1:
        return [batch]
    return [dict(zip(batch, values, strict=True)) for values in zip(*(value.tensor_split(count) for value in batch.values()), strict=True)]
