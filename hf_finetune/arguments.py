"""The settings of a run: three dataclasses, read strictly from flags, YAML and presets.

Later wins: defaults < the recipe's defaults < `--preset` < `--config FILE.yaml` < command line. Nothing is ignored silently: an unknown
name, a wrong type, a value outside its choices or range and settings that contradict each other are one `ConfigError` that lists them all.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import HfArgumentParser
from transformers.debug_utils import DebugOption

from hf_finetune import __version__
from hf_finetune.argument_parsing.checks import FIXED_FIELDS, moot_fields
from hf_finetune.argument_parsing.contradictions import contradictions, lay_over
from hf_finetune.argument_parsing.fields import SECRET_FIELDS, redacted
from hf_finetune.argument_parsing.help import print_help
from hf_finetune.argument_parsing.sections import SECTIONS, SPECS, DataArguments, FinetuneArguments, ModelArguments
from hf_finetune.argument_parsing.sources import Problems, Rank, Source, check_values, read_flags
from hf_finetune.argument_parsing.study_flags import STUDY_HELP, StudyFlags
from hf_finetune.argument_parsing.yaml_files import read_yaml, yaml_text
from hf_finetune.errors import ConfigError, did_you_mean, listed

__all__ = [
    "PRESETS",
    "Arguments",
    "DataArguments",
    "FinetuneArguments",
    "ModelArguments",
    "config_values",
    "make_arguments",
    "parse_arguments",
    "read_config",
    "write_config",
]

# name → settings of `--preset`; a recipe's own defaults lie below them, a YAML file and flags above
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "dataset": "drawn_pets",
        "augmentation": "crop+flip",  # on drawings this small, rotations would take a quarter of the time
        "model": "tiny_vit",
        "adapter": "lora",
        "lora_targets": "attention+mlp",
        "lora_rank": 8,
        "lora_alpha": 16,
        "learning_rate": 4e-3,
        "num_train_epochs": 10.0,
        "per_device_train_batch_size": 32,
        "output_dir": "runs/demo",
    },
}

# of one launch, or without effect, or the old name of another field; never in config.yaml
_UNRECORDED = SECRET_FIELDS.union(
    FIXED_FIELDS,
    ("resume_from_checkpoint", "overwrite_output_dir", "local_rank", "parallelism_config"),
    ("gradient_checkpointing", "gradient_checkpointing_kwargs"),
)


@dataclass(frozen=True)
class Arguments:
    """Everything that one run needs to know.

    Attributes:
        data: Which photos.
        model: Which checkpoint, and what of it trains.
        training: How it is trained, saved and pushed.
    """

    data: DataArguments
    model: ModelArguments
    training: FinetuneArguments


def parse_arguments(
    argv: Sequence[str] | None = None,
    *,
    recipe: str = "vit_lora",
    defaults: Mapping[str, Any] | None = None,
    demo: Mapping[str, Any] | None = None,
    description: str | None = "",
    study: StudyFlags | None = None,
) -> Arguments:
    """Read the settings of a run from a command line; `--help` prints every one and leaves with status 0.

    Args:
        argv: Command line without the program; by default that of this process.
        recipe: Name of the script, for the default `--output_dir runs/RECIPE` and for the help.
        defaults: Defaults of the recipe that differ from the dataclasses'.
        demo: What `--preset demo` means for the recipe, in place of `PRESETS["demo"]`.
        description: First paragraph of the help.
        study: Takes `--study`, `--seeds` and `--cells`, which are unknown without it.

    Raises:
        ConfigError: Everything that is wrong with flags, file and preset, numbered.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    problems = Problems()
    recipe_defaults = {"output_dir": f"runs/{recipe}", **(defaults or {})}
    layers = [
        (Source(Rank.DEFAULT), {name: spec.default for name, spec in SPECS.items()}),
        _checked(Rank.RECIPE, f"recipe {recipe}", recipe_defaults, problems),
    ]
    if {"-h", "--help"} & set(argv):
        print_help(SECTIONS, recipe, description or "", lay_over(layers).values, PRESETS, STUDY_HELP if study else {})
        sys.exit(0)
    flags = read_flags(argv, SPECS, problems, study.readers() if study else None)
    if study:
        study.preset = flags.preset
    presets = PRESETS | ({"demo": {"output_dir": f"runs/{recipe}_demo", **demo}} if demo else {})
    if flags.preset in presets:
        layers.append(_checked(Rank.PRESET, f"preset {flags.preset}", presets[flags.preset], problems))
    elif flags.preset is not None:
        hint = did_you_mean(flags.preset, presets)
        problems.add(f"--preset must be one of {listed(presets)}, not {redacted(repr(flags.preset))}.{hint}")
    if flags.config is not None:
        layers.append(_checked(Rank.FILE, flags.config, read_yaml(flags.config, problems), problems))
    layers.append((Source(Rank.GIVEN), flags.values))
    return _build(layers, problems, python=False)


def make_arguments(**flat: Any) -> Arguments:
    """Make the settings of a run from Python values, with the checks of the command line.

    Example:
        >>> make_arguments(dataset="digits", model="tiny_vit", adapter="lora", output_dir="runs/digits")

    Args:
        flat: Any field of the three dataclasses.

    Raises:
        ConfigError: Everything that is wrong, numbered.
    """
    problems = Problems()
    source = Source(Rank.GIVEN, python=True)
    defaults = (Source(Rank.DEFAULT, python=True), {name: spec.default for name, spec in SPECS.items()})
    return _build([defaults, (source, check_values(flat, SPECS, source, problems))], problems, python=True)


def config_values(arguments: Arguments) -> dict[str, Any]:
    """Return the settings of a run as plain values that `make_arguments` and YAML take.

    Defaults are there too, so that a later version with other defaults repeats the same run. Left out are secrets, what belongs to one
    launch only (resuming, overwriting), and what has no effect, such as the LoRA rank of a run without LoRA.
    """
    training = arguments.training
    values = {**vars(arguments.data), **vars(arguments.model), **training.to_dict(), **training._requested}
    values["debug"] = " ".join(DebugOption(option).value for option in training.debug)
    left_out = _UNRECORDED | moot_fields(values)
    return {name: values[name] for name in SPECS if name not in left_out}


def write_config(arguments: Arguments, path: str | os.PathLike[str]) -> None:
    """Write `config_values(arguments)` as YAML; `--config PATH` starts the same run again.

    Args:
        arguments: Settings of a run.
        path: File to write; it is replaced in one step.
    """
    values = config_values(arguments)
    lines = [
        f"# hf-finetune {__version__}: every setting of this run. The same run again, with the recipe that made it:",
        "#   --config THIS_FILE --output_dir NEW_FOLDER",
    ]
    for title, cls in (("Data", DataArguments), ("Model", ModelArguments), ("Fine-tuning", FinetuneArguments)):
        part = {item.name: values[item.name] for item in dataclasses.fields(cls) if item.name in values}
        lines += ["", f"# {title}", yaml_text(part).rstrip()]
    path = Path(path)
    draft = path.with_name(path.name + ".part")
    draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draft.replace(path)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a `config.yaml`, or any YAML file for `--config`, with the checks of the command line.

    Raises:
        ConfigError: Everything that is wrong with the file, numbered.
    """
    problems = Problems()
    source = Source(Rank.FILE, os.fspath(path))
    values = check_values(read_yaml(source.label, problems), SPECS, source, problems)
    if problems.sentences:
        raise ConfigError(problems.sentences)
    return values


def _checked(rank: Rank, label: str, values: Mapping[Any, Any], problems: Problems) -> tuple[Source, dict[str, Any]]:
    source = Source(rank, label)
    return source, check_values(values, SPECS, source, problems)


def _build(layers: Iterable[tuple[Source, Mapping[str, Any]]], problems: Problems, *, python: bool) -> Arguments:
    settings = lay_over(layers, python=python)
    if sentences := problems.sentences + contradictions(settings, problems.rejected):
        raise ConfigError([redacted(sentence, settings["hub_token"]) for sentence in sentences])
    values = {name: copy.copy(value) for name, value in settings.values.items()}
    try:
        parts = HfArgumentParser(cast(Any, SECTIONS)).parse_dict(values)
    except (ValueError, TypeError, OSError, ImportError) as error:
        # the further checks of TrainingArguments, one at a time
        text = redacted(" ".join(str(error).split()), settings["hub_token"])
        raise ConfigError(f"TrainingArguments refuses these settings: {text}") from None
    return Arguments(*parts)
