"""BatchNorm: whose weights train, whose running statistics follow the batch, and statistics estimated anew on other photos."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_finetune.errors import ModelError
from hf_finetune.models.modes import evaluating


class BatchNormMode(enum.Enum):
    """What BatchNorm does in training: `weight` and `bias` (affine), and the running mean and variance (statistics)."""

    TRAIN = "train"
    """Affine trains, statistics follow the batches."""
    FROZEN = "frozen"
    """Neither moves; the layer computes as in evaluation."""
    STATISTICS_ONLY = "statistics_only"
    """Statistics follow the batches, affine is frozen."""
    AFFINE_ONLY = "affine_only"
    """Affine trains, statistics are those of pretraining."""
    RECALIBRATE = "recalibrate"
    """Statistics are estimated once on the training photos, before training, without any gradient; then neither moves."""

    @property
    def affine_trains(self) -> bool:
        """Whether weight and bias train."""
        return self in (BatchNormMode.TRAIN, BatchNormMode.AFFINE_ONLY)

    @property
    def statistics_move(self) -> bool:
        """Whether mean and variance follow the batches of training."""
        return self in (BatchNormMode.TRAIN, BatchNormMode.STATISTICS_ONLY)


@dataclass(frozen=True)
class BatchNormPolicy:
    """Which BatchNorm does what.

    Attributes:
        mode: What it does; None lets it go with its layer: it trains where its own weights train, and is frozen where they are.
        scope: `all`, or `frozen` for the BatchNorm whose own weights the freezing schedule freezes; the rest then goes with its layer.
    """

    mode: BatchNormMode | None = None
    scope: str = "all"

    def trained(self, norms: dict[str, nn.Module], scheduled: set[str]) -> set[str]:
        """Return the names of the parameters that train, from those that a freezing schedule lets train."""
        if self.mode is None:
            return scheduled
        ruled = self._ruled(norms, scheduled)
        own = {f"{name}.{parameter}" for name in ruled for parameter, _ in norms[name].named_parameters(recurse=False)}
        return scheduled | own if self.mode.affine_trains else scheduled - own

    def held(self, norms: dict[str, nn.Module], scheduled: set[str]) -> set[str]:
        """Return the names of the BatchNorm modules that compute as in evaluation while the rest trains.

        Args:
            norms: All BatchNorm of a model by name.
            scheduled: Names of the parameters that the freezing schedule lets train.
        """
        ruled = set() if self.mode is None else self._ruled(norms, scheduled)
        still = ruled if self.mode is not None and not self.mode.statistics_move else set()
        return still | {name for name in norms.keys() - ruled if _is_frozen(name, norms[name], scheduled)}

    def _ruled(self, norms: dict[str, nn.Module], scheduled: set[str]) -> set[str]:
        return {name for name, norm in norms.items() if self.scope == "all" or _is_frozen(name, norm, scheduled)}


def _is_frozen(name: str, norm: nn.Module, scheduled: set[str]) -> bool:
    """Return whether a module has parameters of its own, and none of them trains."""
    own = [f"{name}.{parameter}" for parameter, _ in norm.named_parameters(recurse=False)]
    return bool(own) and scheduled.isdisjoint(own)


def batchnorm_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every BatchNorm by its full name; timm's `BatchNormAct2d` and `SyncBatchNorm` count as BatchNorm too."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def require_batchnorm(model: nn.Module, what: str) -> dict[str, nn.Module]:
    """Return `batchnorm_modules(model)`.

    Args:
        model: Any module.
        what: The setting that needs them, for the message.

    Raises:
        ModelError: If there are none.
    """
    norms = batchnorm_modules(model)
    if not norms:
        raise ModelError(f"{what} does not apply to {type(model).__name__}, which has no BatchNorm.")
    return norms


def moving_batchnorm(model: nn.Module) -> list[nn.Module]:
    """Return the BatchNorm of `model` that follows the batches in training."""
    return [norm for norm in batchnorm_modules(model).values() if not _is_held(norm)]


def check_recomputation(model: nn.Module) -> None:
    """Refuse activation checkpointing where a network has none, or where computing activations twice would count them twice.

    Args:
        model: As it will train, its BatchNorm held where it is not to move.

    Raises:
        ModelError: With what to do.
    """
    if not getattr(model, "supports_gradient_checkpointing", True):
        raise ModelError(f"--activation_checkpointing does not apply to {type(model).__name__}; leave it out.")
    if moving := moving_batchnorm(model):
        raise ModelError(
            f"--activation_checkpointing computes every batch twice, and {len(moving)} BatchNorm layers would count it twice; "
            "add --batch_norm frozen, or leave it out."
        )


@torch.no_grad()
def recalibrate(model: nn.Module, norms: Iterable[nn.Module], batches: Iterable[torch.Tensor]) -> int:
    """Estimate the running mean and variance of BatchNorm anew, as the mean over batches of each batch's own statistics.

    After `torch.optim.swa_utils.update_bn`, for chosen BatchNorm and with the rest of the network in evaluation mode, as it will be used.
    Li et al. 2016, Revisiting Batch Normalization for Practical Domain Adaptation, https://arxiv.org/abs/1603.04779.

    Args:
        model: A classifier, called with each batch; its modes are given back as they were.
        norms: What is estimated anew.
        batches: Pixel values [B, 3, H, W] on the device of the model; a short last batch counts as much as the others.

    Returns:
        The number of photos seen.
    """
    chosen: list[Any] = list(norms)
    momenta, photos = [norm.momentum for norm in chosen], 0
    with evaluating(model):
        for norm in chosen:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for a plain mean over all batches
            norm.train()
        try:
            for batch in batches:
                model(pixel_values=batch)
                photos += len(batch)
        finally:
            for norm, momentum in zip(chosen, momenta, strict=True):
                norm.momentum = momentum
    return photos


class BatchNormHold:
    """Keeps chosen BatchNorm in evaluation mode, whatever `model.train()` says and however often it says it.

    The `Trainer` calls `model.train()` before every forward pass and after its callbacks, so a mode that was set earlier does not last.
    A hook on each module sets it back just before the module computes; it works inside `PeftModel`, DDP and `torch.compile`, whoever calls
    the module. Only the statistics are held: `weight` and `bias` train on unless they are frozen.

    Args:
        norms: The modules that may be held, by name.
        names: Those that are held from the beginning.

    Attributes:
        names: Those that are held now.
    """

    def __init__(self, norms: Mapping[str, nn.Module], names: Iterable[str] = ()) -> None:
        self.names = set(names)
        hooks = {name: functools.partial(_stay_in_eval, name=name, held=self.names) for name in norms}
        self._handles = [norm.register_forward_pre_hook(hooks[name]) for name, norm in norms.items()]

    def hold(self, names: Iterable[str]) -> None:
        """Hold these from now on, and no others."""
        chosen = set(names)
        self.names.clear()  # the same set all along, which the hooks look into
        self.names.update(chosen)

    def remove(self) -> None:
        """Let all of them follow `model.train()` again."""
        for handle in self._handles:
            handle.remove()


def hold_batchnorm(model: nn.Module, predicate: Callable[[str, nn.Module], bool] | None = None) -> BatchNormHold:
    """Keep BatchNorm in evaluation mode, see `BatchNormHold`.

    Args:
        model: Any module.
        predicate: Takes the full name and the module, and returns whether to hold it; None holds every BatchNorm.

    Returns:
        A handle with `names` and `remove()`.
    """
    norms = batchnorm_modules(model)
    return BatchNormHold(norms, [name for name, module in norms.items() if predicate is None or predicate(name, module)])


def _is_held(norm: nn.Module) -> bool:
    hooks = [hook for hook in norm._forward_pre_hooks.values() if isinstance(hook, functools.partial) and hook.func is _stay_in_eval]
    return any(hook.keywords["name"] in hook.keywords["held"] for hook in hooks)


def _stay_in_eval(module: nn.Module, _inputs: tuple[Any, ...], *, name: str, held: set[str]) -> None:
    if module.training and name in held:
        module.eval()
