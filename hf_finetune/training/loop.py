"""The stock training loop, begun again and gone on with exactly."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import nn
from transformers import EarlyStoppingCallback, Trainer

from hf_finetune.training.weight_average import WeightAverage

logger = logging.getLogger(__name__)


class ExactLoop(Trainer):
    """A `Trainer` that begins again where it began, and does not go on where it had ended.

    - Where a batch does not fit in memory, which a schedule can bring about in any epoch, `--auto_find_batch_size` begins the training
      again with a smaller one. The stock Trainer does so from the weights and the optimizer state that it has reached.
    - From the checkpoint after which early stopping ended a training, the stock Trainer goes on for another epoch.

    Attributes:
        average: The average of the weights, where there is one.
    """

    average: WeightAverage | None = None
    _first: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._first = None

    def _update_auto_batch_size(self, batch_size: int) -> None:
        """Called before every attempt; keeps in main memory what the first one begins from."""
        super()._update_auto_batch_size(batch_size)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return  # no process has the weights whole
        model = cast(nn.Module, self.model)
        if self._first is None:
            self._first = _copied(model.state_dict()), _copied(self.average.average if self.average else {})
            return
        logger.warning("A batch does not fit in memory. Training begins again, with %d photos in a batch.", batch_size)
        weights, average = self._first
        model.load_state_dict(weights)
        if self.average:
            self.average.average = {name: tensor.to(self.args.device, copy=True) for name, tensor in average.items()}
        self.optimizer = None

    def _init_training_state(
        self, max_steps: Any, num_update_steps_per_epoch: Any, num_train_epochs: Any, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        """Return how many epochs, and batches of the next one, are behind: all of them where early stopping had ended the training."""
        behind = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)
        callbacks = [one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
        ended = any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in callbacks)
        return (num_train_epochs, 0) if ended and self.state.global_step else behind


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
