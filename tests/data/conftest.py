"""Photos and folders that the tests of this room are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

Photo = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def photo() -> Photo:
    """Writes a photo of noise to a path, and returns the path."""

    def write(path: Path, size: tuple[int, int] = (24, 16), mode: str = "RGB", seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return write


@pytest.fixture
def class_folders(tmp_path: Path, photo: Photo) -> Path:
    """A folder of two classes, `cat` and `dog`, of ten photos each."""
    folder = tmp_path / "pets"
    for number in range(10):
        for name in ("cat", "dog"):
            photo(folder / name / f"{number}.jpg", seed=number)
    return folder
