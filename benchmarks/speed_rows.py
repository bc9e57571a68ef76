"""What the speed benchmark measures: its rows, its sides, the aims, and one measurement as a `Task`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

SEED = 0
BATCH = 32
EVAL_BATCH = 64
LEARNING_RATE = 1e-3
SIDES = ("stock", "ours", "bf16", "raw", "fastai")
# batches beyond those that are timed, so that a loader that reads ahead still does so in the last timed step, as it did in the first
_SPARE_BATCHES = 4


@dataclass(frozen=True)
class Row:
    """One line of work that every side does.

    Attributes:
        what: In words, for the report.
        model: Which network: `resnet18`, `efficientnet` or `vit`.
        photos: Photos of a full run.
        quick_photos: Photos of a quick run.
        share: Of the photos that `--photos` asks for, in (0, 1].
        epochs: Passes over the photos, where the whole training is timed.
        augmented: Whether training sees random crops and flips.
        freeze: As the flag `--freeze` takes it.
        trainable: Parts of the names of what trains where not everything does, the head included.
        lora: Whether LoRA adapters train.
        evaluation: Whether the row predicts in place of training.
        whole: Whether the whole training is timed; otherwise one step of warm-up is left out.
    """

    what: str
    model: str
    photos: int = 320
    quick_photos: int = 160
    share: float = 1.0
    epochs: int = 1
    augmented: bool = False
    freeze: str = "none"
    trainable: tuple[str, ...] = ()
    lora: bool = False
    evaluation: bool = False
    whole: bool = False


ROWS = {
    "full_resnet18": Row("full fine-tuning of a ResNet-18", "resnet18", augmented=True),
    "full_efficientnet": Row("full fine-tuning of an EfficientNet-Lite0", "efficientnet", augmented=True),
    "last2_resnet18": Row(
        "last 2 blocks and head of a ResNet-18, 5 epochs without augmentation",
        "resnet18",
        epochs=5,
        freeze="last:2",
        trainable=("layer4.", "fc."),
        whole=True,
    ),
    "head_resnet18": Row(
        "head of a ResNet-18, 10 epochs without augmentation",
        "resnet18",
        photos=1000,
        quick_photos=250,
        epochs=10,
        freeze="head",
        trainable=("fc.",),
        whole=True,
    ),
    "vit_lora": Row(
        "LoRA of rank 8 on queries and values of a ViT-S",
        "vit",
        photos=160,
        quick_photos=80,
        share=0.5,
        augmented=True,
        lora=True,
    ),
    "evaluation": Row("predictions of an EfficientNet-Lite0", "efficientnet", evaluation=True),
}

# row → what is aimed at: at least so many times the stock rate, at least this fraction of the raw limit, at most this share of its memory
AIMS: dict[str, dict[str, float]] = {
    "full_resnet18": {"stock": 2.5, "raw": 0.93},
    "full_efficientnet": {"stock": 2.0, "raw": 0.93},
    "last2_resnet18": {"stock": 4.0},
    "head_resnet18": {"stock": 15.0},
    "vit_lora": {"stock": 1.5, "memory": 0.8, "raw": 0.93},
    "evaluation": {"stock": 1.8, "raw": 0.93},
}

# the training time of these is drawn against the number of photos
PLOT_ROWS = ("head_resnet18", "last2_resnet18")
PLOT_SIDES = ("stock", "ours")
PLOT_PHOTOS = (250, 500, 1000, 2000, 4000)


@dataclass(frozen=True)
class Task:
    """One measurement, in one process.

    Attributes:
        row: Name in `ROWS`.
        side: One of `SIDES`.
        round: Counted from 1.
        photos: How many the row asks for.
        dataset: Where the photos come from, as it was asked for.
        model: Where the weights come from, as it was asked for; None for random ones.
    """

    row: str
    side: str
    round: int
    photos: int
    dataset: str
    model: str | None


def steps(photos: int) -> int:
    """Return the optimizer steps that are timed where the whole training is not."""
    return max(1, photos // BATCH)


def stored_photos(row: Row, photos: int) -> tuple[int, int]:
    """Return how many photos the data set of a row holds to train on or predict, and beside them.

    A training whose warm-up is left out has more batches than it gets to; a prediction warms up on a batch of other photos. A training
    needs one photo beside it, since a data set without a validation split would lose some of its photos to one.
    """
    if row.evaluation:
        return photos, EVAL_BATCH
    return photos if row.whole else (steps(photos) + 1 + _SPARE_BATCHES) * BATCH, 1


def epochs(row: Row, photos: int) -> float:
    """Return the epochs to train; where a warm-up is left out, the part of one that ends after the last timed step."""
    if row.whole or row.evaluation:
        return row.epochs
    stored, _ = stored_photos(row, photos)
    return (steps(photos) + 0.5) * BATCH / stored  # the Trainer rounds up to whole steps


def photos_folder(inputs: Path, row: Row, photos: int) -> Path:
    """Return where the data set of a row that asks for so many photos lies."""
    return inputs / "photos" / "-".join(map(str, stored_photos(row, photos)))


def model_folder(inputs: Path, model: str) -> Path:
    """Return where the checkpoint of a network of `ROWS` lies."""
    return inputs / "models" / model


def absence(row: Row, side: str) -> str | None:
    """Return why a side cannot do a row, or None where it can."""
    if side == "bf16":
        # here, since no other side should carry what it imports
        from hf_finetune.argument_parsing.checks import device_kind, has_native_bf16, prefers_bf16

        kind = device_kind()
        if not has_native_bf16(kind):
            return "no native bfloat16"
        return "bfloat16 is the default" if prefers_bf16(kind) else None
    if side != "fastai":
        return None
    if importlib.util.find_spec("fastai") is None:
        return "not installed"
    return "has no LoRA" if row.lora else None
