"""From a photo to the tensor that a checkpoint expects: the evaluation view, and the augmented training view.

Both are callables for `datasets.Dataset.with_transform` on batches `{"image": [PIL], "label": [int], "image_id": [str], ...}` and return
`{"pixel_values": [float32 tensor of shape 3 x height x width], "labels": [int]}`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from hf_finetune.data.images import to_rgb
from hf_finetune.errors import ConfigError, ModelError, did_you_mean

__all__ = ["AUGMENTATIONS", "EvalTransform", "InputSpec", "TrainTransform", "input_spec", "to_rgb"]

AUGMENTATIONS = ("none", "light", "medium")

_INTERPOLATIONS = {
    0: InterpolationMode.NEAREST,
    1: InterpolationMode.LANCZOS,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
    4: InterpolationMode.BOX,
    5: InterpolationMode.HAMMING,
}  # by the numbers of PIL.Image.Resampling

Batch = Mapping[str, list[Any]]


class InputSpec(NamedTuple):
    """What a checkpoint expects of its input.

    Attributes:
        height: Pixels.
        width: Pixels.
        interpolation: Of the resize.
        mean: Of red, green and blue, for pixels in [0, 1].
        std: Of red, green and blue, for pixels in [0, 1].
    """

    height: int
    width: int
    interpolation: InterpolationMode
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def input_spec(processor: Any) -> InputSpec:
    """Read what a checkpoint expects from its image processor.

    Height and width are those that the processor really gives for a photo, whichever of its settings (`size`, `crop_size`, `crop_pct`)
    decides.

    Args:
        processor: An image processor of transformers, or a `TimmWrapperImageProcessor`, which has `data_config` instead of settings.

    Returns:
        Size, interpolation and normalisation.

    Raises:
        ModelError: If the size of the output depends on the photo, so that photos cannot be stacked into a batch.
    """
    wide, tall = (_processed(processor, [Image.new("RGB", size)])[0] for size in ((640, 480), (480, 640)))
    if wide.shape != tall.shape:
        raise ModelError(
            f"The image processor {type(processor).__name__} gives {_shape(wide)} pixels for a wide photo and {_shape(tall)} for a tall "
            "one; set a fixed size with --image_size, or add a crop to its preprocessor_config.json."
        )
    height, width = wide.shape[1:]
    return InputSpec(height, width, _interpolation(processor), *_normalisation(processor))


def _shape(pixels: torch.Tensor) -> str:
    return f"{pixels.shape[2]} x {pixels.shape[1]}"


def _processed(processor: Any, images: list[Image.Image]) -> torch.Tensor:
    return processor(images=images, return_tensors="pt")["pixel_values"]


def _interpolation(processor: Any) -> InterpolationMode:
    config = getattr(processor, "data_config", None)
    if config is None:
        resample = getattr(processor, "resample", None)
        return _INTERPOLATIONS[2 if resample is None else int(resample)]
    names = {mode.value: mode for mode in InterpolationMode}
    return names.get(config["interpolation"], InterpolationMode.BICUBIC)  # timm's "random" has no single mode


def _normalisation(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    config = getattr(processor, "data_config", None)
    if config is not None:
        return tuple(config["mean"]), tuple(config["std"])
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if getattr(processor, "do_normalize", False):
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    # a rescale other than 1/255 is the same as another mean and deviation of pixels in [0, 1]
    factor = 255 * processor.rescale_factor if getattr(processor, "do_rescale", False) else 255.0
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)  # type: ignore[return-value]


class EvalTransform:
    """The checkpoint's own preprocessing, exactly as `pipeline("image-classification")` runs it, after making photos RGB and upright.

    Args:
        processor: The checkpoint's image processor.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Return `pixel_values` and `labels` of a batch of rows."""
        pixels = _processed(self.processor, [to_rgb(image) for image in batch["image"]])
        return {"pixel_values": list(pixels), "labels": list(batch["label"])}


class TrainTransform:
    """Augmented views, drawn anew for every photo and epoch.

    What is drawn for a photo depends on the seed, the epoch and its `image_id`, and on nothing else. Resuming in the middle of an epoch,
    another number of loader workers, or another number of processes therefore give identical tensors, and the global random state is
    left as it was. The epoch lives in shared memory, so that persistent loader workers see `set_epoch` too.

    Args:
        processor: The checkpoint's image processor.
        augmentation: `"none"`: the evaluation view. `"light"`: a random crop of 50 to 100 % of the area, with an aspect between 3:4 and
            4:3, resized to the checkpoint's size, and a horizontal flip of every second photo. `"medium"`: `light`, then
            a rotation of up to 15 degrees and a zoom of up to 10 %, with the checkpoint's mean colour around the photo.
        seed: At least 0.
        views: Draw so many views of each photo and go round among them, one an epoch; None draws new ones in every epoch.

    Raises:
        ConfigError: If `augmentation` is not one of the three.
        ModelError: If the image processor does more than resize, crop, rescale and normalise, which `light` and `medium` cannot repeat.
    """

    def __init__(self, processor: Any, augmentation: str, seed: int, views: int | None = None) -> None:
        if augmentation not in AUGMENTATIONS:
            raise ConfigError(
                f"--augmentation {augmentation} is not known; choose one of {', '.join(AUGMENTATIONS)}."
                + did_you_mean(augmentation, AUGMENTATIONS)
            )
        self.seed = int(seed)  # a NumPy integer would print, and so draw, differently
        self.augmentation, self.views = augmentation, views
        self.evaluation = EvalTransform(processor)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if augmentation == "none":
            return
        self.spec = input_spec(processor)
        self._augment = _augmentation(self.spec, strong=augmentation == "medium")
        self._mean, self._std = (255 * np.asarray(values, np.float32)[:, None, None] for values in (self.spec.mean, self.spec.std))
        self._check_normalisation(processor)

    @property
    def epoch(self) -> int:
        """The epoch whose views are drawn, counted from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw the views of `epoch`, at least 0, from now on, in loader workers too."""
        self._epoch.fill_(epoch)

    @property
    def view(self) -> int:
        """The view of a photo that is drawn now: the epoch, or its remainder where there are only so many views."""
        return self.epoch % self.views if self.views else self.epoch

    def at_view(self, view: int) -> TrainTransform:
        """Return a transform that always draws `view`."""
        fixed = copy.copy(self)
        fixed._epoch = torch.tensor(view)
        return fixed

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainTransform:
        # `datasets` copies a data set with its transform on every `select`; a copy with an epoch of its own would never advance
        return self

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Return `pixel_values` and `labels` of a batch of rows."""
        if self.augmentation == "none":
            return self.evaluation(batch)
        pixels = [self._view(image, image_id) for image, image_id in zip(batch["image"], batch["image_id"], strict=True)]
        return {"pixel_values": pixels, "labels": list(batch["label"])}

    def _view(self, image: Image.Image, image_id: str) -> torch.Tensor:
        image = to_rgb(image)
        with torch.random.fork_rng(devices=[]):
            # the CPU generator alone: torch.manual_seed would reseed every accelerator too
            torch.default_generator.manual_seed(_stable_seed(self.seed, self.view, image_id))
            image = self._augment(image)
        return self._normalised(image)

    def _normalised(self, image: Image.Image) -> torch.Tensor:
        # in NumPy: on arrays this small torch's thread pool costs more than it saves, and loaders run beside training
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray((pixels - self._mean) / self._std))

    def _check_normalisation(self, processor: Any) -> None:
        plain = Image.new("RGB", (self.spec.width, self.spec.height), (40, 120, 220))
        if not torch.allclose(self._normalised(plain), _processed(processor, [plain])[0], atol=1e-4):
            raise ModelError(
                f"The image processor {type(processor).__name__} does more than resize, crop, rescale and normalise, so its training view "
                "cannot be augmented; use --augmentation none."
            )


def _augmentation(spec: InputSpec, *, strong: bool) -> Callable[[Image.Image], Image.Image]:
    size = (spec.height, spec.width)
    steps: list[Any] = [
        v2.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), interpolation=spec.interpolation, antialias=True),
        v2.RandomHorizontalFlip(0.5),
    ]
    if strong:
        fill = [min(255, max(0, round(255 * value))) for value in spec.mean]
        steps.append(v2.RandomAffine(degrees=15, scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR, fill=fill))
    return v2.Compose(steps)


def _stable_seed(*parts: object) -> int:
    """Return a seed of 63 bits that depends on the text of `parts` alone, in every process (unlike `hash`)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
