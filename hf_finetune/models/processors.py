"""Image processors that keep the aspect of a picture, so that training, evaluation and a saved pipeline see the same pixels."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HTTPError
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedConfig, TimmWrapperConfig, ViTImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_finetune.errors import ModelError
from hf_finetune.models.sources import ModelSource, first_line, raise_for_hub

logger = logging.getLogger(__name__)

# What ViTImageProcessor takes over from a processor that cannot keep the aspect.
_PIXEL_SETTINGS = ("resample", "image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize", "do_convert_rgb")


def load_processor(
    source: ModelSource,
    config: PreTrainedConfig,
    image_size: int | None = None,
    crop_pct: float | None = None,
    notices: list[str] | None = None,
) -> BaseImageProcessor:
    """Read the checkpoint's own image processor and make it resize the shortest side and crop the centre.

    Mean, standard deviation, interpolation and, without `crop_pct`, the ratio of crop to resize stay the checkpoint's. For a timm model
    `config.pretrained_cfg`, where such a checkpoint keeps its processor, is changed alike.

    Args:
        source: Where the checkpoint is.
        config: The configuration of the model.
        image_size: Height and width in pixels that the model shall see; None for the checkpoint's own.
        crop_pct: Side of the crop over the shortest side of the resized picture, in (0, 1]; None for the checkpoint's own.
        notices: Gets one sentence where the processor squashed pictures into a square.

    Returns:
        A processor that `transformers` saves and reads back as it is.

    Raises:
        ModelError: If the checkpoint has no processor, or one that does not make one RGB picture of one size.
    """
    if isinstance(config, TimmWrapperConfig):
        processor, shortest = _timm(config, image_size, crop_pct)
    else:
        processor, shortest = _native(source, image_size, crop_pct)
    if shortest is not None:
        height, width = output_size(processor)
        notice = (
            f"The image processor of {source.name} did not keep the aspect of a picture; here, and in what is saved, it resizes the "
            f"shortest side to {shortest} and crops the centre of {height}×{width} pixels."
        )
        logger.warning(notice)
        if notices is not None:
            notices.append(notice)
    return processor


def output_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Return the height and width, in pixels, of what `processor` gives the model."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return tuple(processor.data_config["input_size"][1:])
    height, width = _process(processor, _wide(0)).shape[1:]
    # Without a crop the longer side varies with the picture; the shorter side is what the processor is set to.
    return (height, width) if _fixed_shape(processor) else (min(height, width), min(height, width))


def _native(source: ModelSource, image_size: int | None, crop_pct: float | None) -> tuple[BaseImageProcessor, int | None]:
    """Return the processor and, where it did not keep the aspect, the length that the shortest side is resized to now."""
    try:
        processor = AutoImageProcessor.from_pretrained(source.location, revision=source.revision)
    except (OSError, ValueError, HTTPError) as error:
        raise_for_hub(source, "preprocessor_config.json", error)
        there = source.is_local and (Path(source.location) / "preprocessor_config.json").is_file()
        why = f" that can be read ({first_line(error)})" if there else ""
        raise ModelError(
            f"The model {source.name!r} has no preprocessor_config.json{why}, so its image size, mean and standard deviation are unknown; "
            "copy it from the checkpoint that the model was made from."
        ) from None
    if image_size is not None:
        processor = _resized(processor, image_size)
    keeps_aspect = _keeps_aspect(processor)
    if keeps_aspect and crop_pct is None:
        return processor, None
    height, width = output_size(processor)
    shortest = _shortest_side((height, width), crop_pct) if crop_pct else _squashed_side(processor) or max(height, width)
    crop = {
        "size": {"shortest_edge": shortest},
        "crop_size": {"height": height, "width": width},
        "do_resize": True,
        "do_center_crop": True,
        "do_pad": False,
    }
    settings, own = processor.to_dict(), _changed(processor, crop)
    if settings.get("crop_pct") or not _keeps_aspect(own):  # ConvNeXt's multiplies `size` by its own ratio
        own = ViTImageProcessor(**{name: settings[name] for name in _PIXEL_SETTINGS if name in settings}, **crop)
    return own, None if keeps_aspect else shortest


def _timm(config: TimmWrapperConfig, image_size: int | None, crop_pct: float | None) -> tuple[BaseImageProcessor, int | None]:
    """As `_native`, for the processor that timm keeps in the configuration."""
    spec = config.pretrained_cfg
    if image_size is not None:
        spec["input_size"] = [3, image_size, image_size]
    if crop_pct is not None:
        spec["crop_pct"] = crop_pct
    squashed = spec.get("crop_mode") in ("squash", "border")
    if squashed:
        spec["crop_mode"] = "center"
    processor = TimmWrapperImageProcessor(pretrained_cfg=spec, architecture=config.architecture)
    settings = processor.data_config
    return processor, _shortest_side(settings["input_size"][1:], settings["crop_pct"]) if squashed else None


def _shortest_side(crop: Sequence[int], crop_pct: float) -> int:
    """The length that the shortest side of a picture is resized to before the crop, as timm rounds it."""
    return math.floor(max(crop) / crop_pct)


def _squashed_side(processor: BaseImageProcessor) -> int | None:
    """The side of the square that a processor squashes pictures to before it crops, as DeiT's does; None where it does not crop."""
    size = processor.to_dict().get("size") or {}
    return max(size["height"], size["width"]) if getattr(processor, "do_center_crop", None) and {"height", "width"} <= set(size) else None


def _resized(processor: BaseImageProcessor, image_size: int) -> BaseImageProcessor:
    """Give a processor another output size and keep its ratio of crop to resize."""
    ratio = image_size / min(output_size(processor))
    settings = processor.to_dict()
    changes: dict[str, Any] = {}
    if "shortest_edge" in settings.get("size", {}):
        changes["size"] = {"shortest_edge": round(settings["size"]["shortest_edge"] * ratio)}
    else:
        changes["size"] = {side: round(settings["size"][side] * ratio) for side in ("height", "width")}
    if settings.get("crop_size"):
        changes["crop_size"] = {"height": image_size, "width": image_size}
    return _changed(processor, changes)


def _changed(processor: BaseImageProcessor, changes: dict[str, Any]) -> BaseImageProcessor:
    return type(processor).from_dict({**processor.to_dict(), **changes})


def _keeps_aspect(processor: BaseImageProcessor) -> bool:
    """Whether a 4:1 picture loses its sides, and a tall one comes out in the shape of a wide one.

    Asking for the behaviour is safer than asking for the settings, since some processors ignore some of theirs.
    """
    try:
        return _fixed_shape(processor) and torch.equal(_process(processor, _wide(0)), _process(processor, _wide(255)))
    except ModelError:
        return False


def _fixed_shape(processor: BaseImageProcessor) -> bool:
    return _process(processor, _wide(0)).shape == _process(processor, _wide(0).transpose(Image.Transpose.ROTATE_90)).shape


def _wide(side: int) -> Image.Image:
    """A black picture of 128×32 pixels whose outer fifths have the grey value `side`."""
    picture = Image.new("RGB", (128, 32))
    for left in (0, 103):
        picture.paste((side, side, side), (left, 0, left + 25, 32))
    return picture


def _process(processor: BaseImageProcessor, picture: Image.Image) -> torch.Tensor:
    try:
        pixels = processor(picture, return_tensors="pt").get("pixel_values")
    except (ValueError, TypeError, KeyError, AttributeError):
        # Some processors fail on settings that they do not know, and one of them while it words its error.
        pixels = None
    if pixels is None or pixels.ndim != 4 or len(pixels) != 1:
        raise ModelError(
            f"The image processor {type(processor).__name__} does not turn one RGB picture into one tensor; it cannot be used."
        )
    return pixels[0]
