"""Shared by all tests: no network, one place for the real photos, and small classifiers and photo sets made on the spot."""

import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="hf-finetune-tests-")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict

from tests.builders import BUILDERS
from tests.coloured import NAMES, photo_split

REPOSITORY = Path(__file__).resolve().parent.parent
REAL = REPOSITORY.parent / "shared"


def pytest_sessionfinish() -> None:
    """Leave no cache behind; each session has one of its own, so that nothing another one kept is found."""
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def float32() -> Iterator[None]:
    """No CPU is faster in bfloat16 here: tests compare numbers more closely than it computes, on whatever machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        yield


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder with real photos (`data/`) and checkpoints (`models/`) beside the project, or a skip where it is absent."""
    if not REAL.is_dir():
        pytest.skip("no real photos beside the project")
    return REAL


@pytest.fixture(scope="session")
def photos() -> DatasetDict:
    """Five colours: 40 photos to train on, 15 to validate, 15 to test."""
    return DatasetDict({"train": photo_split(8), "validation": photo_split(3, 100), "test": photo_split(3, 200)})


@pytest.fixture(scope="session")
def photo_folder(photos: DatasetDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same photos as a folder of split folders of class folders."""
    root = tmp_path_factory.mktemp("photos")
    for split, rows in photos.items():
        for row in rows:
            folder = root / split / NAMES[row["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / f"{row['image_id']}.png")
    return root


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a builder's name to a directory with that tiny checkpoint, built once."""
    built: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in built:
            torch.manual_seed(0)
            built[kind] = BUILDERS[kind](tmp_path_factory.mktemp("checkpoints") / kind)
        return built[kind]

    return build
