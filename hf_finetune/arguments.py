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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from transformers import HfArgumentParser, TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from hf_finetune import __version__
from hf_finetune.argument_parsing.checks import (
    FIXED_FIELDS,
    device_kind,
    has_native_bf16,
    loader_processes,
    moot_fields,
    precision_problems,
    range_problem,
)
from hf_finetune.argument_parsing.contradictions import contradictions, lay_over
from hf_finetune.argument_parsing.fields import SECRET_FIELDS, FieldSpec, Mismatch, field_specs, redacted
from hf_finetune.argument_parsing.help import print_help
from hf_finetune.argument_parsing.sources import Problems, Rank, Source, check_values, read_flags
from hf_finetune.argument_parsing.study_flags import STUDY_HELP, StudyFlags
from hf_finetune.argument_parsing.yaml_files import read_yaml, yaml_text
from hf_finetune.errors import ConfigError, did_you_mean, listed

# of `hf_finetune.training.optim`, beside those of transformers
OWN_OPTIMIZERS = ("adam", "nag")
OPTIMIZERS = (*OWN_OPTIMIZERS, *(name.value for name in OptimizerNames))

# name → settings of `--preset`; a recipe's own defaults lie below them, a YAML file and flags above
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "dataset": "drawn_pets",
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


def _setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """Return a dataclass field whose help text is its only description."""
    return field(default=default, metadata={"help": help} | ({"choices": choices} if choices else {}))


@dataclass
class DataArguments:
    """Which photos a run sees, and how they are cut into splits. Raises `ConfigError` with all that is wrong."""

    dataset: str = _setting(
        "oxford_pets",
        "oxford_pets, flowers102, drawn_pets, drawn_flowers, digits, a Hub id, or a path: a folder in Hub layout, a folder of class "
        "folders, or the official archives unpacked.",
    )
    label_column: str = _setting("label", "Column of the class, such as label_cat_dog of the pets.")
    image_column: str = _setting("image", "Column of the photo.")
    validation_fraction: float = _setting(0.2, "Fraction of train that becomes validation, stratified, where the data set has none.")
    test_fraction: float = _setting(0.2, "Fraction of the photos that becomes test, stratified, where the data set has none.")
    max_train_samples: int | None = _setting(None, "Use this many training photos, drawn class by class.")
    max_eval_samples: int | None = _setting(None, "Use this many photos of validation and of test.")
    skip_bad_images: bool = _setting(False, "Leave damaged photos out, counted and listed, instead of stopping at the first.")
    augmentation: str = _setting(
        "light",
        "Random view of a training photo. none: as in evaluation. light: resized crop of half its area or more, and flip. medium: light, "
        "rotation by up to 15 degrees and scale by a tenth. randaugment, trivialaugment: light, and torchvision's policy of that name. Or "
        "parts joined by +, such as flip+rotation, of crop, flip, rotation and scale.",
    )
    random_erasing: float = _setting(0.0, "Probability that a rectangle of a training view becomes the mean colour.")
    mixup_alpha: float = _setting(0.0, "MixUp: blend photos and labels of a batch by a share drawn from Beta(alpha, alpha); 0 is off.")
    cutmix_alpha: float = _setting(
        0.0,
        "CutMix: paste a box of one photo into another, its share drawn from Beta(alpha, alpha). With MixUp too, every batch draws one of "
        "the two.",
    )
    augmentation_views: int | None = _setting(
        None,
        "Draw this many random views of each photo and go round among them, one an epoch, so that the activations of a frozen part can be "
        "kept; by default every epoch draws new ones.",
    )

    def __post_init__(self) -> None:
        _check_own_fields(self)


@dataclass
class ModelArguments:
    """Which checkpoint a run starts from, and what of it trains. Raises `ConfigError` with all that is wrong."""

    model: str = _setting(
        "google/vit-base-patch16-224-in21k", "A Hub id, a timm/ name, a directory, or an embedded tiny_vit or tiny_resnet."
    )
    model_revision: str | None = _setting(None, "Branch, tag or commit of the checkpoint on the Hub.")
    image_size: int | None = _setting(None, "Side of the model's input in pixels; by default the checkpoint's own.")
    adapter: str = _setting("none", "lora trains low-rank updates and the head, and leaves the rest as it is.", ("none", "lora"))
    lora_rank: int = _setting(8, "Rank of each update.")
    lora_alpha: int = _setting(16, "The update is scaled by alpha / rank.")
    lora_dropout: float = _setting(0.0, "Probability of dropping an input of an update.")
    lora_targets: str = _setting(
        "attention", "Layers that get an update: attention, attention+mlp, all-linear, or a regular expression for module names."
    )
    lora_layers: str = _setting("all", "Blocks that get updates: all, last:N, or numbers such as 6-11 or 0,2,4.")
    lora_dora: bool = _setting(False, "DoRA: train the magnitude of each weight column as well (arXiv:2402.09353).")
    lora_rslora: bool = _setting(False, "rsLoRA: scale by alpha / sqrt(rank) (arXiv:2312.03732).")
    dropout: float | None = _setting(None, "Dropout probability of the network, in place of the checkpoint's own.")
    drop_path: float | None = _setting(
        None, "Highest probability of leaving a residual branch out (stochastic depth), in place of the checkpoint's own."
    )
    freeze: str = _setting(
        "none",
        "none: everything trains. head: the head alone. last:L: the last L layer groups and the head. gradual:start=S,every=E[,stop=T]: "
        "the last S groups, and one more after every E epochs. head_then_all:epochs=N. batch_norm_only: BatchNorm and the head. Or a "
        "regular expression for the names of what trains beside the head.",
    )
    batch_norm: str | None = _setting(
        None,
        "BatchNorm, in place of going with its layer. train: weights and statistics move. frozen: neither. statistics_only, affine_only: "
        "the one or the other. recalibrate: statistics are estimated on the training photos once, before training; then neither moves.",
        ("train", "frozen", "statistics_only", "affine_only", "recalibrate"),
    )
    batch_norm_scope: str = _setting(
        "all", "Which BatchNorm --batch_norm rules: all, or that of the part which --freeze freezes.", ("all", "frozen")
    )

    def __post_init__(self) -> None:
        _check_own_fields(self)


@dataclass(repr=False)  # TrainingArguments' own repr hides the token
class FinetuneArguments(TrainingArguments):
    """How a run is trained, saved and pushed: all of `TrainingArguments`, with defaults for fine-tuning on photos.

    Without an accelerator `use_cpu` becomes true. The Hub token is left out when the arguments are pickled, as the Trainer does beside
    every checkpoint.

    Raises:
        ConfigError: Values outside their range, or a precision that this machine cannot do; all of them at once.
    """

    output_dir: str | None = _setting("runs/finetune", "Folder for everything the run writes.")
    overwrite_output_dir: bool = _setting(False, "Replace what an earlier run left in the output folder.")
    resume_from_checkpoint: str | None = _setting(None, "last, or a checkpoint folder: go on from there as if never interrupted.")
    num_train_epochs: float = _setting(5.0, "Passes over the training photos.")
    per_device_train_batch_size: int = _setting(32, "Photos a device and step.")
    per_device_eval_batch_size: int = _setting(64, "Photos a device and step of evaluation.")
    learning_rate: float = _setting(1e-3, "Peak learning rate.")
    head_lr: float | None = _setting(None, "Peak learning rate of the head; by default --learning_rate.")
    backbone_lr: float | None = _setting(None, "Peak learning rate of all below the head; by default --learning_rate.")
    layer_lr_decay: float = _setting(
        1.0, "Each layer group below the head learns at this fraction of the rate of the one above it; 0.75 is common for a ViT."
    )
    group_lr: str | None = _setting(None, "Peak learning rates of layer groups by a part of their name: layer4=1e-4,layer3=3e-5.")
    layer_groups: str = _setting(
        "block",
        "What a layer group is, for freezing and for learning rates: a block, or a stage of all blocks of one resolution.",
        ("block", "stage"),
    )
    unfreeze_warmup: int = _setting(0, "Steps over which the rate of a layer group rises when it is unfrozen after the first epoch.")
    lr_finder: bool = _setting(False, "Do not train: try rising learning rates for 100 steps, draw the loss against them, and propose one.")
    optim: OptimizerNames | str = _setting(
        TrainingArguments.default_optim,
        "Optimizer. adam: weight decay is L2 regularisation. nag: SGD with Nesterov momentum 0.9, or --optim_args momentum=NUMBER.",
        OPTIMIZERS,
    )
    ema_decay: float | None = _setting(
        None, "Evaluate, select and save the exponential moving average of the weights, with this decay a step; 0.999 is common."
    )
    early_stopping_patience: int | None = _setting(
        None, "Stop when so many evaluations in a row have not been better than the best one; needs --load_best_model_at_end."
    )
    lr_scheduler_type: SchedulerType | str = _setting("cosine", "Course of the learning rate after the warm-up.")
    warmup_steps: float = _setting(0.1, "Steps over which the learning rate rises; a value below 1 is a fraction of all steps.")
    weight_decay: float = _setting(0.01, "Weight decay of weight matrices; biases, norms and position embeddings have none.")
    eval_strategy: IntervalStrategy | str = _setting("epoch", "When to score the validation split.")
    save_strategy: SaveStrategy | str = _setting("epoch", "When to save a checkpoint.")
    save_total_limit: int | None = _setting(2, "Checkpoints kept, the best among them.")
    load_best_model_at_end: bool = _setting(True, "Finish with the checkpoint that was best on validation.")
    metric_for_best_model: str | None = _setting(
        "accuracy", "What best means: accuracy, top5_accuracy, macro_f1, balanced_accuracy, ece or loss, on validation."
    )
    logging_steps: float = _setting(10, "Steps between log lines; a value below 1 is a fraction of all steps.")
    precision: str = _setting(
        "auto",
        "auto: bfloat16 where the hardware computes in it (AMX, AVX512-BF16, Ampere and later), with float32 weights. fp32: float32.",
        ("auto", "fp32"),
    )
    feature_cache_gb: float = _setting(
        4.0, "GiB on disk for activations of a frozen part, which are computed once for all epochs and runs; 0 computes them every time."
    )
    image_cache_gb: float = _setting(
        4.0, "GiB on disk for training photos, decoded once for all epochs and runs; 0 decodes them in every epoch."
    )
    dataloader_num_workers: int = _setting(
        -1, "Processes that load photos; -1 chooses: none beside training on a CPU, which needs all cores, up to 8 beside a GPU."
    )
    remove_unused_columns: bool = _setting(False, "Stays false: photos become pixels when they are read.")

    def __post_init__(self) -> None:
        names = [item.name for item in dataclasses.fields(FinetuneArguments) if item.init]
        values = {name: getattr(self, name) for name in names}
        problems = _field_problems(values) + [sentence for _, sentence in precision_problems(values, str)]
        if problems:
            raise ConfigError(problems)
        # what depends on the machine, as it was asked for: the same file must start the same run on another one
        self._requested = {name: values[name] for name in _MACHINE_FIELDS}
        device = device_kind(self.use_cpu)
        if device == "cpu":
            self.use_cpu = True
        if self.dataloader_num_workers == -1:
            self.dataloader_num_workers = loader_processes(device)
            self.dataloader_persistent_workers |= self.dataloader_num_workers > 0
        if self.precision == "auto" and not self.fp16 and device in ("cpu", "cuda") and has_native_bf16(device):
            self.bf16 = True
            if device == "cuda" and self.tf32 is None:
                self.tf32 = True  # for what autocast leaves in float32
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("ece"):
            self.greater_is_better = False
        optimizer = self.optim
        if optimizer in OWN_OPTIMIZERS:
            self.optim = TrainingArguments.default_optim  # TrainingArguments knows its own alone
        super().__post_init__()
        if optimizer in OWN_OPTIMIZERS:
            self.optim = optimizer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **dict.fromkeys(SECRET_FIELDS)}


# TrainingArguments replaces these by what the machine it runs on needs
_MACHINE_FIELDS = (
    "use_cpu",
    "bf16",
    "tf32",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_multiprocessing_context",
    "torch_compile_backend",
    "disable_tqdm",
)
# of one launch, or without effect, or the old name of another field; never in config.yaml
_UNRECORDED = SECRET_FIELDS.union(
    FIXED_FIELDS,
    ("resume_from_checkpoint", "overwrite_output_dir", "local_rank", "parallelism_config"),
    ("gradient_checkpointing", "gradient_checkpointing_kwargs"),
)

_CLASSES = (DataArguments, ModelArguments, FinetuneArguments)
_SPECS: dict[str, FieldSpec] = field_specs(*_CLASSES)
_INHERITED = frozenset(item.name for item in dataclasses.fields(TrainingArguments))


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
        (Source(Rank.DEFAULT), {name: spec.default for name, spec in _SPECS.items()}),
        _checked(Rank.RECIPE, f"recipe {recipe}", recipe_defaults, problems),
    ]
    if {"-h", "--help"} & set(argv):
        print_help(_CLASSES, recipe, description or "", lay_over(layers).values, PRESETS, STUDY_HELP if study else {})
        sys.exit(0)
    flags = read_flags(argv, _SPECS, problems, study.readers() if study else None)
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
    defaults = (Source(Rank.DEFAULT, python=True), {name: spec.default for name, spec in _SPECS.items()})
    return _build([defaults, (source, check_values(flat, _SPECS, source, problems))], problems, python=True)


def config_values(arguments: Arguments) -> dict[str, Any]:
    """Return the settings of a run as plain values that `make_arguments` and YAML take.

    Defaults are there too, so that a later version with other defaults repeats the same run. Left out are secrets, what belongs to one
    launch only (resuming, overwriting), and what has no effect, such as the LoRA rank of a run without LoRA.
    """
    training = arguments.training
    values = {**vars(arguments.data), **vars(arguments.model), **training.to_dict(), **training._requested}
    values["debug"] = " ".join(DebugOption(option).value for option in training.debug)
    left_out = _UNRECORDED | moot_fields(values)
    return {name: values[name] for name in _SPECS if name not in left_out}


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
    values = check_values(read_yaml(source.label, problems), _SPECS, source, problems)
    if problems.sentences:
        raise ConfigError(problems.sentences)
    return values


def _checked(rank: Rank, label: str, values: Mapping[Any, Any], problems: Problems) -> tuple[Source, dict[str, Any]]:
    source = Source(rank, label)
    return source, check_values(values, _SPECS, source, problems)


def _build(layers: Iterable[tuple[Source, Mapping[str, Any]]], problems: Problems, *, python: bool) -> Arguments:
    settings = lay_over(layers, python=python)
    if sentences := problems.sentences + contradictions(settings, problems.rejected):
        raise ConfigError([redacted(sentence, settings["hub_token"]) for sentence in sentences])
    values = {name: copy.copy(value) for name, value in settings.values.items()}
    try:
        parts = HfArgumentParser(cast(Any, _CLASSES)).parse_dict(values)
    except (ValueError, TypeError, OSError, ImportError) as error:
        # the further checks of TrainingArguments, one at a time
        text = redacted(" ".join(str(error).split()), settings["hub_token"])
        raise ConfigError(f"TrainingArguments refuses these settings: {text}") from None
    return Arguments(*parts)


def _field_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with values by type, choice or range, those of plain TrainingArguments by range only."""
    problems = []
    for name, value in values.items():
        try:
            checked = value if name in _INHERITED else _SPECS[name].from_value(value)
            problem = range_problem(name, checked)
        except Mismatch as error:
            problem = str(error)
        if problem:
            problems.append(f"{name} {problem}")
    return problems


def _check_own_fields(arguments: DataArguments | ModelArguments) -> None:
    problems = _field_problems(vars(arguments))
    if problems:
        raise ConfigError(problems)
