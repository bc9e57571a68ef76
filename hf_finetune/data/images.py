"""Photos of any kind made RGB, and the check that finds every damaged one before training starts instead of in the middle of it."""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from hf_finetune.data.notices import counted, note
from hf_finetune.data.stored_arrays import cache_root, data_fingerprint, digest
from hf_finetune.errors import DataError, listed

logger = logging.getLogger(__name__)

MINIMUM_SIDE = 8  # pixels; anything smaller is a broken download or a tracking pixel, not a photo

_NAMED = 10  # damaged images named in a message; the others are counted
_CHUNK = 256  # rows read from Arrow at a time, which bounds the memory of the check
_VERSION = 1  # of the verdicts in the cache; raise it when the check finds something new
# what Pillow's decoders raise on broken files: mostly OSError, and the others from formats whose parsers trust their input
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    IndexError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Verdict(NamedTuple):
    """What the check found in one split: row → reason, and the rows of images with several frames."""

    damaged: dict[int, str]
    animated: list[int]


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` as 8-bit RGB, upright: EXIF orientation applied, first frame of an animation.

    Palette, CMYK, grey and alpha images become what Pillow's `convert("RGB")` makes of them (alpha is dropped), as the `pipeline` of
    transformers does. Images of 16 or 32 bits are scaled to 0..255, where `convert` would clip nearly all of them to white:
    16-bit integers from 0..65535, 32-bit integers and floats from the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds
    them, else from their own range.

    Args:
        image: Any Pillow image.

    Returns:
        A Pillow image of mode RGB; the same object where nothing had to be done.
    """
    if getattr(image, "is_animated", False) and image.tell() != 0:
        image.seek(0)
    if image.getexif().get(0x0112, 1) != 1:  # Orientation
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_to_rgb(image)
    if image.mode == "LAB":
        return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    if image.mode in ("P", "PA", "La", "RGBa"):  # the way through alpha gives the same colours, without Pillow's warning
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = 0.0, 65535.0
    if not image.mode.startswith("I;16"):
        ceilings = ([1.0] if image.mode == "F" else []) + [255.0, 65535.0]
        fitting = [ceiling for ceiling in ceilings if values.min() >= 0 and values.max() <= ceiling]
        low, high = (0.0, fitting[0]) if fitting else (values.min(), values.max())
    grey = np.rint((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def check_images(dataset: datasets.DatasetDict, skip_bad_images: bool = False, notices: list[str] | None = None) -> datasets.DatasetDict:
    """Decode every image once and report all that cannot be used together.

    An image is damaged when Pillow cannot decode all of it, when its file is missing, or when a side is below 8 pixels. The verdict is kept
    in the cache of `datasets`, keyed by the data, so that a second run on the same data reads a small file instead.

    Args:
        dataset: Splits with the columns `image` (a `datasets.Image`) and `image_id`.
        skip_bad_images: Leave damaged images out, with one notice, instead of raising.
        notices: Receives a sentence about images left out, and one about animated images.

    Returns:
        The same splits, without damaged images.

    Raises:
        DataError: If an image is damaged and `skip_bad_images` is off; it counts all and names the first ones with their reasons.
    """
    verdicts = {name: _verdict(split) for name, split in dataset.items()}
    _note_animated(dataset, verdicts, notices)
    damaged = {name: verdict.damaged for name, verdict in verdicts.items()}
    count = sum(map(len, damaged.values()))
    if count == 0:
        return dataset
    total = sum(map(len, dataset.values()))
    named = listed((f"{image_id} in {name} ({damaged[name][row]})" for name, row, image_id in _identified(dataset, damaged)), _NAMED)
    them = "it" if count == 1 else "them"
    if not skip_bad_images:
        raise DataError(
            f"{count} of {total} images cannot be used: {named}. Mend or remove {them}, or add --skip_bad_images, which leaves {them} out."
        )
    note(logger, notices, f"{count} of {total} images left out because they are damaged ({_per_split(damaged)}): {named}.")
    return datasets.DatasetDict({name: _without(split, damaged[name]) for name, split in dataset.items()})


def _note_animated(dataset: datasets.DatasetDict, verdicts: dict[str, Verdict], notices: list[str] | None) -> None:
    animated = {name: verdict.animated for name, verdict in verdicts.items()}
    count = sum(map(len, animated.values()))
    if count == 0:
        return
    named = listed((f"{image_id} in {name}" for name, _, image_id in _identified(dataset, animated)), _NAMED)
    note(logger, notices, f"{counted(count, 'animated image')}, of which only the first frame is used ({_per_split(animated)}): {named}.")


def _per_split(rows: Mapping[str, Collection[int]]) -> str:
    return ", ".join(f"{name}: {len(found)}" for name, found in rows.items() if found)


def _identified(dataset: datasets.DatasetDict, rows: Mapping[str, Iterable[int]]) -> Iterator[tuple[str, int, str]]:
    """Yield `(split, row, image_id)` of the given rows, without decoding an image."""
    for name, found in rows.items():
        identities = dataset[name].select_columns(["image_id"])
        for row in sorted(found):
            yield name, row, identities[row]["image_id"]


def _without(split: datasets.Dataset, damaged: Mapping[int, str]) -> datasets.Dataset:
    return split.select([row for row in range(len(split)) if row not in damaged]) if damaged else split


def _verdict(split: datasets.Dataset) -> Verdict:
    """Return the verdict on `split`, from the cache where the same data were checked before."""
    path = _cache_path(split)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Verdict({int(row): reason for row, reason in stored["damaged"].items()}, stored["animated"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError) as error:
        logger.info("The verdict in %s cannot be read (%s); the images are checked again.", path, error)
    verdict = _inspect_all(split)
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(verdict._asdict()), encoding="utf-8")
        temporary.replace(path)  # in one step: several processes may check the same data
    except OSError as error:
        logger.info("The verdict on the images cannot be kept in %s (%s); the next run checks them again.", path.parent, error)
    return verdict


def _cache_path(split: datasets.Dataset) -> Path:
    return cache_root() / f"images-{digest(str(_VERSION), data_fingerprint(split))}.json"


def _inspect_all(split: datasets.Dataset) -> Verdict:
    rows = split.select_columns(["image"]).with_format("arrow")
    verdict = Verdict({}, [])
    with ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1)) as pool:
        for start in range(0, len(split), _CHUNK):
            images = rows[start : start + _CHUNK]["image"].to_pylist()
            for row, (reason, animated) in enumerate(pool.map(_inspect, images), start):
                if reason:
                    verdict.damaged[row] = reason
                elif animated:
                    verdict.animated.append(row)
    return verdict


def _inspect(stored: dict[str, Any] | None) -> tuple[str, bool]:
    """Return why the image cannot be used (an empty string where it can), and whether it has several frames."""
    if stored is None or (stored["bytes"] is None and not stored["path"]):
        return "no image in this row", False
    try:
        with Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]) as image:
            width, height = image.size
            # photos of some cameras hold a preview after the photo (MPO), which makes them no animation
            animated = getattr(image, "is_animated", False) and image.format != "MPO"
            image.draft(None, (1, 1))  # a JPEG is decoded at 1/8 of its size: all its bytes are still read
            image.load()
    except _DECODING_ERRORS as error:
        return _reason(error), False
    if min(width, height) < MINIMUM_SIDE:
        return f"{width} x {height} pixels, at least {MINIMUM_SIDE} x {MINIMUM_SIDE} are needed", False
    return "", animated


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    text = str(error)
    if "truncated" in text or "Truncated" in text:
        return "truncated"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
