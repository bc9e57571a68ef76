"""Names of the parts of a classifier: its head, and its blocks in the order in which an image passes through them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from hf_finetune.errors import ModelError

# What the head is called in the classifiers of transformers; it counts where it holds a linear layer or a convolution.
_HEADS = ("classifier", "fc", "head", "dist_head", "score")
# A child by one of these names that holds numbered children makes its parent a stage, not a block.
_INNER = ("blocks", "layers")
# Numbered children of these are no blocks: the stem, and what turns pixels into tokens.
_NOT_BLOCKS = ("stem", "embed", "conv1", "downsample", "pool", "norm", "head", "classifier")


def is_timm(model: nn.Module) -> bool:
    """Return whether `model` is a timm net inside `TimmWrapperForImageClassification`."""
    return isinstance(getattr(model, "timm_model", None), nn.Module)


def head_names(model: nn.Module) -> list[str]:
    """Return the full names of the modules that turn features into class scores.

    Args:
        model: A classifier of `transformers`, a timm net in its wrapper included. A `PeftModel` is looked into.

    Returns:
        One name for most models (`classifier`, `timm_model.fc`), two for distilled ones (`timm_model.head`, `timm_model.head_dist`).

    Raises:
        ModelError: If no head can be found.
    """
    model = unwrap_peft(model)
    if is_timm(model):
        heads = model.timm_model.get_classifier()  # type: ignore[union-attr, operator]
        modules = list(heads) if isinstance(heads, (tuple, list)) else [heads]
        names = [name for name, module in model.named_modules() if any(module is head for head in modules) and _has_weights(module)]
    else:
        names = [name for name, child in model.named_children() if name in _HEADS and _has_weights(child)]
    if not names:
        children = ", ".join(name for name, _ in model.named_children())
        raise ModelError(
            f"No classification head was found in {type(model).__name__}, whose parts are {children}. "
            "Use a ViT, DeiT, DINOv2, Swin, ConvNeXt, ResNet, BEiT or any timm classifier."
        )
    return names


def block_names(model: nn.Module) -> list[str]:
    """Return the full names of the blocks, first to last; layer `i` of `--lora_layers` is entry `i`.

    A block is one transformer layer or one residual block. The stages of Swin, ConvNeXt and ResNet are walked in order, so that the
    numbers run on from stage to stage. A model without repeated blocks gives an empty list.
    """
    model = unwrap_peft(model)
    heads = head_names(model)
    for prefix, module in model.named_modules():
        found = [name for child, container in _numbered_children(module) for name in _blocks_in(_join(prefix, child), container)]
        found = [name for name in found if not within(name, heads)]
        if found:
            return found
    return []


def unwrap_peft(model: nn.Module) -> PreTrainedModel:
    """Return the classifier inside a `PeftModel`, or `model` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator, return-value]


def _numbered_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and not any(word in name for word in _NOT_BLOCKS) and _holds_blocks(child):
            yield name, child


def _holds_blocks(container: nn.Module) -> bool:
    children = list(container.children())
    return bool(children) and all(any(True for _ in child.children()) for child in children)


def _blocks_in(prefix: str, container: nn.Module) -> Iterator[str]:
    for number, child in container.named_children():
        name = f"{prefix}.{number}"
        inner = [child_name for child_name, _ in _numbered_children(child) if child_name in _INNER]
        if inner:
            yield from (f"{name}.{inner[0]}.{index}" for index, _ in child.get_submodule(inner[0]).named_children())
        elif isinstance(child, (nn.ModuleList, nn.Sequential)) and _holds_blocks(child):
            yield from (f"{name}.{index}" for index, _ in child.named_children())
        else:
            yield name


def within(name: str, parents: list[str]) -> bool:
    """Return whether the module `name` is one of `parents`, or lies inside one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _has_weights(module: nn.Module) -> bool:
    return any(isinstance(part, (nn.Linear, nn.Conv2d)) for part in module.modules())
