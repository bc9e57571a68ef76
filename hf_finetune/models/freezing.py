"""Which parameters train: the head, always, and of the backbone what is not frozen."""

from __future__ import annotations

from torch import nn

from hf_finetune.errors import ModelError
from hf_finetune.models.batchnorm import BatchNormHold, hold_batchnorm
from hf_finetune.models.layers import layer_groups
from hf_finetune.models.names import head_names, unwrap_peft

__all__ = ["freeze", "freeze_backbone", "freeze_below", "head_names", "head_parameter_names", "head_parameters"]


def freeze(model: nn.Module, which: str) -> BatchNormHold | None:
    """Freeze what `which` names.

    Args:
        model: A plain classifier, changed in place.
        which: `none`; `head`, which leaves the head alone trainable; or `last:L`, which leaves the last L layer groups and the head.

    Returns:
        What holds the BatchNorm modules of the frozen part, or None where nothing is frozen.

    Raises:
        ModelError: If no head can be found, or the model has fewer layer groups than `last:L` asks for.
    """
    if which == "none":
        return None
    return freeze_backbone(model) if which == "head" else freeze_below(model, int(which.removeprefix("last:")))


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
    return freeze_below(model, 0)


def freeze_below(model: nn.Module, layers: int) -> BatchNormHold:
    """Freeze everything below the last `layers` groups of `layer_groups`; these and the head train.

    This is strategy 1 of transfer learning, "fine-tune the last l layers". BatchNorm of the frozen part keeps its statistics, bit for
    bit; BatchNorm of the trainable part trains.

    Args:
        model: A plain classifier, changed in place.
        layers: Groups beside the head, at least 0.

    Returns:
        What holds the BatchNorm modules of the frozen part; `remove()` lets their statistics follow the data again.

    Raises:
        ModelError: If no head can be found, the head has no parameters, or there are fewer groups.
    """
    groups = layer_groups(model)
    body, head = groups[:-1], groups[-1]
    if head.name != "head":
        raise ModelError(f"The head of {type(model).__name__} ({', '.join(head_names(model))}) has no parameters to train.")
    if layers > len(body):
        raise ModelError(f"--freeze last:{layers} asks for more than {type(model).__name__} has: {len(body)} layer groups beside the head.")
    trained = {name for group in [*body[len(body) - layers :], head] for name in group.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    owners = {name.rpartition(".")[0] for name in trained}
    return hold_batchnorm(model, lambda name, _: name not in owners)
