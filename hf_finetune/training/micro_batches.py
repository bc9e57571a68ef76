"""A batch that goes through the network in parts: the gradient of the whole batch in the memory of one part."""

from __future__ import annotations

import torch
from torch import nn

from hf_finetune.errors import ModelError
from hf_finetune.models.batchnorm import moving_batchnorm
from hf_finetune.training.precision import is_convolutional

# As fast as a whole batch of 32 for a ViT-S on two cores; convolutions are slower in parts, and so are smaller parts.
_PIXELS_ON_CPU = 8 * 224 * 224


def micro_batch_size(requested: int | None, model: nn.Module, pixels: int, device: str) -> int | None:
    """Return how many photos go through a network at once in training, or None for the whole batch.

    Args:
        requested: As the flag takes it: None chooses, 0 is the whole batch.
        model: As it trains from now on, its BatchNorm held where it is not to move.
        pixels: Height times width of a photo.
        device: Type of the device.

    Raises:
        ModelError: If parts are asked for, and BatchNorm would take each of them for the batch.
    """
    moving = moving_batchnorm(model)
    if requested and moving:
        raise ModelError(
            f"--micro_batch_size cuts every batch in parts, and {len(moving)} BatchNorm layers would take the mean and variance of each "
            "part for those of the batch; add --batch_norm frozen, or leave it out."
        )
    if requested is not None:
        return requested or None
    if device != "cpu" or moving or is_convolutional(model):
        return None
    return max(1, _PIXELS_ON_CPU // pixels)


def in_parts(batch: dict[str, torch.Tensor], size: int | None) -> list[dict[str, torch.Tensor]]:
    """Cut a batch in the fewest parts of at most `size` examples, as equal as they can be; None leaves it whole."""
    examples = len(batch["labels"])
    count = -(-examples // size) if size else 1
    if count == 1:
        return [batch]
    return [dict(zip(batch, values, strict=True)) for values in zip(*(value.tensor_split(count) for value in batch.values()), strict=True)]
