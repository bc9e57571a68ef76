"""Modules that do something else for a while: evaluate, with every module's own mode given back, or another `forward`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode; afterwards each module is in the mode it was in, also where they differ."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def replace_forward(module: nn.Module, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Put `around` about the module's `forward`, and return what undoes it."""
    had_own, before = "forward" in vars(module), module.forward
    module.forward = around(before)

    def undo() -> None:
        if had_own:
            module.forward = before
        else:
            del module.forward

    return undo
