"""The feature cache: activations of a frozen prefix, computed once for every photo and read back in every later epoch, cell and run.

Fine-tuning only the head, or only the last blocks, spends nearly all its time on layers that never change. Where no random
augmentation reaches them, their activations are kept in a memory-mapped file. Its name depends on the weights of the prefix, on
how photos become pixels, on the photos, on the depth and on the precision, so a file is only ever found by a run for which it is right.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader

from hf_finetune.data.stored_arrays import ArrayStore, cache_root, data_fingerprint, digest
from hf_finetune.data.transforms import EvalTransform, TrainTransform
from hf_finetune.models.folding import folded_batchnorm
from hf_finetune.training.prefix import CACHED, FrozenPrefix

logger = logging.getLogger(__name__)

_VERSION = 3  # of the files; raise it when the same inputs would give other activations
_SETTINGS_OF_LABELS = ("id2label", "label2id", "label_names", "num_labels", "num_classes", "_name_or_path", "problem_type")


def feature_directory() -> Path:
    """Return the folder of the cached activations."""
    return cache_root() / "features"


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="photos")


class Rows(torch.utils.data.Dataset):
    """What a data loader reads, which may change from epoch to epoch; their number and labels do not.

    Args:
        source: A data set with `__len__` and `__getitems__`.
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Any:
        return self.source[row]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        """Return the examples of `rows`, read in as many threads as torch computes with; loader processes have one."""
        threads = torch.get_num_threads()
        if threads == 1 or len(rows) < 2 * threads or isinstance(self.source, CachedFeatures):
            return self.source.__getitems__(rows)
        size = -(-len(rows) // threads)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [example for part in _threads().map(self.source.__getitems__, parts) for example in part]


class CachedFeatures(torch.utils.data.Dataset):
    """Rows of activations in place of photos.

    Args:
        views: For each view of the training photos a mapped array [N, ...] float32; one view without augmentation.
        labels: N labels.
        transform: Knows which of several views is used now; None where there is one.
        dtype: Of the activations as the network computed them.
    """

    def __init__(self, views: list[np.memmap], labels: list[int], transform: TrainTransform | None, dtype: torch.dtype) -> None:
        self.views, self.labels, self.transform, self.dtype = views, labels, transform, dtype

    def __getstate__(self) -> dict[str, Any]:
        # a loader process that is not forked maps the files itself, and does not get a copy of what they hold
        return {**self.__dict__, "views": [array.filename for array in self.views]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "views": [np.load(file, mmap_mode="r") for file in state["views"]]}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return `cached_activations` and `labels` of the rows."""
        array = self.views[self.transform.view if self.transform else 0]
        return [{CACHED: torch.from_numpy(np.array(array[row])).to(self.dtype), "labels": self.labels[row]} for row in rows]


class FeatureCache:
    """What a trainer needs to read activations in place of photos.

    Args:
        prefix: The part of the network that is left out.
        store: Where the arrays lie.
        evaluation: The view of a photo without augmentation.
        batch_size: Photos a forward pass of the prefix.
        autocast: The precision to compute in.
        precision: What names that precision, with the device where it matters; activations of another one are not served.

    Attributes:
        seconds: Spent on computing and reading so far.
        computed: Photos computed so far.
        reused: Photos found in the cache so far.
    """

    def __init__(
        self,
        prefix: FrozenPrefix,
        store: ArrayStore,
        evaluation: EvalTransform,
        *,
        batch_size: int = 64,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        precision: str = "float32",
    ) -> None:
        self.prefix, self.store, self.evaluation = prefix, store, evaluation
        self.batch_size, self.autocast, self.precision = batch_size, autocast, precision
        self.seconds, self.computed, self.reused = 0.0, 0, 0
        self._network = digest(prefix.boundary, prefix.description(), self._settings(), *self._weights())

    def rows(self, split: datasets.Dataset, transform: EvalTransform | TrainTransform) -> CachedFeatures:
        """Return the activations of `split` under `transform`, computing those that are not in the cache.

        Raises:
            StoreError: If they cannot be kept.
            ValueError: If `transform` draws new views in every epoch.
        """
        random = transform if isinstance(transform, TrainTransform) and transform.random else None
        start, data = time.perf_counter(), data_fingerprint(split)
        if random is None:
            arrays = [self._array(split, self.evaluation, data, "evaluation")]
        elif random.views is None:
            raise ValueError("Of a transform that draws new views in every epoch there is nothing to keep; give it a number of views.")
        else:
            arrays = [self._array(split, random.at_view(k), data, f"{random!r} {k}") for k in range(random.views)]
        self.seconds += time.perf_counter() - start
        return CachedFeatures(arrays, split.with_format(None)["label"][:], random, self.prefix.dtype)

    def figures(self) -> tuple[str, int, int, float]:
        """Return the boundary, the photos computed and found so far, and the seconds that this took."""
        return self.prefix.boundary, self.computed, self.reused, self.seconds

    def _array(self, split: datasets.Dataset, transform: EvalTransform | TrainTransform, data: str, view: str) -> np.memmap:
        name = digest(str(_VERSION), self._network, data, self.evaluation.identity, self.precision, view)
        found = self.store.open(name)
        if found is not None:
            self.reused += len(split)
            return found
        self.computed += len(split)
        photos, device = split.with_transform(transform), next(self.prefix.model.parameters()).device
        with folded_batchnorm(self.prefix.model, lambda: {"pixel_values": _pixels_of([photos[0]]).to(device)}):
            batches = self._batches(Rows(photos), device)
            first = next(batches)
            return self.store.write(name, (len(split), *first.shape[1:]), "float32", itertools.chain([first], batches))

    def _batches(self, photos: Rows, device: torch.device) -> Iterator[np.ndarray]:
        for pixels in DataLoader(photos, batch_size=self.batch_size, collate_fn=_pixels_of):
            with self.autocast():
                yield self.prefix.activations(pixels.to(device)).float().cpu().numpy()

    def _weights(self) -> Iterator[str | bytes]:
        for name, tensor in self.prefix.tensors():
            yield name
            yield tensor.detach().cpu().contiguous().numpy().tobytes()

    def _settings(self) -> str:
        config = self.prefix.model.config.to_dict()  # type: ignore[union-attr, operator]
        return json.dumps({key: value for key, value in config.items() if key not in _SETTINGS_OF_LABELS}, sort_keys=True, default=str)


def _pixels_of(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([row["pixel_values"] for row in rows])
