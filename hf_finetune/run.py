"""The whole way of one run: photos and a pretrained checkpoint in, a measured, reported, reloadable and pushed checkpoint out."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import DatasetDict
from peft import PeftModel
from PIL import Image
from transformers import BaseImageProcessor, EarlyStoppingCallback, PreTrainedModel, TrainerCallback, set_seed

from hf_finetune.arguments import Arguments, FinetuneArguments, ModelArguments
from hf_finetune.data.catalog import load_dataset
from hf_finetune.data.mixing import BatchMixing
from hf_finetune.data.transforms import TrainTransform, to_rgb
from hf_finetune.errors import Interrupted
from hf_finetune.models.batchnorm import BatchNormMode, BatchNormPolicy
from hf_finetune.models.classifier import load_classifier, save_classifier
from hf_finetune.models.freezing import FreezeSchedule
from hf_finetune.models.layers import has_stages
from hf_finetune.models.lora import add_lora, merge_lora
from hf_finetune.reporting.hub import check_repo_id, push_run
from hf_finetune.reporting.intervals import wilson_interval
from hf_finetune.reporting.model_card import write_card
from hf_finetune.reporting.plots import batch_plot, png, range_test_plot
from hf_finetune.reporting.report import build_report
from hf_finetune.reporting.wording import write_atomically
from hf_finetune.run_directory import check_directory, claim_directory, resume_checkpoint
from hf_finetune.run_metrics import describe_run, model_facts, reset_peak_memory, training_figures
from hf_finetune.training.callbacks import StopOnSignal
from hf_finetune.training.evaluation import Evaluation, evaluation_of
from hf_finetune.training.lr_finder import range_test
from hf_finetune.training.precision import describe
from hf_finetune.training.preview import first_batch
from hf_finetune.training.trainer import FinetuneTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: Where everything was written, see the README's table of the output folder.
        metrics: The contents of `metrics.json`.
        model: The classifier, adapters merged, in evaluation mode.
        processor: Its image processor.
        dataset: The splits it was trained and scored on.
        url: Where it was pushed, or None.
    """

    directory: Path
    metrics: dict[str, Any]
    model: PreTrainedModel = field(repr=False)
    processor: BaseImageProcessor = field(repr=False)
    dataset: DatasetDict = field(repr=False)
    url: str | None = None

    def summary(self) -> str:
        """Return the result in a few lines: accuracy with its interval, what trained, what it cost, where everything lies."""
        test, cost = self.metrics["test"], self.metrics["train"]
        photos = self.metrics["dataset"]["splits"]["test"]
        interval = wilson_interval(round(test["accuracy"] * photos), photos)
        lines = [
            f"Test accuracy {test['accuracy']:.4f} (95 % interval {interval.low:.4f} to {interval.high:.4f}, {photos} photos), "
            f"macro F1 {test['macro_f1']:.4f}.",
            f"Trained {cost['trainable_parameters']:,} of {cost['total_parameters']:,} parameters in {cost['runtime_s']:.0f} s, "
            f"of which {cost['validation_s']:.0f} s validation; peak memory {cost['peak_memory_bytes'] / 2**20:,.0f} MiB.",
            (f"Report: {page}   " if (page := self.directory / "report.html").is_file() else "") + f"Model: {self.directory / 'model'}",
        ]
        return "\n".join(lines + ([f"Pushed: {self.url}"] if self.url else []))


def finetune(arguments: Arguments) -> Run:
    """Fine-tune a pretrained classifier as `arguments` say: select on validation, score the test split once, write everything, then push.

    Args:
        arguments: From `parse_arguments` or `make_arguments`.

    Raises:
        FinetuneError: A setting, data set or checkpoint that cannot be used, or a push that failed after everything was written; the text
            says what to do.
        Interrupted: Ctrl-C or SIGTERM came during the training.
    """
    training, notices = arguments.training, list[str]()
    if training.push_to_hub:
        check_repo_id(str(training.hub_model_id))
    checkpoint = resume_checkpoint(arguments)
    check_directory(arguments)
    set_seed(training.seed)
    reset_peak_memory(training.device)

    dataset = load_splits(arguments, notices)
    model, processor = load_model(arguments.model, dataset, notices)
    if training.layer_groups == "stage" and not has_stages(model):
        notices.append(
            f"--layer_groups stage: the blocks of {arguments.model.model} stand in one row, so each is a layer group of its own."
        )
        logger.info(notices[-1])
    facts, stop = model_facts(arguments.model), StopOnSignal()
    trainer = build_trainer(arguments, dataset, model, processor, [stop])
    claim_directory(arguments)  # only now that everything that could be wrong with the input has been looked at
    logger.info(describe(training, trainer.layout))
    figures = train(trainer, checkpoint, len(dataset["train"]), notices)
    if stop.received is not None:
        raise Interrupted(
            f"{stop.received}: stopped after step {trainer.state.global_step}, a checkpoint is in {training.output_dir}. "
            "Go on with the same command and --resume_from_checkpoint last."
        )
    scores = {split: evaluation_of(trainer.predict_split(dataset[split]), dataset[split], split) for split in ("validation", "test")}
    metrics = describe_run(arguments, dataset, facts, trainer, figures, scores, notices)
    directory, url = Path(str(training.output_dir)), None
    if training.should_save:
        model = save_run(directory, trainer, processor, scores, metrics)
        if training.report:
            (directory / "plots").mkdir(exist_ok=True)
            write_atomically(directory / "plots" / "batch.png", png(batch_plot(first_batch(trainer))))
            build_report(directory, images=image_finder(dataset))
        write_card(directory)
        if training.push_to_hub:
            url = push_run(directory, str(training.hub_model_id), private=bool(training.hub_private_repo), token=training.hub_token)
    return Run(directory, metrics, model, processor, dataset, url)


def run_once(arguments: Arguments) -> str:
    """Do what `arguments` ask for, a fine-tuning or with `--lr_finder` a range test, and return the outcome in a few lines.

    Raises:
        FinetuneError: As `finetune`.
        Interrupted: Ctrl-C or SIGTERM came during the training.
    """
    return find_learning_rate(arguments) if arguments.training.lr_finder else finetune(arguments).summary()


def find_learning_rate(arguments: Arguments) -> str:
    """Make a learning-rate range test, write `lr_finder.png` and `lr_finder.json` into the output folder, and return what it found.

    Raises:
        FinetuneError: As `finetune`.
    """
    training = arguments.training
    check_directory(arguments)
    set_seed(training.seed)
    dataset = load_splits(arguments, [])
    model, processor = load_model(arguments.model, dataset, [])
    test = range_test(lambda args: build_trainer(dataclasses.replace(arguments, training=args), dataset, model, processor, []), training)
    claim_directory(arguments)
    directory = Path(str(training.output_dir))
    write_atomically(directory / "lr_finder.png", png(range_test_plot(test.rates, test.losses, test.smoothed, test.proposal)))
    write_atomically(directory / "lr_finder.json", json.dumps(dataclasses.asdict(test), indent=1) + "\n")
    found = (
        "The loss never fell: check the data and --freeze." if test.proposal is None else f"Proposed: --learning_rate {test.proposal:.1e}"
    )
    return f"{found}   Plot: {directory / 'lr_finder.png'}"


def build_trainer(
    arguments: Arguments, dataset: DatasetDict, model: PreTrainedModel, processor: BaseImageProcessor, callbacks: list[TrainerCallback]
) -> FinetuneTrainer:
    """Return the trainer for `model`, adapted or frozen as `arguments` say, on the splits of `dataset`."""
    data, training = arguments.data, without_push(arguments.training)
    mixing = BatchMixing(len(dataset["train"].features["label"].names), data.mixup_alpha, data.cutmix_alpha)
    transform = TrainTransform(
        processor,
        data.augmentation,
        training.seed,
        data.augmentation_views,
        random_erasing=data.random_erasing,
    )
    schedule = FreezeSchedule.parse(arguments.model.freeze, training.layer_groups) if arguments.model.adapter == "none" else None
    batch_norm = arguments.model.batch_norm and BatchNormMode(arguments.model.batch_norm)
    patience = training.early_stopping_patience
    return FinetuneTrainer(
        adapt(model, arguments.model),
        training,
        dataset["train"],
        dataset["validation"],
        processor,
        augmentation=transform,
        mixing=mixing,
        schedule=schedule,
        batch_norm=BatchNormPolicy(batch_norm or None, arguments.model.batch_norm_scope),
        callbacks=[*callbacks, *([EarlyStoppingCallback(patience)] if patience else [])],
    )


def without_push(arguments: FinetuneArguments) -> FinetuneArguments:
    """Return a copy for the Trainer that neither holds the token nor pushes.

    The Trainer would pickle the token into every checkpoint, and push on its own before the report exists. Nor does it get `data_seed`,
    which here cuts the splits: with it the photos would come in the same order whatever the seed.
    """
    quiet = copy.copy(arguments)
    quiet.hub_token, quiet.push_to_hub, quiet.data_seed = None, False, None
    return quiet


def load_splits(arguments: Arguments, notices: list[str]) -> DatasetDict:
    """Return the splits that `arguments.data` names, the first process filling the caches for the others."""
    data, training = arguments.data, arguments.training
    with training.main_process_first(desc="data set"):
        return load_dataset(
            data.dataset,
            label_column=data.label_column,
            image_column=data.image_column,
            validation_fraction=data.validation_fraction,
            test_fraction=data.test_fraction,
            max_train_samples=data.max_train_samples,
            max_eval_samples=data.max_eval_samples,
            skip_bad_images=data.skip_bad_images,
            seed=training.seed if training.data_seed is None else training.data_seed,
            notices=notices,
        )


def load_model(arguments: ModelArguments, dataset: DatasetDict, notices: list[str]) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Return the checkpoint that `arguments` name, with a head for the labels of `dataset`, and its image processor."""
    return load_classifier(
        arguments.model,
        dataset["train"].features["label"].names,
        image_size=arguments.image_size,
        crop_pct=arguments.crop_pct,
        revision=arguments.model_revision,
        dropout=arguments.dropout,
        drop_path=arguments.drop_path,
        notices=notices,
    )


def adapt(model: PreTrainedModel, arguments: ModelArguments) -> torch.nn.Module:
    """Return `model` with an adapter, or as it is."""
    if arguments.adapter == "lora":
        return add_lora(
            model,
            rank=arguments.lora_rank,
            alpha=arguments.lora_alpha,
            dropout=arguments.lora_dropout,
            targets=arguments.lora_targets,
            layers=arguments.lora_layers,
            dora=arguments.lora_dora,
            rslora=arguments.lora_rslora,
        )
    return model


def train(trainer: FinetuneTrainer, checkpoint: Path | None, train_images: int, notices: list[str]) -> dict[str, Any]:
    """Train, from `checkpoint` on where there is one, and return the figures for `metrics.json`."""
    steps_before = 0 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1])
    if steps_before:
        notices.append(f"Training was resumed at step {steps_before}: the training time counts only what came after it.")
    output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    asked, fitting = trainer.args.train_batch_size, trainer.state.train_batch_size
    if fitting != asked:
        notices.append(f"A batch of {asked} photos did not fit in memory: training began again with {fitting}.")
    return training_figures(trainer, output, steps_before, train_images)


def save_run(
    directory: Path,
    trainer: FinetuneTrainer,
    processor: BaseImageProcessor,
    scores: dict[str, Evaluation],
    metrics: dict[str, Any],
) -> PreTrainedModel:
    """Write adapter, merged model, metrics and predictions; return the merged model in evaluation mode."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(directory / "adapter"))
        model = merge_lora(model)
    save_classifier(model, processor, directory / "model")
    pq.write_table(pa.concat_tables([score.predictions for score in scores.values()]), directory / "predictions.parquet")
    trainer.save_state()
    write_atomically(directory / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return model.eval()


def image_finder(dataset: DatasetDict) -> Callable[[str, str], Image.Image]:
    """Return a function from split and `image_id` to the photo, for the thumbnails of the report."""
    rows = {split: {name: row for row, name in enumerate(part.with_format(None)["image_id"])} for split, part in dataset.items()}
    return lambda split, image_id: to_rgb(dataset[split][rows[split][image_id]]["image"])
