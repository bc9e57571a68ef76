"""BatchNorm that keeps its running statistics while the rest of a model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


class BatchNormHold:
    """What keeps BatchNorm modules in evaluation mode until `remove()` is called.

    Args:
        names: The modules that are held.
        handles: One hook handle a module.
    """

    def __init__(self, names: list[str], handles: list[RemovableHandle]) -> None:
        self.names = names
        self._handles = handles

    def remove(self) -> None:
        """Let the modules follow `model.train()` again."""
        for handle in self._handles:
            handle.remove()


def hold_batchnorm(model: nn.Module, predicate: Callable[[str, nn.Module], bool] | None = None) -> BatchNormHold:
    """Keep BatchNorm in evaluation mode, whatever `model.train()` says and however often it says it.

    The `Trainer` calls `model.train()` before every forward pass and after its callbacks, so a mode that was set earlier does not last.
    A hook on each module sets it back just before the module computes; it works inside `PeftModel`, DDP and `torch.compile`, whoever calls
    the module. Only the statistics are held: `weight` and `bias` train on unless they are frozen.

    Args:
        model: Any module; timm's `BatchNormAct2d` and `SyncBatchNorm` count as BatchNorm too.
        predicate: Takes the full name and the module, and returns whether to hold it; None holds every BatchNorm.

    Returns:
        A handle with `names` and `remove()`.
    """
    chosen = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (predicate is None or predicate(name, module))
    }
    return BatchNormHold(list(chosen), [module.register_forward_pre_hook(_stay_in_eval) for module in chosen.values()])


def _stay_in_eval(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
    if module.training:
        module.eval()


def hold_frozen_batchnorm(model: nn.Module) -> BatchNormHold:
    """Keep BatchNorm in evaluation mode wherever, at the time it computes, none of its own parameters trains.

    Args:
        model: Any module. BatchNorm without weight and bias has nothing that could be frozen, and follows `model.train()`.

    Returns:
        A handle with the names of all BatchNorm modules that can be frozen, and `remove()`.
    """
    chosen = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and any(True for _ in module.parameters(recurse=False))
    }
    return BatchNormHold(list(chosen), [module.register_forward_pre_hook(_stay_in_eval_if_frozen) for module in chosen.values()])


def _stay_in_eval_if_frozen(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
    if module.training and not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        module.eval()
