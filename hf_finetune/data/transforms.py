"""From a photo to the tensor that a checkpoint expects: the evaluation view, and the augmented training view.

Both are callables for `datasets.Dataset.with_transform` on batches `{"image": [PIL], "label": [int], "image_id": [str], ...}` and return
`{"pixel_values": [float32 tensor of shape 3 x height x width], "labels": [int]}`.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from hf_finetune.data.augmentation import RandomView, seeded, stable_seed
from hf_finetune.data.augmentation_text import parse_augmentation
from hf_finetune.data.images import to_rgb
from hf_finetune.errors import ConfigError, ModelError

__all__ = ["EvalTransform", "InputSpec", "TrainTransform", "input_spec", "to_rgb"]

_INTERPOLATIONS = {
    0: InterpolationMode.NEAREST,
    1: InterpolationMode.LANCZOS,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
    4: InterpolationMode.BOX,
    5: InterpolationMode.HAMMING,
}  # by the numbers of PIL.Image.Resampling

# whose code decides what a photo becomes
_PACKAGES = ("torch", "torchvision", "transformers", "timm", "pillow")

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
        return self.of_views(_processed(self.processor, [to_rgb(image) for image in batch["image"]]).unbind(), batch)

    def of_views(self, views: Iterable[torch.Tensor], batch: Batch) -> dict[str, list[Any]]:
        """Return what a call returns for a batch whose views are there already."""
        return {"pixel_values": list(views), "labels": list(batch["label"])}

    @property
    def identity(self) -> str:
        """What decides which pixels a photo becomes: the processor's settings, and the versions of the packages that carry them out."""
        own = getattr(self.processor, "data_config", None) or self.processor.to_dict()
        versions = [importlib.metadata.version(package) for package in _PACKAGES]
        return type(self.processor).__name__ + json.dumps([own, versions], sort_keys=True, default=str)


class TrainTransform:
    """Augmented views, drawn anew for every photo and epoch.

    What is drawn for a photo depends on the seed, the epoch and its `image_id`, and on nothing else. Resuming in the middle of an epoch,
    another number of loader workers, or another number of processes therefore give identical tensors, and the global random state is
    left as it was. The epoch lives in shared memory, so that persistent loader workers see `set_epoch` too.

    Args:
        processor: The checkpoint's image processor.
        augmentation: What `--augmentation` takes, see `hf_finetune.data.augmentation_text`: `none` (the evaluation view), `light` (crop,
            flip, rotation and scale), `medium` (twice as far), `randaugment`, `trivialaugment`, or parts joined by `+`.
        seed: At least 0.
        views: Draw so many views of each photo and go round among them, one an epoch; None draws new ones in every epoch.
        random_erasing: Probability that a rectangle of a view, 2 to 33 % of it, becomes the mean colour (Zhong et al. 2017,
            arXiv:1708.04896).
        with_seeds: Whether rows also carry `view_seed`, a number that stands for the view, from which what mixes rows can draw.

    Raises:
        ConfigError: If `augmentation` is none of these.
        ModelError: If the image processor does more than resize, crop, rescale and normalise, which a random crop cannot repeat.
    """

    def __init__(
        self,
        processor: Any,
        augmentation: str,
        seed: int,
        views: int | None = None,
        *,
        random_erasing: float = 0.0,
        with_seeds: bool = False,
    ) -> None:
        try:
            self._parsed = parse_augmentation(augmentation)
        except ConfigError as error:
            raise ConfigError(f"--augmentation {error}") from None
        self.seed = int(seed)  # a NumPy integer would print, and so draw, differently
        self.augmentation, self.views, self.with_seeds = augmentation, views, with_seeds
        self.evaluation = EvalTransform(processor)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.random, self.crops = bool(self._parsed.parts or random_erasing), "crop" in self._parsed.parts
        self.spec = input_spec(processor)
        self._random_view = RandomView(self._parsed, (self.spec.height, self.spec.width), self.spec.interpolation, self.spec.mean)
        self._erasing = v2.RandomErasing(p=random_erasing, value=0) if random_erasing else None
        self._mean, self._std = (255 * np.asarray(values, np.float32) for values in (self.spec.mean, self.spec.std))
        if self.crops:
            self._check_normalisation(processor)

    def __repr__(self) -> str:
        """Return the settings that decide what is drawn, for the names of cached views."""
        parts, policy, strength = self._parsed
        return f"{'+'.join(sorted(parts))} {policy} {strength} {self.seed}" + (f" erasing {self._erasing.p}" if self._erasing else "")

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
        """Return `pixel_values` and `labels` of a batch of rows, and `view_seed` where it is asked for."""
        if not self.crops:
            return self.of_views(self.evaluation(batch)["pixel_values"], batch)
        seeds = self._seeds(batch)
        views = [self._normalised(self._random_view(to_rgb(image), seed)) for image, seed in zip(batch["image"], seeds, strict=True)]
        return self._rows(views, seeds, batch)

    def of_views(self, views: Iterable[torch.Tensor], batch: Batch) -> dict[str, list[Any]]:
        """Return what a call returns for a batch whose evaluation views are there already, where there are no crops."""
        seeds = self._seeds(batch)
        return self._rows([self._random_view(view, seed) for view, seed in zip(views, seeds, strict=True)], seeds, batch)

    def _seeds(self, batch: Batch) -> list[int]:
        return [stable_seed(self.seed, self.view, image_id) for image_id in batch["image_id"]]

    def _rows(self, views: list[torch.Tensor], seeds: list[int], batch: Batch) -> dict[str, list[Any]]:
        if self._erasing is not None:
            views = [self._erased(view, seed) for view, seed in zip(views, seeds, strict=True)]
        rows = self.evaluation.of_views(views, batch)
        return {**rows, "view_seed": seeds} if self.with_seeds else rows

    def _erased(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        with seeded(stable_seed(seed, "erasing")):
            return self._erasing(pixels)  # type: ignore[misc]

    def _normalised(self, image: Image.Image) -> torch.Tensor:
        # in NumPy, channel by channel: on arrays this small torch's thread pool costs more than it saves
        pixels = np.asarray(image)
        normalised = np.empty((3, *pixels.shape[:2]), np.float32)
        for channel, (mean, std) in enumerate(zip(self._mean, self._std, strict=True)):
            np.subtract(pixels[..., channel], mean, out=normalised[channel])
            normalised[channel] /= std
        return torch.from_numpy(normalised)

    def _check_normalisation(self, processor: Any) -> None:
        plain = Image.new("RGB", (self.spec.width, self.spec.height), (40, 120, 220))
        if not torch.allclose(self._normalised(plain), _processed(processor, [plain])[0], atol=1e-4):
            raise ModelError(
                f"The image processor {type(processor).__name__} does more than resize, crop, rescale and normalise, so its training view "
                "cannot be augmented; use --augmentation none."
            )
