"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_finetune.errors import ModelError

_FILE = "weight_average.safetensors"


class WeightAverage(TrainerCallback):
    """Keeps the exponential moving average of what trains; every evaluation, the selection and the final model use it.

    After step t the average moves to the weights by 1 - min(decay, (1 + t) / (10 + t)), so that a short run is not held back by its first
    weights; that warm-up is the one of `tf.train.ExponentialMovingAverage`. Running statistics of BatchNorm are averaged alike, and
    counters copied. Polyak and Juditsky 1992, https://doi.org/10.1137/0330046.

    Args:
        model: What trains, without wrappers.
        decay: In (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.average: dict[str, torch.Tensor] = {}
        self._names: list[str] = []
        self._training = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember what trains now or later, before a schedule freezes it for a while."""
        self._names = self._names or list(self._live())
        self._training = True

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin from the weights and statistics that the first step begins from, unless a checkpoint has been loaded."""
        if not self.average:
            self.average = {name: tensor.detach().clone() for name, tensor in self._live().items()}

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the average after an optimizer step."""
        step = state.global_step - 1
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self._live().items():
            kept = self.average[name]
            kept.lerp_(tensor, weight) if tensor.is_floating_point() else kept.copy_(tensor)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the average the model."""
        if self.average:
            self._exchange()
        self._training = False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the weights; without effect before the first step, and after training, when it is there."""
        if not self._training or not self.average:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def save(self, directory: str | Path) -> None:
        """Write the average beside a checkpoint."""
        save_file({name: tensor.contiguous() for name, tensor in self.average.items()}, Path(directory) / _FILE)

    def load(self, directory: str | Path) -> None:
        """Read the average of a checkpoint.

        Raises:
            ModelError: If it has none.
        """
        file = Path(directory) / _FILE
        if not file.is_file():
            raise ModelError(f"{directory} holds no average of the weights ({_FILE}): it was made without --ema_decay; leave that out.")
        device = next(self.model.parameters()).device
        self.average = load_file(file, device=str(device))
        self._names = list(self.average)

    def _live(self) -> dict[str, torch.Tensor]:
        """Return what is averaged: the parameters that train now or later, known from the first step, and the buffers of the state."""
        tensors = self.model.state_dict(keep_vars=True)
        if self._names:
            return {name: tensors[name].detach() for name in self._names}
        return {name: tensor.detach() for name, tensor in tensors.items() if tensor.requires_grad or not isinstance(tensor, nn.Parameter)}

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._live().items():
            kept = self.average[name].clone()
            self.average[name].copy_(tensor)
            tensor.copy_(kept)
