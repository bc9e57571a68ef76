"""Reads what a finished run left on disk; says which file is missing or damaged when the folder is no finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hf_finetune.errors import ConfigError

# stands in the snippets of a model card until a push knows the repository
REPOSITORY = "USER/REPOSITORY"


def run_folder(directory: str | Path) -> Path:
    """Return `directory` as a path.

    Raises:
        ConfigError: There is no such folder.
    """
    folder = Path(directory)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"The run folder {str(directory)!r} {found}; give the --output_dir of a finished run.")
    return folder


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read `metrics.json`.

    Raises:
        ConfigError: The file is missing, damaged, or has no test figures.
    """
    metrics = read_json(folder / "metrics.json")
    if not isinstance(metrics.get("test"), dict):
        raise ConfigError(f"{str(folder)!r} is not a finished run: metrics.json has no test figures. Run the training to its end.")
    return metrics


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.yaml`, the flat settings of the run.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    return _read(folder, "config.yaml", yaml.safe_load)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of names and values.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    return _read(path.parent, path.name, json.loads)


def _read(folder: Path, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{str(folder)!r} is not a finished run: {name} is missing. Run the training to its end.")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"{name} in {str(folder)!r} is damaged and cannot be read. Run the training again.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{name} in {str(folder)!r} is damaged: it must hold names and values. Run the training again.")
    return content
