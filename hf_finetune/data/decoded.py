"""Training photos decoded once: RGB bytes in a memory-mapped file, from which every epoch draws its random views.

Decoding gives the same pixels every time. Photos much larger than the model's input are decoded by the JPEG decoder at a half, a quarter
or an eighth of their size and kept at twice the side of that input, so that even the smallest random crop is scaled down, not up.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from hf_finetune.data.images import to_rgb
from hf_finetune.data.stored_arrays import ArrayStore, cache_root, data_fingerprint, digest
from hf_finetune.data.transforms import TrainTransform

_VERSION = 1  # of the files; raise it when the same photos would give other pixels
_CHUNK = 64  # photos decoded before they are written, which bounds the memory
_MARGIN = 2  # kept side / side of the model's input; the smallest crop of a random view is 0.61 of a side


def photo_directory() -> Path:
    """Return the folder of the decoded photos."""
    return cache_root() / "photos"


class DecodedPhotos(torch.utils.data.Dataset):
    """The rows of a split under a training transform, from decoded photos.

    Args:
        split: Rows with `image`, `label` and `image_id`.
        transform: Draws the views; its augmentation is not `none`, whose views must be exact.
        store: Where the pixels lie.

    Raises:
        StoreError: If the pixels cannot be kept.
    """

    def __init__(self, split: datasets.Dataset, transform: TrainTransform, store: ArrayStore) -> None:
        self.transform = transform
        plain = split.with_format(None)
        self.labels, self.image_ids = plain["label"][:], plain["image_id"][:]
        side = _MARGIN * max(transform.spec.height, transform.spec.width)
        name = digest(str(_VERSION), data_fingerprint(split), str(side))
        sizes, pixels = store.open(f"{name}-sizes"), store.open(name)
        if sizes is None or pixels is None:
            sizes, pixels = _decode(split, side, name, store)
        self.sizes, self.pixels = np.array(sizes), pixels
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])

    def __getstate__(self) -> dict[str, Any]:
        # a loader process that is not forked maps the file itself, and does not get a copy of what it holds
        return {**self.__dict__, "pixels": self.pixels.filename}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "pixels": np.load(state["pixels"], mmap_mode="r")}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return `pixel_values` and `labels` of the rows."""
        batch = {"image": [self._photo(row) for row in rows]}
        batch |= {"label": [self.labels[row] for row in rows], "image_id": [self.image_ids[row] for row in rows]}
        drawn = self.transform(batch)
        return [dict(zip(drawn, values, strict=True)) for values in zip(*drawn.values(), strict=True)]

    def _photo(self, row: int) -> Image.Image:
        height, width = self.sizes[row]
        pixels = self.pixels[self.offsets[row] : self.offsets[row + 1]].reshape(height, width, 3)
        return Image.fromarray(np.array(pixels))


def _decode(split: datasets.Dataset, side: int, name: str, store: ArrayStore) -> tuple[np.memmap, np.memmap]:
    """Return height and width of every photo, [N, 2] int64, and the pixels of all of them, one after another, as uint8."""
    rows = split.select_columns(["image"]).with_format("arrow")
    chunks = [range(start, min(start + _CHUNK, len(split))) for start in range(0, len(split), _CHUNK)]
    with ThreadPoolExecutor() as pool:

        def each(function: Callable[[dict[str, Any], int], Any]) -> Iterator[Any]:
            for chunk in chunks:
                yield from pool.map(function, rows[chunk.start : chunk.stop]["image"].to_pylist(), [side] * len(chunk))

        sizes = np.array(list(each(_kept_size)), np.int64)
        pixels = store.write(name, (int(sizes.prod(1).sum()) * 3,), "uint8", each(_pixels))
    return store.write(f"{name}-sizes", sizes.shape, "int64", [sizes]), pixels


def _open(stored: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"])


def _kept_size(stored: dict[str, Any], side: int) -> tuple[int, int]:
    """Return height and width of a photo, upright, with its shortest side at most `side`; only its header is read."""
    with _open(stored) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # orientations that lie on their side
            width, height = height, width
    scale = min(1.0, side / min(height, width))
    return round(height * scale), round(width * scale)


def _pixels(stored: dict[str, Any], side: int) -> np.ndarray:
    height, width = _kept_size(stored, side)
    with _open(stored) as image:
        image.draft("RGB", (side, side))  # of a JPEG: decode it at the smallest scale that is not below this size
        image.load()
        upright = to_rgb(image)
    if upright.size != (width, height):
        upright = upright.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(upright).reshape(-1)
