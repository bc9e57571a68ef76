"""The learning-rate range test: a short training whose rate rises exponentially, and the rate that its loss speaks for."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_finetune.arguments import FinetuneArguments
from hf_finetune.training.schedulers import exponential, exponential_course
from hf_finetune.training.trainer import FinetuneTrainer

STEPS = 100
LOWEST_RATE, HIGHEST_RATE = 1e-6, 1.0
_SMOOTHING = 0.9
_DIVERGED = 4.0  # times the lowest smoothed loss
_MARGIN = 10.0  # the proposal is so many times below the rate at which the loss is lowest


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """What a range test measured.

    Attributes:
        rates: Of the group that learns at `--learning_rate`, one a step.
        losses: Training loss of each step.
        smoothed: Their exponential moving average, without the bias of its beginning.
        proposal: The rate to train with, or None where the loss never fell.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    proposal: float | None


def range_test(make_trainer: Callable[[FinetuneArguments], FinetuneTrainer], args: FinetuneArguments, steps: int = STEPS) -> RangeTest:
    """Train for `steps` steps at rates from 1e-6 to 1, or until the loss is four times its lowest, and propose a rate.

    Smith 2017, Cyclical Learning Rates, https://arxiv.org/abs/1506.01186; the exponential form and the rule, a tenth of the rate with the
    lowest smoothed loss, are those of fastai's `lr_find` ("minimum"). All groups rise together, so the ratios of `--head_lr`,
    `--layer_lr_decay` and `--group_lr` stay. A freezing schedule goes on as it would in the training.

    Args:
        make_trainer: Builds a trainer on a fresh model.
        args: Of the training that the rate is for; nothing of it is changed.
        steps: At least 2.

    Returns:
        The measurement; the trainer's model is of no further use.
    """
    trial = copy.copy(args)
    trial.max_steps, trial.logging_steps, trial.logging_first_step = steps, 1, True
    trial.eval_strategy = trial.save_strategy = "no"
    trial.load_best_model_at_end, trial.ema_decay, trial.unfreeze_warmup = False, None, 0
    trial.report_to, trial.early_stopping_patience, trial.logging_nan_inf_filter = [], None, False
    trainer = make_trainer(trial)
    record = _Record()
    trainer.add_callback(record)
    base = trial.learning_rate
    trainer.create_scheduler = lambda *_, **__: _rising(trainer, LOWEST_RATE / base, HIGHEST_RATE / base, steps)  # type: ignore[method-assign]
    trainer.train()
    smoothed = smooth(record.losses)
    rates = tuple(exponential(step, low=LOWEST_RATE, high=HIGHEST_RATE, steps=steps) for step in range(len(record.losses)))
    return RangeTest(rates, tuple(record.losses), tuple(smoothed), propose(rates, smoothed))


def smooth(losses: list[float]) -> list[float]:
    """Return the exponential moving average of `losses`, each value divided by the weight it has gathered so far."""
    smoothed, average = [], 0.0
    for step, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING**step))
    return smoothed


def propose(rates: tuple[float, ...], smoothed: list[float]) -> float | None:
    """Return a tenth of the rate at which the smoothed loss is lowest, or None where it never fell clearly below its beginning."""
    if len(smoothed) < 2:
        return None
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    start = statistics.fmean(smoothed[: max(len(smoothed) // 10, 1)])
    if smoothed[lowest] > 0.98 * start:
        return None
    return rates[lowest] / _MARGIN


def _rising(trainer: FinetuneTrainer, low: float, high: float, steps: int) -> Any:
    trainer.lr_scheduler = exponential_course(cast(torch.optim.Optimizer, trainer.optimizer), low, high, steps)
    return trainer.lr_scheduler


class _Record(TrainerCallback):
    """Collects the loss of every step, and stops where it has diverged."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Keep the loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            smoothed = smooth(self.losses)
            if not math.isfinite(self.losses[-1]) or smoothed[-1] > _DIVERGED * min(smoothed):
                self.losses = [loss for loss in self.losses if math.isfinite(loss)]
                control.should_training_stop = True
