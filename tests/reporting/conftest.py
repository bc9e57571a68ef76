"""Finished runs for the tests of the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.finished_run import write_predicted_run


@pytest.fixture(params=[5, 37])
def run_directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A trained run of 5 and of 37 classes."""
    return write_predicted_run(tmp_path / "lora_demo", [f"breed_{index}" for index in range(request.param)])


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return `write_predicted_run`, bound to a fresh directory."""

    def make(label_names: list[str], **settings: Any) -> Path:
        return write_predicted_run(tmp_path / "lora_demo", label_names, **settings)

    return make
