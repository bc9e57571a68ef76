"""A batch that goes through the network in parts: the gradient of the whole batch in the memory of one part."""

from __future__ import annotations

import torch
from torch import nn

from hf_finetune.arguments import FinetuneArguments
from hf_finetune.data.transforms import InputSpec
from hf_finetune.errors import ModelError
from hf_finetune.models.batchnorm import moving_batchnorm
from hf_finetune.training.precision import is_convolutional

# 16 photos of 224 pixels cost a ViT-S on two cores less than a tenth more time than 32; fewer cost more, and so do convolutions.
_PIXELS_ON_CPU = 16 * 224 * 224


def micro_batch_size(
    args: FinetuneArguments, model: nn.Module, spec: InputSpec, *, sharded: bool = False, by_default: bool = True
) -> int | None:
    """Return how many photos of a batch go through a network at once in training, or None for all of them.

    Args:
        args: The batch size, the device, the optimizer, and what was asked for.
        model: As it trains, its BatchNorm held where it is never to move.
        spec: The size of a photo.
        sharded: Whether parameters are spread over processes.
        by_default: Whether parts may be chosen where nobody asked for them.

    Raises:
        ModelError: If parts are asked for where they would not give the gradient of the batch.
    """
    obstacle = _obstacle(args, model, sharded)
    if args.micro_batch_size and obstacle:
        raise ModelError(f"--micro_batch_size cuts every batch in parts, and {obstacle}")
    size = args.micro_batch_size or 0
    if args.micro_batch_size is None and by_default and args.device.type == "cpu" and not (obstacle or is_convolutional(model)):
        size = max(1, _PIXELS_ON_CPU // (spec.height * spec.width))
    return size if 0 < size < args.per_device_train_batch_size else None


def _obstacle(args: FinetuneArguments, model: nn.Module, sharded: bool) -> str | None:
    """Return why parts would not give the gradient of the batch, as the end of a sentence, or None where they do."""
    optimizer = str(getattr(args.optim, "value", args.optim))
    if sharded:
        return "FSDP and DeepSpeed count each of them as a batch; use --gradient_accumulation_steps."
    if "layerwise" in optimizer or "lomo" in optimizer:
        return f"--optim {optimizer} makes a step after each of them; leave one of the two out."
    if moving := moving_batchnorm(model):
        return (
            f"{len(moving)} BatchNorm layers would take the mean and variance of each for those of the batch; add --batch_norm frozen, or "
            "leave it out."
        )
    return None


def in_parts(batch: dict[str, torch.Tensor], size: int | None) -> list[dict[str, torch.Tensor]]:
    """Cut a batch in the fewest parts of at most `size` examples, as equal as they can be; None leaves it whole."""
    examples = len(batch["labels"])
    count = -(-examples // size) if size else 1
    if count == 1:
        return [batch]
    return [dict(zip(batch, values, strict=True)) for values in zip(*(value.tensor_split(count) for value in batch.values()), strict=True)]
