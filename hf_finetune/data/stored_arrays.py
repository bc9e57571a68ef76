"""A bounded folder of arrays on disk, each computed once: activations, decoded photos."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np

logger = logging.getLogger(__name__)

GIBIBYTE = 2**30


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
    be taken for a result; a file that was cut short later is found by its length.

    Args:
        directory: Made where it is not there.
        limit_bytes: Of all files together.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.directory, self.limit_bytes = directory, limit_bytes

    def open(self, name: str) -> np.ndarray | None:
        """Return the array, mapped into memory for reading, or None where there is none that is whole."""
        path = self._path(name)
        try:
            array = np.load(path, mmap_mode="r")
            os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, EOFError) as error:
            logger.info("The cache file %s cannot be used (%s); it is computed again.", path, error)
            path.unlink(missing_ok=True)
            return None
        return array

    def write(self, name: str, shape: tuple[int, ...], dtype: str, chunks: Iterable[np.ndarray]) -> np.ndarray:
        """Store the concatenation of `chunks` and return it as `open` does.

        Raises:
            StoreError: If the array is larger than the limit, or the disk is full or cannot be written.
        """
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        draft = self.directory / f"{name}.{os.getpid()}.part"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            with draft.open("wb") as file:
                np.lib.format.write_array_header_2_0(file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
                for chunk in chunks:
                    file.write(np.ascontiguousarray(chunk, dtype).data)
            draft.replace(self._path(name))
        except OSError as error:
            raise StoreError(f"{self.directory} cannot be written ({error.strerror or error})") from None
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()
        array = self.open(name)
        if array is None:
            raise StoreError(f"{self._path(name)} was lost right after it was written")
        return array

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.npy"

    def _make_room(self, size: int) -> None:
        if size > self.limit_bytes:
            raise StoreError(f"{_amount(size)} are needed and {_amount(self.limit_bytes)} allowed")
        files = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in self.directory.glob("*.npy"))
        used = sum(length for _, length, _ in files)
        for _, length, file in files:
            if used + size <= self.limit_bytes:
                break
            file.unlink(missing_ok=True)
            used -= length
        free = shutil.disk_usage(self.directory).free
        if size > free:
            raise StoreError(f"{_amount(size)} are needed and {_amount(free)} free in {self.directory}")


def clear(directory: Path) -> int:
    """Delete the arrays and tables in `directory` and return how many bytes that freed."""
    files = [file for pattern in ("*.npy", "*.arrow", "*.part") for file in directory.glob(pattern)]
    freed = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink(missing_ok=True)
    return freed


def _amount(count: int) -> str:
    """Write bytes in the unit of `--feature_cache_gb`, or in one that shows more than zeros."""
    return f"{count / GIBIBYTE:.2f} GiB" if count >= GIBIBYTE / 10 else f"{count / 2**20:.2f} MiB" if count >= 2**17 else f"{count} bytes"
