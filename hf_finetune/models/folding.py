"""BatchNorm in evaluation folded into the convolution before it, for as long as a network predicts and nothing trains.

In evaluation mode BatchNorm is a factor and a summand a channel, which a convolution can take into its own weight and bias (Jacob et al.
2018, arXiv:1712.05877, section 3.2). A pass over the activations is saved for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.conv2d_same import conv2d_same
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_finetune.models.modes import evaluating, replace_forward


@contextmanager
def folded_batchnorm(model: nn.Module, example: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Let `model` predict with BatchNorm folded into the convolutions before it, within the block.

    Folded is each BatchNorm that alone gets the output of a convolution, which one call of the model shows. Parameters, buffers and the
    state dict stay as they are. Within the block the model must be in evaluation mode when it is called, its weights must not change,
    and no gradient reaches what is folded.

    Args:
        model: Any network.
        example: Returns the keywords of a call; asked only where the network has BatchNorm.
    """
    with ExitStack() as undo:
        if any(map(_is_norm, model.modules())):
            with torch.no_grad(), evaluating(model):
                for pair in _Trace(model).run(example()):
                    _fold(*pair, undo)
        yield


class _Trace(TorchDispatchMode):
    """Sees every operation of a network, and who takes the outputs of its convolutions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.made: list[tuple[nn.Conv2d, torch.Tensor]] = []  # tensors are kept, so that none comes to lie where another was
        self.taken: dict[int, set[nn.Module | None]] = {}
        self.norm: nn.Module | None = None  # that runs now

    def run(self, batch: dict[str, Any]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Return each convolution that ran once, with the BatchNorm that ran once and alone took its output."""
        ran: list[nn.Module] = []
        hooks = []
        for module in self.model.modules():
            if _is_convolution(module):
                hooks.append(module.register_forward_hook(self._keep))
            elif _is_norm(module):
                hooks += [module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave)]
            hooks.append(module.register_forward_pre_hook(lambda module, args: ran.append(module)))
        try:
            with self:
                self.model(**batch)
        finally:
            for hook in hooks:
                hook.remove()
        pairs = [(convolution, *self.taken.get(id(output), ())) for convolution, output in self.made]
        return [pair for pair in pairs if len(pair) == 2 and None not in pair and all(ran.count(module) == 1 for module in pair)]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs or {})):
            if isinstance(value, torch.Tensor):
                self.taken.setdefault(id(value), set()).add(self.norm)
        return function(*args, **(kwargs or {}))

    def _keep(self, module: nn.Conv2d, args: Any, output: torch.Tensor) -> None:
        self.taken.pop(id(output), None)  # of another tensor that lay there
        self.made.append((module, output))

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.norm = module

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.norm = None


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and _has_forward_of(module, nn.Conv2d, Conv2dSame)


def _is_norm(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and _has_forward_of(module, nn.BatchNorm2d, BatchNormAct2d)
    )


def _has_forward_of(module: nn.Module, *classes: type[nn.Module]) -> bool:
    return "forward" not in vars(module) and type(module).forward in [one.forward for one in classes]


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d, undo: ExitStack) -> None:
    """Let a convolution do what the BatchNorm after it does, until `undo` is closed."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (0 if convolution.bias is None else convolution.bias) - norm.running_mean
    weight = convolution.weight * factor.reshape(-1, 1, 1, 1)
    bias = shift * factor + (0 if norm.bias is None else norm.bias)
    undo.callback(replace_forward(convolution, lambda forward: _convolving(convolution, weight, bias)))
    undo.callback(replace_forward(norm, lambda forward: _what_follows(norm)))


def _convolving(convolution: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    if isinstance(convolution, Conv2dSame):
        settings: Any = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        return lambda images: conv2d_same(images, weight, bias, *settings)
    return lambda images: convolution._conv_forward(images, weight, bias)


def _what_follows(norm: nn.BatchNorm2d) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what a layer does beside BatchNorm: nothing, or in timm its activation."""
    return (lambda values: norm.act(norm.drop(values))) if isinstance(norm, BatchNormAct2d) else lambda values: values
