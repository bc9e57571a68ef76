"""The output folder of a run: claimed before anything is computed, never emptied by accident, resumed from the last whole checkpoint."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

from hf_finetune.arguments import Arguments, config_values, read_config, write_config
from hf_finetune.errors import ConfigError, listed

logger = logging.getLogger(__name__)

# all that a run writes; nothing else in the folder is ever removed
_RANGE_TEST = ("lr_finder.png", "lr_finder.json")  # a training may follow in the same folder
_WRITTEN = (
    *_RANGE_TEST,
    "config.yaml",
    "metrics.json",
    "predictions.parquet",
    "trainer_state.json",
    "report.md",
    "report.html",
    "README.md",
    "plots",
    "model",
    "adapter",
)
# without these a checkpoint starts from zero in one respect or another; the Trainer writes trainer_state.json last
_NEEDED_TO_GO_ON = ("optimizer.pt", "scheduler.pt", "trainer_state.json")
# what may differ between a run and its continuation
_FREE_ON_RESUME = re.compile(
    "resume_from_checkpoint|overwrite_output_dir|push_to_hub|hub_.*|output_dir|disable_tqdm|log_level.*|logging_.*|report_to|dataloader_.*"
)


def last_checkpoint(directory: Path) -> Path | None:
    """Return the newest whole `checkpoint-STEP` in `directory`, or None.

    The Trainer writes `trainer_state.json` last, so a folder without a readable one was cut short by a kill, and is passed over. So is one
    without optimizer and scheduler (`--save_only_model`), from which nothing can go on exactly.
    """
    numbered = [(int(match[1]), path) for path in directory.glob("checkpoint-*") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))]
    return next((path for _, path in sorted(numbered, reverse=True) if _is_whole(path)), None)


def resume_checkpoint(arguments: Arguments) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint` names, or None where training starts from the beginning.

    Raises:
        ConfigError: The path is no whole checkpoint, or the run in the folder had other settings.
    """
    wanted = arguments.training.resume_from_checkpoint
    if wanted is None:
        return None
    directory = Path(str(arguments.training.output_dir))
    if wanted == "last":
        checkpoint = last_checkpoint(directory)
        if checkpoint is None:
            logger.warning("No whole checkpoint in %s: training starts from the beginning.", directory)
    else:
        checkpoint = Path(wanted)
        if not _is_whole(checkpoint):
            raise ConfigError(
                f"--resume_from_checkpoint: {wanted} is not a whole checkpoint (weights, {', '.join(_NEEDED_TO_GO_ON)}). Give 'last', or a "
                "folder checkpoint-STEP."
            )
    _check_same_settings(arguments, (directory if checkpoint is None else checkpoint.absolute().parent) / "config.yaml")
    return checkpoint


def check_directory(arguments: Arguments) -> None:
    """Look whether the output folder can be used, and change nothing.

    A folder with nothing but a `config.yaml` is free: its run ended before the first checkpoint.

    Raises:
        ConfigError: It holds something and neither resuming nor overwriting was asked for, it is a file, or it cannot be written to.
    """
    training = arguments.training
    directory = Path(str(training.output_dir))
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"--output_dir: {existing} is a file. Give a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_dir: {existing} cannot be written to. Give another folder, or change its permissions.")
    found = sorted(path.name for path in directory.iterdir() if path.name not in _RANGE_TEST) if directory.is_dir() else []
    wanted = training.overwrite_output_dir or training.resume_from_checkpoint is not None
    if wanted and found and not _is_run(directory):
        raise ConfigError(
            f"--output_dir: {directory} holds {listed(found, 4)}, but no run of this toolkit (a config.yaml or a checkpoint-STEP) to go on "
            "with or to overwrite. Give another folder."
        )
    free = not found or (found == ["config.yaml"] and _is_run(directory))
    if not wanted and not free:
        raise ConfigError(
            f"--output_dir: {directory} is in use (it holds {listed(found, 4)}). Go on with --resume_from_checkpoint last, start anew with "
            "--overwrite_output_dir, or give another folder."
        )


def claim_directory(arguments: Arguments) -> None:
    """On the first process, remove an earlier run where overwriting was asked for, and write the resolved `config.yaml`."""
    training = arguments.training
    if not training.should_save:
        return
    directory = Path(str(training.output_dir))
    if training.overwrite_output_dir:
        _remove_run(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_config(arguments, directory / "config.yaml")


def _is_run(directory: Path) -> bool:
    config = directory / "config.yaml"
    return last_checkpoint(directory) is not None or (config.is_file() and config.read_text(encoding="utf-8").startswith("# hf-finetune"))


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((checkpoint / name).is_file() for name in _NEEDED_TO_GO_ON)


def _check_same_settings(arguments: Arguments, config: Path) -> None:
    if not config.is_file():
        return
    before, now = read_config(config), config_values(arguments)
    changed = [
        f"{name} was {before[name]}, is {now[name]}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name] and not _FREE_ON_RESUME.fullmatch(name)
    ]
    if changed:
        raise ConfigError(
            f"--resume_from_checkpoint: {config.parent} was run with other settings ({listed(changed, 6)}). "
            "Give the same command, or another --output_dir."
        )


def remove_checkpoints(directory: Path) -> None:
    """Delete what only an unfinished run is resumed from: weights and optimizer state at several steps, several times its model's size."""
    for path in directory.glob("checkpoint-*"):
        shutil.rmtree(path)


def _remove_run(directory: Path) -> None:
    remove_checkpoints(directory)
    for path in (directory / name for name in _WRITTEN):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
