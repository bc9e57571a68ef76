"""A bounded folder of arrays on disk, each computed once: activations, decoded photos."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import datasets
import numpy as np

logger = logging.getLogger(__name__)

GIBIBYTE = 2**30
_ABANDONED_SECONDS = 86_400  # no draft takes a day
# file → the array that this process reads from it, as long as there is one
_OPEN: weakref.WeakValueDictionary[Path, np.memmap] = weakref.WeakValueDictionary()


class StoreError(Exception):
    """An array cannot be kept; the text says why, as the end of a sentence."""


def digest(*parts: str | bytes) -> str:
    """Return 32 hexadecimal digits that depend on `parts` and on where one ends and the next begins."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.hexdigest()[:32]


def data_fingerprint(split: datasets.Dataset) -> str:
    """Return what identifies the rows of `split`: the fingerprint of `datasets`, and size and time of the files that rows only point to."""
    parts = [split._fingerprint]
    for chunk in split.data.column("image").chunks:  # a fingerprint covers paths, not what the files at these paths hold
        for path in chunk.field("path").filter(chunk.field("bytes").is_null()).to_pylist():
            try:
                status = os.stat(path or "")
                parts.append(f"{path} {status.st_size} {status.st_mtime_ns}")
            except OSError:
                parts.append(f"{path} missing")
    return digest(*parts)


def cache_root() -> Path:
    """Return the folder below the cache of `datasets` that holds everything this package keeps."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_finetune"


class ArrayStore:
    """Arrays in `.npy` files by name, the least recently used ones deleted where the limit would be passed.

    A file appears under its name only once it is complete, so that a run that is killed, or a disk that is full, leaves nothing that could
    be taken for a result; a file that was cut short later is found by its length. What this process has open is not deleted.

    Args:
        directory: Made where it is not there.
        limit_bytes: Of all files together.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.directory, self.limit_bytes = directory, limit_bytes

    def open(self, name: str) -> np.memmap | None:
        """Return the array, mapped into memory for reading, or None where there is none that is whole."""
        path = self._path(name)
        try:
            array = cast(np.memmap, np.load(path, mmap_mode="r"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, EOFError) as error:
            logger.info("The cache file %s cannot be used (%s); it is computed again.", path, error)
            if not isinstance(error, OSError):  # a file that is broken, not one that cannot be read now
                _delete(path)
            return None
        with contextlib.suppress(OSError):  # the file of someone else, who shares the folder
            os.utime(path)
        _OPEN[path] = array
        return array

    def write(self, name: str, shape: tuple[int, ...], dtype: str, chunks: Iterable[np.ndarray]) -> np.memmap:
        """Store the concatenation of `chunks` and return it as `open` does. What the computing of a chunk raises goes through.

        Raises:
            StoreError: If the array is larger than the limit, or the disk is full or cannot be written.
        """
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        draft = self.directory / f"{name}.{uuid.uuid4().hex}.part"
        try:
            with self._told():
                self.directory.mkdir(parents=True, exist_ok=True)
                self._make_room(size)
                file = draft.open("xb")
            with file:
                with self._told():
                    np.lib.format.write_array_header_2_0(file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
                for chunk in chunks:
                    with self._told():
                        file.write(np.ascontiguousarray(chunk, dtype).data)
                with self._told():
                    file.flush()
            with self._told():
                draft.replace(self._path(name))
        finally:
            _delete(draft)
        array = self.open(name)
        if array is None:
            raise StoreError(f"{self._path(name)} was lost right after it was written")
        return array

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.npy"

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.directory} cannot be written ({error.strerror or error})") from None

    def _make_room(self, size: int) -> None:
        if size > self.limit_bytes:
            raise StoreError(f"{_amount(size)} are needed and {_amount(self.limit_bytes)} allowed")
        for path, (_, changed) in _files(self.directory, "*.part"):
            if changed < time.time() - _ABANDONED_SECONDS:
                _delete(path)  # of a run that was killed
        files = sorted(_files(self.directory, "*.npy"), key=lambda file: file[1][1])
        used = sum(length for _, (length, _) in [*files, *_files(self.directory, "*.part")])
        idle = [(path, length) for path, (length, _) in files if path not in _OPEN]
        kept = used - sum(length for _, length in idle)
        if kept + size > self.limit_bytes:
            raise StoreError(f"{_amount(size)} are needed beside {_amount(kept)} in use, and {_amount(self.limit_bytes)} allowed")
        for path, length in idle:
            if used + size <= self.limit_bytes:
                break
            _delete(path)
            used -= length
        free = shutil.disk_usage(self.directory).free
        if size > free:
            raise StoreError(f"{_amount(size)} are needed and {_amount(free)} free in {self.directory}")


def _files(directory: Path, pattern: str) -> list[tuple[Path, tuple[int, float]]]:
    """Return files with their length in bytes and the time of their last use; one that vanishes meanwhile is left out."""
    found = []
    for path in directory.glob(pattern):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((path, (status.st_size, status.st_mtime)))
    return found


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone already, or in a folder that cannot be written
        path.unlink()


def clear(directory: Path) -> int:
    """Delete the arrays and tables in `directory` and return how many bytes that freed."""
    before = after = 0
    for pattern in ("*.npy", "*.arrow", "*.part"):
        before += sum(length for _, (length, _) in _files(directory, pattern))
        for path, _ in _files(directory, pattern):
            _delete(path)
        after += sum(length for _, (length, _) in _files(directory, pattern))
    return before - after


def _amount(count: int) -> str:
    """Write bytes in the unit of `--feature_cache_gb`, or in one that shows more than zeros."""
    return f"{count / GIBIBYTE:.2f} GiB" if count >= GIBIBYTE / 10 else f"{count / 2**20:.2f} MiB" if count >= 2**17 else f"{count} bytes"
