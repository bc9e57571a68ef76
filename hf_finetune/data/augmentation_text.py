"""What `--augmentation` takes, as text: `none`, `light`, `medium`, `randaugment`, `trivialaugment`, or parts such as `flip+rotation`."""

from __future__ import annotations

from hf_finetune.errors import ConfigError, did_you_mean, listed

# part of a view → what it does; the parts may be combined with `+`
PARTS = {
    "crop": "a random crop of 50 to 100 % of the area, with an aspect between 3:4 and 4:3, resized to the checkpoint's size",
    "flip": "every second photo mirrored",
    "rotation": "a rotation of up to 15 degrees, with the mean colour around the photo",
    "scale": "a zoom of up to 10 %, in or out",
}
# name → its parts, and the policy of torchvision that follows them
_NAMED: dict[str, tuple[frozenset[str], str | None]] = {
    "none": (frozenset(), None),
    "light": (frozenset({"crop", "flip"}), None),
    "medium": (frozenset(PARTS), None),
    "randaugment": (frozenset({"crop", "flip"}), "randaugment"),
    "trivialaugment": (frozenset({"crop", "flip"}), "trivialaugment"),
}
AUGMENTATIONS = tuple(_NAMED)


def augmentation_parts(text: str) -> tuple[frozenset[str], str | None]:
    """Read what `--augmentation` takes: a name of `AUGMENTATIONS`, or parts joined by `+`, such as `flip+rotation`.

    Returns:
        Names of `PARTS`, and `randaugment`, `trivialaugment` or None.

    Raises:
        ConfigError: If it is neither; the text completes "NAME must be ...".
    """
    if text in _NAMED:
        return _NAMED[text]
    parts = text.split("+")
    if len(set(parts)) == len(parts) and set(parts) <= set(PARTS):
        return frozenset(parts), None
    wrong = next((part for part in parts if part not in PARTS), text)
    hint = did_you_mean(wrong, [*AUGMENTATIONS, *PARTS])
    raise ConfigError(f"must be one of {listed(AUGMENTATIONS, 9)}, or {listed(PARTS, 9)} joined by +, not {text!r}.{hint}")
