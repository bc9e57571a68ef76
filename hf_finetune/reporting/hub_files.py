"""What of a run goes to the Hub, and how it looks there.

The contents of `model/` lie at the root of the repository, so that `from_pretrained(ID)` and `pipeline(model=ID)` find them. Weights are
safetensors only. Left on disk: checkpoints, optimizer states, pickles, and `predictions.parquet`, whose image ids may be names of private
files. Local paths are cut to their last part in every text file, and an adapter names its base model only where that is on the Hub.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from hf_finetune.reporting.finished_run import read_config, read_json, read_metrics, require_file, run_folder
from hf_finetune.reporting.local_paths import is_credential, is_local_path, known_paths, last_part, without_local_paths

logger = logging.getLogger(__name__)

_REPORT_FILES = ("README.md", "report.md", "report.html", "metrics.json", "config.yaml")
_ADAPTER_CONFIG = "adapter/adapter_config.json"
_CHECKPOINT_SUFFIXES = (".safetensors", ".json", ".txt")
TEXT_SUFFIXES = (".json", ".md", ".html", ".yaml", ".txt")
# of another push of the same repository: what this push does not send must not stay beside it
_OWNED_FOLDERS = ("adapter/", "plots/")


def published_files(directory: str | Path) -> dict[str, Path | bytes]:
    """List what a push sends: path in the repository → file on disk, or the contents where paths had to be cut.

    Args:
        directory: The `--output_dir` of a finished run.

    Raises:
        DataError: The folder is no finished run; the message names the missing file.
    """
    folder = run_folder(directory)
    metrics, config = read_metrics(folder), read_config(folder)
    require_file(folder, "model/config.json")
    if not any((folder / "model").glob("*.safetensors")):
        # a large model lies in numbered pieces, of which one is found above
        require_file(folder, "model/model.safetensors")
    found = _checkpoint(folder / "model", "") | _checkpoint(folder / "adapter", "adapter/")
    found |= {f"plots/{path.name}": path for path in sorted((folder / "plots").glob("*.png"))}
    for name in _REPORT_FILES:
        if (folder / name).is_file():
            found[name] = folder / name
        else:
            logger.warning("%s has no %s; it is not pushed.", folder, name)
    paths = known_paths(config, metrics, _recorded_names(found))
    published = {name: _without_paths(path, paths) if path.suffix in TEXT_SUFFIXES else path for name, path in found.items()}
    published["config.yaml"] = yaml.safe_dump(_published_config(config, paths), sort_keys=False, allow_unicode=True).encode()
    if _ADAPTER_CONFIG in found:
        published[_ADAPTER_CONFIG] = _published_adapter(found[_ADAPTER_CONFIG], metrics["model"].get("base_model"))
    return published


def commit_operations(files: dict[str, Path | bytes], already_there: list[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Turn `files` into one commit that also removes what an earlier push left and this one does not replace.

    Args:
        files: What `published_files` returned.
        already_there: Paths of the files in the repository. Only adapters, plots and `model*.safetensors` are ever removed.
    """
    additions = [CommitOperationAdd(name, content if isinstance(content, bytes) else str(content)) for name, content in files.items()]
    stale = [name for name in already_there if name not in files and _is_owned(name)]
    return [*additions, *(CommitOperationDelete(name) for name in stale)]


def _is_owned(name: str) -> bool:
    weights = "/" not in name and name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))
    return name.startswith(_OWNED_FOLDERS) or weights


def _checkpoint(folder: Path, prefix: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {prefix + path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _CHECKPOINT_SUFFIXES}


def _recorded_names(files: dict[str, Path]) -> list[str]:
    """List the places of the base checkpoint that transformers and PEFT wrote into `config.json` and `adapter_config.json`."""
    names = []
    for path in files.values():
        if path.name in ("config.json", "adapter_config.json"):
            content = read_json(path)
            names += [str(content[key]) for key in ("_name_or_path", "base_model_name_or_path") if content.get(key)]
    return names


def _without_paths(path: Path, paths: list[str]) -> Path | bytes:
    text = path.read_text(encoding="utf-8")
    published = without_local_paths(text, paths)
    return path if published == text else published.encode()


def _published_config(config: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """Drop credentials, and cut paths to their last part; the rest can be run again with `--config`."""
    return {key: _published_value(value, paths) for key, value in config.items() if not is_credential(key)}


def _published_adapter(path: Path, base_model: str | None) -> bytes:
    """Return `adapter_config.json` with the Hub id of its base model or none: PEFT would take the name of a folder for a Hub id."""
    return json.dumps(read_json(path) | {"base_model_name_or_path": base_model}, indent=2).encode()


def _published_value(value: Any, paths: list[str]) -> Any:
    is_path = isinstance(value, str) and (is_local_path(value) or value.rstrip("/\\") in paths)
    return last_part(value) if is_path else value
