"""Random views: what is drawn for a photo, and what that makes of it, as two steps, so that photos can be worked on in several threads.

torchvision draws from the one global generator of the process. All draws therefore happen under a lock, with that generator seeded for
the photo and given back as it was; crops, flips and rotations that have been drawn are then applied outside the lock. The policies of
torchvision draw while they apply, so they stay inside it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torchvision.transforms import InterpolationMode, v2

if TYPE_CHECKING:
    from PIL import Image

    from hf_finetune.data.augmentation_text import Augmentation

Pixels = TypeVar("Pixels", "Image.Image", torch.Tensor)

_LOCK = threading.Lock()


def stable_seed(*parts: object) -> int:
    """Return a seed of 63 bits that depends on the text of `parts` alone, in every process (unlike `hash`)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generator, for this thread alone, and give it back as it was."""
    with _LOCK, torch.random.fork_rng(devices=[]):
        # the CPU generator alone: torch.manual_seed would reseed every accelerator too
        torch.default_generator.manual_seed(seed)
        yield


class RandomView:
    """Draws and applies one named augmentation.

    Args:
        augmentation: Its parts, strength and policy. With the part `crop`, a view is made from a photo; without, from the normalised
            pixels of the evaluation view, in which the mean colour is 0. The policies `randaugment` (Cubuk et al. 2019, arXiv:1909.13719)
            and `trivialaugment` (Müller and Hutter 2021, arXiv:2103.10158) have torchvision's settings.
        size: Height and width of the view.
        interpolation: Of the resize.
        mean: The mean colour, of red, green and blue, in [0, 1].
    """

    def __init__(
        self,
        augmentation: Augmentation,
        size: tuple[int, int],
        interpolation: InterpolationMode,
        mean: tuple[float, ...],
    ) -> None:
        parts, strength = augmentation.parts, augmentation.strength
        fill = [min(255, max(0, round(255 * value))) for value in mean] if "crop" in parts else 0
        self._steps: list[Any] = []
        if "crop" in parts:
            crop = v2.RandomResizedCrop(
                size, scale=(0.5 / strength, 1.0), ratio=(3 / 4, 4 / 3), interpolation=interpolation, antialias=True
            )
            self._steps.append(crop)
        if "flip" in parts:
            self._steps.append(v2.RandomHorizontalFlip(0.5))
        if parts & {"rotation", "scale"}:
            degrees, zoom = (15 * strength if "rotation" in parts else 0), 0.1 * strength
            scale = (1 - zoom, 1 + zoom) if "scale" in parts else None
            self._steps.append(v2.RandomAffine(degrees=degrees, scale=scale, interpolation=InterpolationMode.BILINEAR, fill=fill))
        policies = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
        self._policy = policies[augmentation.policy](interpolation=InterpolationMode.BILINEAR, fill=fill) if augmentation.policy else None

    def __call__(self, image: Pixels, seed: int) -> Pixels:
        """Return the view that `seed` stands for, of an RGB photo or of pixels [3, H, W] float32; the same in every thread and process."""
        drawn = []
        with seeded(seed):
            for step in self._steps:
                if not isinstance(step, v2.RandomHorizontalFlip) or torch.rand(1) < step.p:
                    drawn.append((step, step.make_params([image])))
        for step, parameters in drawn:
            image = step.transform(image, parameters)
        if self._policy is not None:
            with seeded(stable_seed(seed, "policy")):
                image = self._policy(image)
        return image
