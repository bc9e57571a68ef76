"""What `--augmentation` takes, as text: `none`, `light`, `medium`, `randaugment`, `trivialaugment`, or parts such as `flip+rotation`."""

from __future__ import annotations

from typing import NamedTuple

from hf_finetune.errors import ConfigError, did_you_mean, listed

# part of a view → what it does; the parts may be combined with `+`
PARTS = {
    "crop": "a random crop of 50 to 100 % of the area, with an aspect between 3:4 and 4:3, resized to the checkpoint's size",
    "flip": "every second photo mirrored",
    "rotation": "a rotation of up to 15 degrees, with the mean colour around the photo",
    "scale": "a zoom of up to 10 %, in or out",
}


class Augmentation(NamedTuple):
    """What a random view is made of.

    Attributes:
        parts: Names of `PARTS`.
        policy: The policy of torchvision that follows them: `randaugment`, `trivialaugment` or None.
        strength: How many times as far as in `PARTS` crop, rotation and scale go, at least 1.
    """

    parts: frozenset[str] = frozenset()
    policy: str | None = None
    strength: int = 1


_CROP_AND_FLIP = frozenset({"crop", "flip"})
_NAMED = {
    "none": Augmentation(),
    "light": Augmentation(frozenset(PARTS)),
    "medium": Augmentation(frozenset(PARTS), strength=2),
    "randaugment": Augmentation(_CROP_AND_FLIP, "randaugment"),
    "trivialaugment": Augmentation(_CROP_AND_FLIP, "trivialaugment"),
}
AUGMENTATIONS = tuple(_NAMED)


def parse_augmentation(text: str) -> Augmentation:
    """Read what `--augmentation` takes: a name of `AUGMENTATIONS`, or parts joined by `+`, such as `flip+rotation`.

    Raises:
        ConfigError: If it is neither; the text completes "NAME must be ...".
    """
    if text in _NAMED:
        return _NAMED[text]
    parts = text.split("+")
    if len(set(parts)) == len(parts) and set(parts) <= set(PARTS):
        return Augmentation(frozenset(parts))
    wrong = next((part for part in parts if part not in PARTS), text)
    hint = did_you_mean(wrong, [*AUGMENTATIONS, *PARTS])
    raise ConfigError(f"must be one of {listed(AUGMENTATIONS, 9)}, or {listed(PARTS, 9)} joined by +, not {text!r}.{hint}")
