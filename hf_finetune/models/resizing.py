"""Another image size for a pretrained model, position embeddings included."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import timm
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_finetune.errors import ModelError
from hf_finetune.models.names import is_timm
from hf_finetune.models.sources import first_line


def set_image_size(model: PreTrainedModel, size: int, name: str) -> PreTrainedModel:
    """Return a model that takes pictures of `size`×`size` pixels and says so in its configuration.

    Learned position embeddings and tables of relative positions are resampled bicubically, as in section 3.2 of
    https://arxiv.org/abs/2010.11929. Models that take any size (DINOv2, ConvNeXt, ResNet) come back as they are.

    Args:
        model: The classifier; may be changed in place.
        size: Height and width in pixels.
        name: What the user calls the model, for messages.

    Raises:
        ModelError: If the size is too small, not a multiple of the patch size, or not possible for this model.
    """
    _check_patches(model, size, name)
    largest = _trained_size(model)
    try:
        resized = _resized(copy.deepcopy(model) if size < largest else model, size)
    except _WrongSizeError as error:
        if size < largest and (smallest := _smallest_size(model, size, largest)) is not None:
            raise ModelError(f"image_size {size} is too small for {name}: the smallest that works is {smallest}.") from None
        raise ModelError(f"{name} does not take pictures of {size}×{size} pixels ({error}); leave out image_size.") from None
    return resized


def check_input_size(model: PreTrainedModel, height: int, width: int, name: str) -> None:
    """Run the model once on zeros, so that a processor and a model that do not fit are told before any training.

    Raises:
        ModelError: If the model does not take pictures of `height`×`width` pixels.
    """
    try:
        _forward(model, height, width)
    except _WrongSizeError as error:
        raise ModelError(
            f"The image processor of {name} makes pictures of {height}×{width} pixels, which its model does not take ({error}); "
            "set image_size to what the model was trained on."
        ) from None


class _WrongSizeError(Exception):
    """The model cannot run at a size."""


def _resized(model: PreTrainedModel, size: int) -> PreTrainedModel:
    if is_timm(model):
        if hasattr(model.timm_model, "set_input_size"):
            _set_timm_size(model, size)
        _forward(model, size, size)
        return model
    try:
        _forward(model, size, size)
    except _WrongSizeError:
        model = _rebuilt(model, size)
        _forward(model, size, size)
    return model


def _set_timm_size(model: PreTrainedModel, size: int) -> None:
    """Let timm resample its own embeddings, and make sure that what is saved is built again in the same shapes."""
    net: Any = model.timm_model
    arguments = {**(model.config.model_args or {}), "img_size": size}
    try:
        with torch.device("meta"):
            built: Any = timm.create_model(model.config.architecture, num_classes=model.config.num_labels, **arguments)
        windows = "window_size" in inspect.signature(net.set_input_size).parameters and hasattr(built, "layers")
        # Left to itself, timm scales Swin's windows with the picture, where its constructor keeps them.
        net.set_input_size(img_size=size, **({"window_size": built.layers[0].blocks[0].window_size} if windows else {}))
    except (AssertionError, RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
        raise _WrongSizeError(first_line(error)) from None
    if {key: value.shape for key, value in built.state_dict().items()} != {key: value.shape for key, value in net.state_dict().items()}:
        raise _WrongSizeError(f"timm builds {model.config.architecture} in other shapes for it")
    model.config.model_args = arguments


def _rebuilt(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """Build the same class for another `config.image_size`, and fill it with the old weights, resampled where they are a map."""
    if not hasattr(model.config, "image_size"):
        raise _WrongSizeError("its configuration has no image_size")
    config = copy.deepcopy(model.config)
    config.image_size = size
    target = type(model)(config).eval()
    wanted, weights = target.state_dict(), model.state_dict()
    for key, value in weights.items():
        if value.shape == wanted[key].shape:
            continue
        if key.endswith("position_embeddings"):
            weights[key] = _resampled_positions(value, wanted[key].shape[1])
        elif key.endswith("relative_position_bias_table"):
            weights[key] = _resampled_table(value, wanted[key].shape[0])
        else:
            raise _WrongSizeError(f"{key} depends on the image size")
    target.load_state_dict(weights)
    target.config.name_or_path = target.name_or_path = model.name_or_path
    return target


def _resampled_positions(positions: torch.Tensor, count: int) -> torch.Tensor:
    """Resample position embeddings [1, extra + g·g, D] to [1, count, D]; the `extra` tokens in front of the square grid stay."""
    extra = next(extra for extra in range(3) if round((positions.shape[1] - extra) ** 0.5) ** 2 == positions.shape[1] - extra)
    tokens, grid = positions[:, :extra], positions[:, extra:]
    new = _resampled_map(grid[0].T, round((count - extra) ** 0.5))
    return torch.cat([tokens, new.T[None]], dim=1)


def _resampled_table(table: torch.Tensor, count: int) -> torch.Tensor:
    """Resample BEiT's relative positions [(2g-1)·(2g-1) + 3, heads]; the last three rows belong to the class token and stay."""
    new = _resampled_map(table[:-3].T, round((count - 3) ** 0.5))
    return torch.cat([new.T, table[-3:]])


def _resampled_map(flat: torch.Tensor, side: int) -> torch.Tensor:
    """Resample a square map [C, s·s] to [C, side·side]."""
    old = round(flat.shape[1] ** 0.5)
    square = flat.reshape(1, flat.shape[0], old, old)
    new = nn.functional.interpolate(square, size=(side, side), mode="bicubic", align_corners=False, antialias=side < old)
    return new.reshape(flat.shape[0], side * side)


@torch.no_grad()
def _forward(model: PreTrainedModel, height: int, width: int) -> None:
    try:
        logits = model(pixel_values=torch.zeros(1, 3, height, width, device=model.device, dtype=model.dtype)).logits
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError, TypeError) as error:
        raise _WrongSizeError(first_line(error)) from None
    if not torch.isfinite(logits).all():
        raise _WrongSizeError("its last feature map is empty")


def _check_patches(model: PreTrainedModel, size: int, name: str) -> None:
    patch = _patch_size(model)
    if patch is None or size % patch == 0:
        return
    if size < patch:
        raise ModelError(f"image_size {size} is too small for {name}: the smallest that works is {patch}, its patch size.")
    lower = size - size % patch
    raise ModelError(
        f"image_size {size} is not a multiple of {patch}, the patch size of {name}; the nearest are {lower} and {lower + patch}."
    )


def _patch_size(model: PreTrainedModel) -> int | None:
    """The patch size of models whose tokens have learned positions; the others pad or crop by themselves."""
    if is_timm(model):
        patch = getattr(getattr(model.timm_model, "patch_embed", None), "patch_size", None)
        patch = patch if hasattr(model.timm_model, "set_input_size") else None
    else:
        patch = model.config.patch_size if any(name.endswith("cls_token") for name, _ in model.named_parameters()) else None
    return max(patch) if isinstance(patch, (tuple, list)) else patch


def _trained_size(model: PreTrainedModel) -> int:
    if is_timm(model):
        return max(model.config.pretrained_cfg.get("input_size", (3, 224, 224))[1:])
    size = getattr(model.config, "image_size", 224)
    return max(size) if isinstance(size, (tuple, list)) else size


def _smallest_size(model: PreTrainedModel, failing: int, working: int) -> int | None:
    """Bisect between a size that fails and one that should work, in steps of the patch size."""
    step = _patch_size(model) or 1
    low, high = failing // step, working // step
    if not _works(model, high * step):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(model, middle * step) else (middle, high)
    return high * step


def _works(model: PreTrainedModel, size: int) -> bool:
    try:
        # A copy, since Swin shrinks its windows for good when it sees a small picture.
        _resized(copy.deepcopy(model), size)
    except _WrongSizeError:
        return False
    return True
