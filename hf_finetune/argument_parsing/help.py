"""The `--help` of a recipe: every setting, in groups, with its default and what it may be."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import HfArgumentParser

from hf_finetune.argument_parsing.checks import FIXED_FIELDS

# what a person sets of FinetuneArguments, in the order of the help; all others follow in a group of their own
_EVERYDAY = (
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "micro_batch_size",
    "learning_rate",
    "head_lr",
    "backbone_lr",
    "layer_lr_decay",
    "group_lr",
    "layer_groups",
    "unfreeze_warmup",
    "lr_finder",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "label_smoothing_factor",
    "optim",
    "ema_decay",
    "early_stopping_patience",
    "bf16",
    "seed",
    "eval_strategy",
    "save_strategy",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "logging_steps",
    "report",
    "report_to",
    "dataloader_num_workers",
    "use_cpu",
    "precision",
    "feature_cache_gb",
    "image_cache_gb",
    "torch_compile",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind every text but that of a `--no_` flag; description and examples keep their line breaks."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.nargs == 0 else super()._get_help_string(action)


class _HelpParser(HfArgumentParser):
    """An `HfArgumentParser` that sorts the fields of each dataclass into the groups of the help."""

    def __init__(self, classes: Sequence[type], groups: Mapping[str, tuple[type, Sequence[str]]], **kwargs: Any) -> None:
        super().__init__((), allow_abbrev=False, add_help=False, formatter_class=_Formatter, **kwargs)
        fields = {}
        for cls in classes:
            # HfArgumentParser resolves the annotations of a class on its fields when it first reads it
            HfArgumentParser(cast(Any, cls), add_help=False)
            fields.update({(cls, item.name): item for item in dataclasses.fields(cls)})
        for title, (cls, names) in groups.items():
            group = self.add_argument_group(title)
            for name in names:
                self._parse_dataclass_field(cast(Any, group), fields[cls, name])
        choices = {name: item.metadata["choices"] for (_, name), item in fields.items() if "choices" in item.metadata}
        for action in self._actions:
            action.choices = choices.get(action.dest, action.choices)
            _tidy(action)


def _tidy(action: argparse.Action) -> None:
    """Show one spelling of a flag and the type of its value, in place of its name in capitals."""
    action.option_strings = action.option_strings[:1]
    if action.nargs == 0:
        action.help = f"Turns --{action.dest} off."
        return
    kind = getattr(action.type, "__name__", "value")
    words = {"string_to_bool": "true|false", "str": "TEXT", "dict": "JSON", "int": "INT", "float": "FLOAT"}
    action.metavar = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else words.get(kind, "VALUE")
    if action.choices and len(list(action.choices)) > 6:
        action.help = f"{action.help} One of {', '.join(map(str, action.choices))}."
        action.metavar = "NAME"


def print_help(
    classes: Sequence[type],
    recipe: str,
    description: str,
    defaults: Mapping[str, Any],
    presets: Mapping[str, Any],
    study: Mapping[str, str],
) -> None:
    """Print the help of a recipe to the output stream.

    Args:
        classes: The dataclasses of data, model and training, in this order.
        recipe: Name of the script.
        description: First paragraphs.
        defaults: Name → default, with the recipe's own.
        presets: Names of presets.
        study: Flags of a study, with their values, and what they mean; empty where the recipe has none.
    """
    data, model, training = classes
    rest = [item.name for item in dataclasses.fields(training) if item.init and item.name not in (*_EVERYDAY, *FIXED_FIELDS)]
    parser = _HelpParser(
        classes,
        {
            "Data": (data, [item.name for item in dataclasses.fields(data)]),
            "Model": (model, [item.name for item in dataclasses.fields(model)]),
            "Fine-tuning": (training, _EVERYDAY),
            "Everything else of transformers.TrainingArguments": (training, rest),
        },
        prog=f"accelerate launch recipes/{recipe}.py",
        usage="%(prog)s [--preset NAME] [--config FILE.yaml] [--flag VALUE ...]",
        description=description.strip(),
        epilog=f"example:\n  accelerate launch recipes/{recipe}.py --preset demo --num_train_epochs 3 --output_dir runs/first",
    )
    general = parser.add_argument_group("Where settings come from (the later wins: defaults, --preset, --config, flags)")
    general.add_argument("--preset", metavar="NAME", help=f"A ready set of settings: {', '.join(presets)}.", default=argparse.SUPPRESS)
    general.add_argument("--config", metavar="FILE.yaml", help="Settings as lines `name: value`.", default=argparse.SUPPRESS)
    for flag, meaning in study.items():
        name, _, value = flag.partition(" ")
        kind: dict[str, Any] = {"metavar": value} if value else {"action": "store_true"}
        general.add_argument(name, help=meaning, default=argparse.SUPPRESS, **kind)
    general.add_argument("-h", "--help", action="store_true", help="Print this and leave.", default=argparse.SUPPRESS)
    # first in the help, though added last
    parser._action_groups.insert(2, parser._action_groups.pop())
    parser.set_defaults(**defaults)
    parser.print_help(sys.stdout)
