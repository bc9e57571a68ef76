"""How the speed benchmark times a `transformers.Trainer`, the stock one and this project's."""

from __future__ import annotations

from typing import Any

from speed_clock import Marks
from speed_rows import Row
from transformers import Trainer, TrainerCallback


class Stopwatch(TrainerCallback):
    """Tells `Marks` what a Trainer does; added last, so that it sees an epoch begin after all other callbacks have made it ready."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def on_train_begin(self, args, state, control, **kwargs):
        """Loaders and optimizer are there."""
        self.marks.training_begins()

    def on_epoch_begin(self, args, state, control, **kwargs):
        """An epoch begins."""
        self.marks.epoch_begins()

    def on_step_end(self, args, state, control, **kwargs):
        """A step has ended."""
        self.marks.step_ended()


def time_training(trainer: Trainer, row: Row, photos: int) -> dict[str, Any]:
    """Train to the end and return the measurement."""
    marks = Marks()
    trainer.add_callback(Stopwatch(marks))
    trainer.train()
    return marks.figures(row, photos)
