"""Callbacks: the epoch for the augmentation, log lines for a person, and a clean stop."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_finetune.data.transforms import TrainTransform

logger = logging.getLogger(__name__)


class BeginEpoch(TrainerCallback):
    """Tells the training transform and the trainer which epoch begins, for a resumed epoch too, where no data loader passes it on.

    Args:
        transform: Draws the views of the epoch.
        begin: Called with the number of the epoch.
    """

    def __init__(self, transform: TrainTransform, begin: Callable[[int], None]) -> None:
        self.transform, self.begin = transform, begin

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Pass the epoch on; a resumed one is fractional (0.67 after two thirds), and exact up to rounding at a boundary."""
        epoch = int((state.epoch or 0.0) + 1e-6)
        self.transform.set_epoch(epoch)
        self.begin(epoch)


class ReadableLog(TrainerCallback):
    """A progress bar on a terminal, one line an evaluation, and elsewhere a line of training every `quiet_seconds`.

    Args:
        quiet_seconds: Shortest time between two lines of training where there is no bar.
    """

    def __init__(self, quiet_seconds: float = 15.0) -> None:
        self.quiet_seconds = quiet_seconds
        self.bar: tqdm | None = None
        self.loss: float | None = None
        self.learning_rate: float | None = None
        self.started = (0.0, 0)
        self.last_line = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar at the step where training starts or goes on."""
        self.started = (time.perf_counter(), state.global_step)
        self.last_line = time.perf_counter()
        if state.is_world_process_zero and not args.disable_tqdm and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar by one step."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Remember the last training loss, and write a line for an evaluation, or for training after a while of silence."""
        logs = logs or {}
        self.loss, self.learning_rate = logs.get("loss", self.loss), logs.get("learning_rate", self.learning_rate)
        if self.bar is not None and self.loss is not None:
            self.bar.set_postfix(loss=f"{self.loss:.3f}")
        if not state.is_world_process_zero or not state.max_steps:
            return
        silent = self.bar is None and time.perf_counter() - self.last_line > self.quiet_seconds
        if "eval_loss" in logs or ("loss" in logs and silent):
            self.last_line = time.perf_counter()
            line = self._line(state, logs)
            if self.bar is not None:
                self.bar.clear()
            logger.info("%s", line)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _line(self, state: TrainerState, logs: dict[str, Any]) -> str:
        seconds, first_step = time.perf_counter() - self.started[0], self.started[1]
        parts = [f"epoch {logs.get('epoch', 0):5.2f}/{state.num_train_epochs:g}", f"step {state.global_step}/{state.max_steps}"]
        parts += [f"train loss {self.loss:.4f}"] if self.loss is not None else []
        parts += [f"validation loss {logs['eval_loss']:.4f}"] if "eval_loss" in logs else []
        parts += [f"validation accuracy {logs['eval_accuracy']:.4f}"] if "eval_accuracy" in logs else []
        parts += [f"lr {self.learning_rate:.2e}"] if self.learning_rate is not None else []
        done = state.global_step - first_step
        left = seconds / done * (state.max_steps - state.global_step) if done else 0.0
        return "  ".join([*parts, f"{seconds:.0f} s, {left:.0f} s left"])


class StopOnSignal(TrainerCallback):
    """On the first Ctrl-C or SIGTERM, finish the step, save a checkpoint and stop; a second one stops at once.

    Attributes:
        received: The signal's name, or None while none came.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.previous: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take over SIGINT and SIGTERM for the time of the training; several processes would stop at different steps, so not there."""
        if args.world_size > 1 or threading.current_thread() is not threading.main_thread():
            return
        self.previous = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop where a signal came during the step."""
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave out the evaluation that the Trainer makes where an epoch ends, if this one was cut short."""
        if self.received is not None and not float(state.epoch or 0).is_integer():
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give the signals back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        logger.warning("%s: finishing this step and saving a checkpoint; once more stops at once.", self.received)
