"""Shared by all tests: no network, one place for the real photos, and small classifiers and photo sets made on the spot."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
REAL = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder with real photos (`data/`) and checkpoints (`models/`) beside the project, or a skip where it is absent."""
    if not REAL.is_dir():
        pytest.skip("no real photos beside the project")
    return REAL
