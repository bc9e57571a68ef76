"""Where the trainable part of a network begins, and how to run the network from there on.

Below the lowest trainable layer nothing needs a gradient, so autograd records nothing there; and where that part computes the same in
training as in evaluation, what it gives for a photo never changes and can be kept (`hf_finetune.training.features`).

The boundary is found by trying, not by knowing families of networks: every module that ran to its end before the boundary is left out and
its output replaced by NaN, the boundary gets its real input, and the class scores must come out as they did. A skip connection
around the boundary would carry NaN into them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from hf_finetune.models.modes import evaluating, replace_forward

CACHED = "cached_activations"
# a part below which keeping activations on disk costs more than computing them
_WORTHWHILE = 0.1
_INPUT_NAMES = ("hidden_states", "input", "x")


class PrefixError(Exception):
    """The frozen part cannot be left out; the text completes "No feature cache: ..."."""


class _ReachedError(Exception):
    """Thrown at the boundary, since what comes after it is not needed."""


class FrozenPrefix:
    """The modules that run before the trainable part, and a switch that leaves them out.

    Once `attach` was called, the network takes `cached_activations` in place of `pixel_values` and starts at the boundary. Given
    `pixel_values` it runs whole, as ever.

    Args:
        model: The network as the Trainer calls it, perhaps a `PeftModel`.
        boundary: Full name of the module that gets the activations.
        skipped: Full names of the modules that are left out.
        outputs: What each of them returned for the images that were tried; tensors serve as shapes.
        image_shape: Of one image, 3 × height × width.
        batch: How many images were tried.

    Attributes:
        dtype: Of the activations, as the network computes them; known once the part was tried.
    """

    def __init__(
        self, model: nn.Module, boundary: str, skipped: list[str], outputs: dict[str, Any], image_shape: torch.Size, batch: int
    ) -> None:
        self.dtype = torch.float32
        self.model, self.boundary, self.skipped = model, boundary, skipped
        self._outputs, self._image_shape, self._batch = outputs, image_shape, batch
        self._activations: torch.Tensor | None = None
        self._undo: list[Callable[[], None]] = []

    @property
    def attached(self) -> bool:
        """Whether the network takes `cached_activations` now."""
        return bool(self._undo)

    def attach(self) -> None:
        """Let the network take `cached_activations` from now on."""
        for name in self.skipped:
            self._undo.append(replace_forward(self.model.get_submodule(name), self._short_cut(name)))
        entry = self.model.get_submodule(self.boundary)
        hooks = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            entry.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.model.register_forward_hook(self._end, always_call=True),
        ]
        self._undo += [hook.remove for hook in hooks]

    def detach(self) -> None:
        """Undo `attach`."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self._activations = None

    def activations(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the input of the boundary for `pixel_values` [B, 3, H, W], computed in evaluation mode and without gradients."""
        found: list[torch.Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(_first_tensor(args, kwargs)[2])
            raise _ReachedError

        hook = self.model.get_submodule(self.boundary).register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            with torch.no_grad(), evaluating(self.model):
                self.model(pixel_values=pixel_values)
        except _ReachedError:
            pass
        finally:
            hook.remove()
        return found[0]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor that the activations depend on: those left out, and frozen ones of modules around the boundary."""
        for name in self.skipped:
            for key, tensor in self.model.get_submodule(name).state_dict(keep_vars=True).items():
                yield f"{name}.{key}", tensor
        for parent in _ancestors(self.boundary):
            module = self.model.get_submodule(parent)
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            yield from ((f"{parent}.{key}", tensor) for key, tensor in own if not tensor.requires_grad)

    def description(self) -> str:
        """Return the settings of the modules left out, such as strides and epsilons, as text."""
        return "\n".join(f"{name}: {self.model.get_submodule(name)!r}" for name in self.skipped)

    def _short_cut(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def around(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                if self._activations is None:
                    return forward(*args, **kwargs)
                return tree_map(self._blank, self._outputs[name])

            return run

        return around

    def _blank(self, value: Any) -> Any:
        """Return NaN in the shape of `value`, for as many images as the activations are of."""
        if not isinstance(value, torch.Tensor):
            return value
        assert self._activations is not None
        count = value.shape[0] // self._batch * len(self._activations)
        return _nan(self._activations).to(value.dtype).expand(count, *value.shape[1:])

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._activations = kwargs.get(CACHED)
        if self._activations is None:
            return None
        kwargs = {key: value for key, value in kwargs.items() if key != CACHED}
        kwargs["pixel_values"] = _nan(self._activations).expand(len(self._activations), *self._image_shape)
        return args, kwargs

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._activations is None:
            return None
        position, keyword, _ = _first_tensor(args, kwargs)
        if keyword is not None:
            return args, {**kwargs, keyword: self._activations}
        return (*args[:position], self._activations, *args[position + 1 :]), kwargs

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            self._activations = None  # else the backward pass of activation checkpointing runs modules again, which need them until then


def find_frozen_prefix(
    model: nn.Module, images: torch.Tensor, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> FrozenPrefix:
    """Find the largest frozen part of `model` that can be left out.

    The model's weights, buffers, mode and the random state are left as they were.

    Args:
        model: A network that takes `pixel_values` and returns `logits`; what trains requires a gradient.
        images: [B, 3, H, W] float32, at least two that differ.
        autocast: The precision to compute in.

    Returns:
        The part, not attached yet.

    Raises:
        PrefixError: If there is no such part, or it behaves differently in training: dropout, or BatchNorm that is not held.
    """
    with _unchanged(model), autocast(), torch.no_grad():
        model.eval()
        trace = _Trace(model)
        logits = trace.run(images)
        first = trace.first_trainable()
        candidates = [trace.prefix(boundary) for boundary in [first, *reversed(_ancestors(first))] if boundary]
        for prefix in filter(None, candidates):
            if _same_scores(prefix, images, logits):
                _require_worth(prefix, images)
                _require_determinism(prefix, images)
                return prefix
    if any(candidates):
        raise PrefixError("no single place of the network separates what is frozen from what trains.")
    raise PrefixError("the first layers train, so there is nothing to keep.")


class _Trace:
    """The order in which the modules of a network run, what they return, and what they get."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.entered: dict[str, list[int]] = {}
        self.left: dict[str, list[int]] = {}
        self.outputs: dict[str, Any] = {}
        self.clock = 0

    def run(self, images: torch.Tensor) -> torch.Tensor:
        """Run the network once, and return its class scores."""
        self.images = images
        hooks = [module.register_forward_pre_hook(self._enter) for module in self.names]
        hooks += [module.register_forward_hook(self._leave) for module in self.names]
        try:
            return self.model(pixel_values=images).logits
        finally:
            for hook in hooks:
                hook.remove()

    def first_trainable(self) -> str:
        """Return the module that owns a trainable parameter and runs first."""
        owners = {name for name, module in self.model.named_modules() if any(p.requires_grad for p in module.parameters(recurse=False))}
        if not owners:
            raise PrefixError("nothing of the network trains.")
        return min(map(self._entered, owners), key=lambda name: self.entered[name][0])

    def _entered(self, name: str) -> str:
        """Return the module itself, or the nearest one around it that ran: some use the weights of a part without calling it."""
        while name not in self.entered:
            name = name.rpartition(".")[0]
        return name

    def prefix(self, boundary: str) -> FrozenPrefix | None:
        """Return what can be left out before `boundary`, or None where that is nothing."""
        if len(self.entered.get(boundary, [])) != 1:
            return None
        start = self.entered[boundary][0]
        around = _ancestors(boundary)
        skipped = [
            name
            for parent in around
            for child, _ in self.model.get_submodule(parent).named_children()
            if (name := f"{parent}.{child}" if parent else child) not in (*around, boundary)
            and name in self.left
            and max(self.left[name]) < start
            and not any(p.requires_grad for p in self.model.get_submodule(name).parameters())
        ]
        outputs = {name: self.outputs[name] for name in skipped}
        return FrozenPrefix(self.model, boundary, skipped, outputs, self.images.shape[1:], len(self.images)) if skipped else None

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.entered.setdefault(self.names[module], []).append(self.clock)
        self.clock += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.left.setdefault(self.names[module], []).append(self.clock)
        self.outputs[self.names[module]] = output
        self.clock += 1


def _same_scores(prefix: FrozenPrefix, images: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether the network gives `logits` from the boundary on, too."""
    try:
        activations = prefix.activations(images).clone()
        prefix.dtype = activations.dtype
        prefix.attach()
        found = prefix.model(**{CACHED: activations}).logits
    except (RuntimeError, TypeError, ValueError, IndexError, LookupError):
        return False  # the boundary gets no tensor, or what is left does not run on its own
    finally:
        prefix.detach()
    return torch.allclose(found, logits, rtol=1e-4, atol=1e-5)


def _require_worth(prefix: FrozenPrefix, images: torch.Tensor) -> None:
    with FlopCounterMode(display=False) as whole:
        prefix.model(pixel_values=images)
    with FlopCounterMode(display=False) as part:
        prefix.activations(images)
    if part.get_total_flops() < _WORTHWHILE * whole.get_total_flops():
        raise PrefixError("nearly all of the network trains, so there is little to keep.")


def _require_determinism(prefix: FrozenPrefix, images: torch.Tensor) -> None:
    """Refuse a part that gives other activations in training mode than in evaluation mode."""
    expected = prefix.activations(images)
    for _ in range(2):
        prefix.model.train()
        seen: list[torch.Tensor] = []
        hook = prefix.model.get_submodule(prefix.boundary).register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(_first_tensor(args, kwargs)[2]), with_kwargs=True
        )
        prefix.model(pixel_values=images)
        hook.remove()
        if not torch.allclose(seen[0], expected, rtol=1e-4, atol=1e-5):
            raise PrefixError("the frozen part computes differently in training (dropout, or BatchNorm that follows the batch).")


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, str | None, torch.Tensor]:
    """Return position, keyword and value of the first tensor that a module was called with."""
    for position, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            return position, None, value
    for keyword in _INPUT_NAMES:
        if isinstance(kwargs.get(keyword), torch.Tensor):
            return -1, keyword, kwargs[keyword]
    raise LookupError("no tensor")


def _ancestors(name: str) -> list[str]:
    """Return the modules around `name`, the outermost first, which is the network itself (an empty name)."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts))] if name else []


def _nan(like: torch.Tensor) -> torch.Tensor:
    return torch.full((), float("nan"), dtype=torch.float32, device=like.device)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give back modes, buffers and the random state when the block ends."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(), evaluating(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])
