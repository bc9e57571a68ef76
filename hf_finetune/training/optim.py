"""Parameter groups: who gets which learning rate, and whom weight decay spares."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_finetune.models.freezing import head_parameter_names


def spared_from_decay(model: nn.Module) -> set[str]:
    """Return the names of the parameters on which weight decay must not fall.

    Those are all biases, norms and layer scales (at most one dimension), and whatever the network itself names in `no_weight_decay()`
    or by the field's convention: class, mask, register and position embeddings. The Trainer's own rule goes by the names of modules,
    and lets decay fall on BatchNorm weights and on the embeddings of timm's ViTs.
    """
    own = {name for module in model.modules() if callable(rule := getattr(module, "no_weight_decay", None)) for name in rule()}
    embeddings = {"cls_token", "mask_token", "dist_token", "distillation_token", "register_tokens", "reg_token", "pos_embed"}
    embeddings |= {"position_embeddings", "relative_position_bias_table"}
    return {name for name, p in model.named_parameters() if p.ndim <= 1 or name.rsplit(".", 1)[-1] in own | embeddings}


def parameter_groups(
    model: nn.Module, *, learning_rate: float, head_learning_rate: float | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the optimizer's groups over every parameter that requires a gradient: backbone and head, each with and without decay.

    Args:
        model: A classifier, plain or inside a `PeftModel`.
        learning_rate: Peak rate of the backbone and of adapters, > 0.
        head_learning_rate: Peak rate of the classification head; None gives it `learning_rate`.
        weight_decay: Decay of matrices and convolutions, >= 0; biases, norms and embeddings get 0.

    Returns:
        Non-empty groups with keys `name`, `params`, `lr`, `weight_decay`, in a fixed order, so that a saved optimizer fits again.
    """
    head, spared = head_parameter_names(model), spared_from_decay(model)
    rates = {"backbone": learning_rate, "head": learning_rate if head_learning_rate is None else head_learning_rate}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {(part, decayed): [] for part in rates for decayed in (True, False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["head" if name in head else "backbone", name not in spared].append(parameter)
    return [
        {
            "name": f"{part}{'' if decayed else ' without decay'}",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (part, decayed), parameters in groups.items()
        if parameters
    ]
