"""fastai's side: `vision_learner` on a network of timm, with fastai's own loading, augmentation and optimizer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from fastai.vision.all import (
    Callback,
    CancelFitException,
    CancelValidException,
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    Flip,
    ImageBlock,
    IndexSplitter,
    ItemGetter,
    Learner,
    Normalize,
    RandomResizedCrop,
    Resize,
    set_seed,
    vision_learner,
)
from speed_clock import Marks, time_prediction
from speed_rows import BATCH, EVAL_BATCH, LEARNING_RATE, SEED, Row, model_folder, photos_folder, steps
from torch import nn


class Stopwatch(Callback):
    """Tells `Marks` what a Learner does, leaves validation out, and stops after the last step that is asked for."""

    def __init__(self, marks: Marks, last: int | None) -> None:
        self.marks, self.last = marks, last

    def before_fit(self):
        """Loaders and optimizer are there."""
        self.marks.training_begins()

    def before_epoch(self):
        """An epoch begins."""
        self.marks.epoch_begins()

    def after_batch(self):
        """A step has ended."""
        self.marks.step_ended()
        if self.marks.steps == self.last:
            raise CancelFitException

    def before_validate(self):
        """Leave it out."""
        raise CancelValidException


def measure(row: Row, photos: int, inputs: Path, output_dir: Path) -> dict[str, Any]:
    """Return the measurement of one row."""
    set_seed(SEED)
    dataset = datasets.load_from_disk(photos_folder(inputs, row, photos))
    config = json.loads((model_folder(inputs, row.model) / "config.json").read_text())
    learner = build_learner(row, dataset, config, output_dir)
    with learner.no_bar(), learner.no_logging():
        if row.evaluation:
            warm_up, test = (
                learner.dls.test_dl([(file,) for file, _ in pairs(dataset[split])], bs=EVAL_BATCH) for split in ("validation", "test")
            )
            return time_prediction(lambda loader: learner.get_preds(dl=loader), warm_up, test, photos)
        marks = Marks()
        learner.fit(row.epochs, LEARNING_RATE, cbs=Stopwatch(marks, None if row.whole else steps(photos) + 1))
        return marks.figures(row, photos)


def build_learner(row: Row, dataset: datasets.DatasetDict, config: dict[str, Any], output_dir: Path) -> Learner:
    """Return the Learner, with what shall not train frozen as fastai freezes, which leaves BatchNorm trainable."""
    side, (mean, std) = config["pretrained_cfg"]["input_size"][-1], (config["pretrained_cfg"][key] for key in ("mean", "std"))
    train, validation = pairs(dataset["train"]), pairs(dataset["validation"])
    block = DataBlock(
        (ImageBlock, CategoryBlock(vocab=dataset["train"].features["label"].names)),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=IndexSplitter(list(range(len(train), len(train) + len(validation)))),
        item_tfms=RandomResizedCrop(side, min_scale=0.08) if row.augmented else Resize(side),
        batch_tfms=[*([Flip()] if row.augmented else []), Normalize.from_stats(mean, std)],
    )
    loaders = block.dataloaders(train + validation, bs=BATCH)
    groups = {"splitter": partial(frozen_and_trained, parts=row.trainable)} if row.trainable else {}
    learner = vision_learner(loaders, config["architecture"], pretrained=False, loss_func=CrossEntropyLossFlat(), path=output_dir, **groups)
    if row.trainable:
        learner.freeze()
    return learner


def frozen_and_trained(model: nn.Sequential, parts: tuple[str, ...]) -> list[list[nn.Parameter]]:
    """Return the parameters in two groups, the second of which trains: the head, and what has one of `parts` in its name."""
    trains = {name: name.startswith("1.") or any(part in name for part in parts) for name, _ in model.named_parameters()}
    return [[parameter for name, parameter in model.named_parameters() if trains[name] is chosen] for chosen in (False, True)]


def pairs(dataset: datasets.Dataset) -> list[tuple[bytes, str]]:
    """Return the files of the photos, and the names of their classes."""
    names = dataset.features["label"].names
    files = dataset.cast_column("image", datasets.Image(decode=False))["image"]
    return [(file["bytes"], names[label]) for file, label in zip(files, dataset["label"], strict=True)]
