"""Which parameters train, and when: the head, always, and of the backbone what a schedule lets train in an epoch."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from hf_finetune.errors import ModelError
from hf_finetune.models.batchnorm import BatchNormHold, BatchNormMode, BatchNormPolicy, batchnorm_modules, recalibrate, require_batchnorm
from hf_finetune.models.freeze_text import FreezeSettings, parse_freeze
from hf_finetune.models.layers import layer_groups
from hf_finetune.models.names import head_names, unwrap_peft

__all__ = ["FreezeSchedule", "head_names", "head_parameter_names", "head_parameters"]


# a hold knows no model, so that a model in use nowhere else goes away
_HOLDS: weakref.WeakKeyDictionary[nn.Module, BatchNormHold] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class FreezeSchedule:
    """A function from the epoch to the parameters that train.

    The head always trains. What trains once goes on training: a schedule only ever unfreezes. BatchNorm whose weights are frozen keeps its
    statistics, bit for bit.

    Args:
        settings: The schedule; the constructors below say what each means.
        granularity: Of the layer groups that `last` and `gradual` count, see `layer_groups`.
    """

    settings: FreezeSettings
    granularity: str = "block"

    @classmethod
    def parse(cls, text: str, granularity: str = "block") -> FreezeSchedule:
        """Return the schedule that `--freeze` names.

        Raises:
            ConfigError: If the text names none.
        """
        return cls(parse_freeze(text), granularity)

    @classmethod
    def none(cls) -> FreezeSchedule:
        """Everything trains."""
        return cls(FreezeSettings("none"))

    @classmethod
    def head(cls) -> FreezeSchedule:
        """The head alone trains: a linear probe."""
        return cls(FreezeSettings("head"))

    @classmethod
    def last(cls, layers: int, granularity: str = "block") -> FreezeSchedule:
        """The last `layers` groups of `layer_groups` and the head train from the start: strategy 1."""
        return cls(FreezeSettings("last", start=layers), granularity)

    @classmethod
    def gradual(cls, start: int = 1, every: int = 1, stop: int | None = None, granularity: str = "block") -> FreezeSchedule:
        """The last `start` groups train from the first epoch, and one more after every `every` epochs, up to `stop`: strategy 2.

        After Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, https://arxiv.org/abs/1801.06146, section
        3.3, who unfreeze one group an epoch (`start=0, every=1`). With `every=0` all groups up to `stop` train from the start.
        """
        return cls(FreezeSettings("gradual", start, every, stop), granularity)

    @classmethod
    def head_then_all(cls, epochs: int = 1) -> FreezeSchedule:
        """The head trains alone for `epochs` epochs, then everything: LP-FT of https://arxiv.org/abs/2202.10054."""
        return cls(FreezeSettings("head_then_all", every=epochs))

    @classmethod
    def batch_norm_only(cls) -> FreezeSchedule:
        """Weights and biases of BatchNorm, its statistics, and the head train: https://arxiv.org/abs/2003.00152."""
        return cls(FreezeSettings("batch_norm_only"))

    @classmethod
    def matching(cls, pattern: str) -> FreezeSchedule:
        """Parameters train whose names `re.search` finds `pattern` in, and the head."""
        return cls(FreezeSettings("matching", pattern=pattern))

    @property
    def constant(self) -> bool:
        """Whether the same parameters train in every epoch."""
        return self.settings.kind not in ("gradual", "head_then_all")

    def trainable(self, model: nn.Module, epoch: int) -> set[str]:
        """Return the names of the parameters that train in `epoch`, counted from 0.

        Args:
            model: A plain classifier.
            epoch: At least 0.

        Raises:
            ModelError: If no head can be found, there are fewer layer groups than asked for, there is no BatchNorm where it shall train, or
                nothing matches the pattern.
        """
        kind = self.settings.kind
        names = {name for name, _ in model.named_parameters()}
        if kind == "none" or (kind == "head_then_all" and epoch >= self.settings.every):
            return names
        head = head_parameter_names(model)
        if not head:
            raise ModelError(f"The head of {type(model).__name__} ({', '.join(head_names(model))}) has no parameters to train.")
        if kind in ("last", "gradual"):
            return head | self._last_groups(model, epoch)
        if kind == "batch_norm_only":
            return head | _batch_norm_parameters(model)
        if kind == "matching":
            return head | _matching_parameters(names, self.settings.pattern)
        return head

    def _last_groups(self, model: nn.Module, epoch: int) -> set[str]:
        body = [group for group in layer_groups(model, self.granularity) if group.name != "head"]
        start, every, stop = self.settings.start, self.settings.every, self.settings.stop
        for count in (start, stop or 0):
            if count > len(body):
                raise ModelError(
                    f"--freeze asks for {count} layer groups beside the head, more than {type(model).__name__} has, which is {len(body)}."
                )
        count = start
        if self.settings.kind == "gradual":
            last = len(body) if stop is None else stop
            count = min(start + epoch // every, last) if every else last
        return {name for group in body[len(body) - count :] for name in group.parameters}


class Freezer:
    """Freezes a model as a schedule and a BatchNorm policy say, epoch by epoch.

    Args:
        model: A plain classifier, changed in place.
        schedule: What trains when.
        batch_norm: What BatchNorm does.

    Raises:
        ModelError: If the policy asks for BatchNorm and there is none.
    """

    def __init__(self, model: nn.Module, schedule: FreezeSchedule, batch_norm: BatchNormPolicy | None = None) -> None:
        self.model, self.schedule, self.policy = model, schedule, batch_norm or BatchNormPolicy()
        if self.policy.mode is not None:
            require_batchnorm(model, f"--batch_norm {self.policy.mode.value}")
        self.norms = batchnorm_modules(model)
        if earlier := _HOLDS.get(model):
            earlier.remove()  # one freezer at a time says what is held
        self._hold = _HOLDS[model] = BatchNormHold(self.norms)

    def trainable(self, epoch: int) -> set[str]:
        """Return the names of the parameters that train in `epoch`, counted from 0.

        Raises:
            ModelError: As `FreezeSchedule.trainable`.
        """
        return self.policy.trained(self.norms, self.schedule.trainable(self.model, epoch))

    def apply(self, epoch: int) -> set[str]:
        """Let what trains in `epoch`, and nothing else, require a gradient; hold BatchNorm that does not move; return what trains."""
        scheduled = self.schedule.trainable(self.model, epoch)
        trained = self.policy.trained(self.norms, scheduled)
        self._hold.hold(self.policy.held(self.norms, scheduled))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
            if name not in trained:
                parameter.grad = None  # a frozen parameter is not moved by the gradient of its last step
        return trained

    def recalibrate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> tuple[int, int]:
        """Estimate the statistics of the held BatchNorm anew where the policy says so, once, before training.

        Args:
            batches: Gives pixel values [B, 3, H, W]; not called where there is nothing to estimate.

        Returns:
            The number of BatchNorm layers and of photos.
        """
        if self.policy.mode is not BatchNormMode.RECALIBRATE:
            return 0, 0
        held = set(self._hold.names)
        self._hold.hold(())  # for now they follow the batches
        try:
            return len(held), recalibrate(self.model, [self.norms[name] for name in sorted(held)], batches())
        finally:
            self._hold.hold(held)

    def stages(self, last_epoch: int) -> list[tuple[int, set[str]]]:
        """Return the epochs up to `last_epoch` in which what trains changes, the first one included, each with the names of what trains."""
        stages, final, epoch = [(0, self.trainable(0))], self.trainable(last_epoch), 0
        while stages[-1][1] != final and epoch < last_epoch:
            epoch += 1
            if (trained := self.trainable(epoch)) != stages[-1][1]:
                stages.append((epoch, trained))
        return stages

    def first_epochs(self, last_epoch: int) -> dict[str, int]:
        """Return parameter → the first epoch in which it trains, for those that train up to `last_epoch`."""
        first: dict[str, int] = {}
        for epoch, trained in self.stages(last_epoch):
            first = dict.fromkeys(trained, epoch) | first
        return first

    def remove(self) -> None:
        """Let all statistics follow `model.train()` again."""
        self._hold.remove()


def freeze(model: nn.Module, schedule: FreezeSchedule, epoch: int = 0, batch_norm: BatchNormPolicy | None = None) -> Freezer:
    """Freeze what `schedule` freezes in `epoch`; `apply` of what is returned moves on to another one.

    Args:
        model: A plain classifier, changed in place.
        schedule: What trains when.
        epoch: Counted from 0.
        batch_norm: What BatchNorm does.

    Raises:
        ModelError: As `Freezer` and `FreezeSchedule.trainable`.
    """
    freezer = Freezer(model, schedule, batch_norm)
    freezer.apply(epoch)
    return freezer


def _batch_norm_parameters(model: nn.Module) -> set[str]:
    norms = require_batchnorm(model, "--freeze batch_norm_only")
    return {f"{name}.{own}" for name, module in norms.items() for own, _ in module.named_parameters(recurse=False)}


def _matching_parameters(names: set[str], pattern: str) -> set[str]:
    found = {name for name in names if re.search(pattern, name)}
    if not found:
        some = ", ".join(sorted(names)[:3])
        raise ModelError(f"--freeze {pattern!r} matches no parameter; the names are such as {some}.")
    return found


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the head in the order of the model; inside a `PeftModel` the trained copy, not the original."""
    names = head_parameter_names(model)
    return [parameter for name, parameter in model.named_parameters() if name in names]


def head_parameter_names(model: nn.Module) -> set[str]:
    """Return the names that the head's parameters have in `model.named_parameters()`.

    Args:
        model: A classifier, plain or as a `PeftModel`, whose head then is the copy that the adapter trains and saves.

    Raises:
        ModelError: If no head can be found.
    """
    classifier = unwrap_peft(model)
    heads = [classifier.get_submodule(name) for name in head_names(classifier)]
    # PEFT keeps the original head beside the copies that it trains.
    active = [getattr(head, "modules_to_save", head) for head in heads]
    chosen = {id(parameter) for head in active for parameter in head.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
