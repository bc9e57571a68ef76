"""The three dataclasses of settings, each field with its default, its help and its choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from hf_finetune.argument_parsing.checks import (
    device_kind,
    launched_precision,
    loader_processes,
    precision_problems,
    prefers_bf16,
    range_problem,
)
from hf_finetune.argument_parsing.fields import SECRET_FIELDS, FieldSpec, Mismatch, field_specs
from hf_finetune.errors import ConfigError

# of `hf_finetune.training.optim`, beside those of transformers
OWN_OPTIMIZERS = ("adam", "nag")
OPTIMIZERS = (*OWN_OPTIMIZERS, *(name.value for name in OptimizerNames))

# TrainingArguments replaces these by what the machine it runs on needs
MACHINE_FIELDS = (
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
        "Random view of a training photo. none: as in evaluation. light: resized crop of half its area or more, flip, "
        "rotation by up to 15 degrees and scale by up to a tenth. medium: the same, twice as far. randaugment, trivialaugment: crop, flip "
        "and torchvision's policy of that name. Or parts joined by +, such as crop+flip, of crop, flip, rotation and scale.",
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
    crop_pct: float | None = _setting(
        None, "Part of a photo's shorter side that the centre crop keeps; 1.0 for all of it; by default the checkpoint's own."
    )
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
        "What BatchNorm does; by default it trains where its layer trains and is frozen where its layer is. train: weights and statistics "
        "move. frozen: neither. statistics_only, affine_only: the one or the other. recalibrate: statistics are estimated on the training "
        "photos once, before training; then neither moves.",
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
    micro_batch_size: int | None = _setting(
        None,
        "Photos that go through the network at once in training, where memory is short; the gradient is that of the whole batch. By "
        "default for a transformer on a CPU 16 photos of 224 pixels, or as many pixels of others; else the whole batch, as with 0.",
    )
    learning_rate: float = _setting(1e-3, "Peak learning rate.")
    head_lr: float | None = _setting(None, "Peak learning rate of the head; by default --learning_rate.")
    backbone_lr: float | None = _setting(None, "Peak learning rate of all below the head; by default --learning_rate.")
    layer_lr_decay: float = _setting(
        1.0, "Each layer group below the head learns at this fraction of the rate of the one above it; 0.75 is common for a ViT."
    )
    group_lr: str | None = _setting(None, "Peak learning rates of layer groups by a part of their name: layer4=1e-4,layer3=3e-5.")
    layer_groups: str = _setting(
        "block",
        "What a layer group is, for freezing and for learning rates: a block, or a stage of blocks where the network has stages.",
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
    report: bool = _setting(True, "Write report.html, report.md and plots/ beside the figures of the run.")
    push_to_hub: bool = _setting(False, "Push the finished run once, at the end: checkpoint, adapter, model card and report in one commit.")
    hub_model_id: str | None = _setting(None, "Repository to push to: namespace/name, or name in your own namespace.")
    precision: str = _setting(
        "auto",
        "auto: bfloat16, with float32 weights, on hardware that is faster in it (AMX, Ampere and later), else float32. fp32: float32.",
        ("auto", "fp32"),
    )
    feature_cache_gb: float = _setting(
        4.0, "GiB on disk for activations of a frozen part, which are computed once for all epochs and runs; 0 computes them every time."
    )
    image_cache_gb: float = _setting(
        4.0,
        "GiB on disk for photos, decoded once for all epochs and runs; 0 decodes them in every epoch.",
    )
    dataloader_num_workers: int = _setting(
        -1, "Processes that load photos; -1 chooses: none beside training on a CPU, which needs all cores, up to 8 beside a GPU."
    )
    remove_unused_columns: bool = _setting(False, "Stays false: photos become pixels when they are read.")

    def __post_init__(self) -> None:
        # what depends on the machine, as it was asked for: the same file must start the same run on another one
        self._requested = {name: getattr(self, name) for name in MACHINE_FIELDS}
        launched = launched_precision()
        if launched and self.precision == "auto" and not (self.bf16 or self.fp16):
            setattr(self, launched, True)
        names = [item.name for item in dataclasses.fields(FinetuneArguments) if item.init]
        values = {name: getattr(self, name) for name in names}
        problems = _field_problems(values) + [sentence for _, sentence in precision_problems(values, str)]
        if problems:
            raise ConfigError(problems)
        device = device_kind(self.use_cpu)
        if device == "cpu":
            self.use_cpu = True
        if self.dataloader_num_workers == -1:
            self.dataloader_num_workers = loader_processes(device)
            self.dataloader_persistent_workers |= self.dataloader_num_workers > 0
        if self.precision == "auto" and not self.fp16 and prefers_bf16(device):
            self.bf16 = True
            if device == "cuda" and self.tf32 is None:
                self.tf32 = True  # for what autocast leaves in float32
        if self.precision == "fp32" and device == "cuda" and self.tf32 is None:
            self.tf32 = False  # torch's own default is TF32 in convolutions
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("ece"):
            self.greater_is_better = False
        optimizer = self.optim
        if optimizer in OWN_OPTIMIZERS:
            self.optim = TrainingArguments.default_optim  # TrainingArguments knows its own alone
        super().__post_init__()
        if optimizer in OWN_OPTIMIZERS:
            self.optim = optimizer
        self.mixed_precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "no"  # the launcher's word would overrule a flag

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **dict.fromkeys(SECRET_FIELDS)}


SECTIONS = (DataArguments, ModelArguments, FinetuneArguments)
SPECS: dict[str, FieldSpec] = field_specs(*SECTIONS)
_INHERITED = frozenset(item.name for item in dataclasses.fields(TrainingArguments))


def _field_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with values by type, choice or range, those of plain TrainingArguments by range only."""
    problems = []
    for name, value in values.items():
        try:
            checked = value if name in _INHERITED else SPECS[name].from_value(value)
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
