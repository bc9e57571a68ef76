"""Photos decoded once: bytes in a memory-mapped file, from which every epoch takes its views.

Photos that are cropped at random are kept as they are decoded. Those much larger than the model's input are decoded by the JPEG decoder at
a half, a quarter or an eighth of their size and kept at twice the side of that input, so that even the smallest crop of the usual size is
scaled down, not up. Of all other photos the evaluation view is kept, from which its tensors come back bit for bit.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from hf_finetune.data.images import to_rgb
from hf_finetune.data.stored_arrays import ArrayStore, StoreError, cache_root, data_fingerprint, digest
from hf_finetune.data.transforms import EvalTransform, TrainTransform

_VERSION = 1  # of the files; raise it when the same photos would give other pixels
_CHUNK = 64  # photos decoded before they are written, which bounds the memory
_MARGIN = 2  # kept side / side of the model's input; the smallest crop of a random view is 0.61 of a side


def photo_directory() -> Path:
    """Return the folder of the decoded photos."""
    return cache_root() / "photos"


class _KeptPhotos(torch.utils.data.Dataset, ABC):
    """The rows of a split, from an array of bytes."""

    pixels: np.memmap

    def __init__(self, split: datasets.Dataset) -> None:
        plain = split.with_format(None)
        self.labels, self.image_ids = plain["label"][:], plain["image_id"][:]

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
        made = self._made(rows, {"label": [self.labels[row] for row in rows], "image_id": [self.image_ids[row] for row in rows]})
        return [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]

    @abstractmethod
    def _made(self, rows: Sequence[int], batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return what the transform makes of the rows, whose labels and identities are in `batch`."""


class DecodedPhotos(_KeptPhotos):
    """The rows of a split under a transform that crops at random, from decoded photos.

    Args:
        split: Rows with `image`, `label` and `image_id`.
        transform: Draws the views.
        store: Where the pixels lie.

    Raises:
        StoreError: If the pixels cannot be kept.
    """

    def __init__(self, split: datasets.Dataset, transform: TrainTransform, store: ArrayStore) -> None:
        super().__init__(split)
        self.transform = transform
        side = _MARGIN * max(transform.spec.height, transform.spec.width)
        name = digest(str(_VERSION), data_fingerprint(split), str(side))
        sizes, pixels = store.open(f"{name}-sizes"), store.open(name)
        if sizes is None or pixels is None:
            sizes, pixels = _decode(split, side, name, store)
        self.sizes, self.pixels = np.array(sizes), pixels
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])

    def _made(self, rows: Sequence[int], batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return self.transform({**batch, "image": [self._photo(row) for row in rows]})

    def _photo(self, row: int) -> Image.Image:
        height, width = self.sizes[row]
        pixels = self.pixels[self.offsets[row] : self.offsets[row + 1]].reshape(height, width, 3)
        return Image.fromarray(np.array(pixels))


class KeptViews(_KeptPhotos):
    """The rows of a split under a transform that does not crop at random, from evaluation views that were computed once.

    An image processor resizes and crops bytes, and then makes one float of each of the 256 values that a colour has there. So the bytes
    and a table of these floats give its tensors bit for bit, in a quarter of their size.

    Args:
        split: Rows with `image`, `label` and `image_id`.
        transform: Takes the evaluation view, as it is or as the beginning of a random one.
        store: Where the pixels lie.

    Raises:
        StoreError: If the pixels cannot be kept, or the image processor works in another way.
    """

    def __init__(self, split: datasets.Dataset, transform: EvalTransform | TrainTransform, store: ArrayStore) -> None:
        super().__init__(split)
        self.transform = transform
        evaluation = transform.evaluation if isinstance(transform, TrainTransform) else transform
        name = digest(str(_VERSION), evaluation.identity)
        self.table = _value_table(evaluation, name, store)
        name = digest(name, data_fingerprint(split))
        self.pixels = _views(split, evaluation, self.table, name, store)

    def _made(self, rows: Sequence[int], batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return self.transform.of_views([self._view(row) for row in rows], batch)

    def _view(self, row: int) -> torch.Tensor:
        values = self.pixels[row]
        view = np.empty(values.shape, np.float32)
        for channel, table in enumerate(self.table):
            np.take(table, values[channel], out=view[channel])
        return torch.from_numpy(view)


def _value_table(evaluation: EvalTransform, name: str, store: ArrayStore) -> np.ndarray:
    """Return what the image processor makes of every byte of every colour, [3, 256] float32."""
    if (found := store.open(name)) is not None:
        return np.array(found)
    greys = [evaluation({"image": [Image.new("RGB", (64, 64), (value,) * 3)], "label": [0]}) for value in range(256)]
    table = np.stack([grey["pixel_values"][0][:, 0, 0].numpy() for grey in greys], 1)
    store.write(name, table.shape, "float32", [table])
    return table


def _views(split: datasets.Dataset, evaluation: EvalTransform, table: np.ndarray, name: str, store: ArrayStore) -> np.memmap:
    """Return the evaluation views of all photos, [N, 3, H, W] uint8."""
    if (found := store.open(name)) is not None:
        return found
    photos = split.with_transform(evaluation)
    with ThreadPoolExecutor() as pool:
        views = (
            view
            for chunk in _chunks(len(split))
            for view in pool.map(lambda row: _bytes_of(photos[row]["pixel_values"].numpy(), table), chunk)
        )
        return store.write(name, (len(split), *photos[0]["pixel_values"].shape), "uint8", views)


def _bytes_of(view: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the bytes of a view, both of shape [3, H, W]."""
    values = np.empty(view.shape, np.uint8)
    for colour, line, found in zip(view, table, values, strict=True):
        found[...] = np.searchsorted(line, colour).clip(max=255)
        if not np.array_equal(line[found], colour):
            raise StoreError("the image processor does more than to give each of the 256 values of a colour one float")
    return values


def _decode(split: datasets.Dataset, side: int, name: str, store: ArrayStore) -> tuple[np.memmap, np.memmap]:
    """Return height and width of every photo, [N, 2] int64, and the pixels of all of them, one after another, as uint8."""
    rows = split.select_columns(["image"]).with_format("arrow")
    with ThreadPoolExecutor() as pool:

        def each(function: Callable[[dict[str, Any], int], Any]) -> Iterator[Any]:
            for chunk in _chunks(len(split)):
                yield from pool.map(function, rows[chunk.start : chunk.stop]["image"].to_pylist(), [side] * len(chunk))

        sizes = np.array(list(each(_kept_size)), np.int64)
        pixels = store.write(name, (int(sizes.prod(1).sum()) * 3,), "uint8", each(_pixels))
    return store.write(f"{name}-sizes", sizes.shape, "int64", [sizes]), pixels


def _chunks(rows: int) -> list[range]:
    return [range(start, min(start + _CHUNK, rows)) for start in range(0, rows, _CHUNK)]


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
