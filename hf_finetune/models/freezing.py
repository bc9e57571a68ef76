"""Which parameters train: the head, always, and the backbone, unless it is frozen."""

from __future__ import annotations

from torch import nn

from hf_finetune.errors import ModelError
from hf_finetune.models.batchnorm import BatchNormHold, hold_batchnorm
from hf_finetune.models.names import head_names, unwrap_peft, within

__all__ = ["freeze_backbone", "head_names", "head_parameter_names", "head_parameters"]


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


def freeze_backbone(model: nn.Module) -> BatchNormHold:
    """Freeze everything but the head: no gradients, and BatchNorm statistics that stay as they are, bit for bit.

    Args:
        model: A plain classifier, changed in place.

    Returns:
        What holds the BatchNorm modules of the backbone; `remove()` lets their statistics follow the data again.

    Raises:
        ModelError: If no head can be found.
    """
    heads = head_names(model)
    names = head_parameter_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"The head of {type(model).__name__} ({', '.join(heads)}) has no parameters to train.")
    return hold_batchnorm(model, lambda name, _: not within(name, heads))
