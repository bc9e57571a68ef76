"""Parameter groups: who gets which learning rate, and whom weight decay spares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_finetune.argument_parsing.rates import parse_momentum
from hf_finetune.arguments import FinetuneArguments
from hf_finetune.errors import ConfigError, did_you_mean, listed
from hf_finetune.models.freezing import head_parameter_names
from hf_finetune.models.layers import layer_groups
from hf_finetune.models.names import unwrap_peft


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
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    head_lr: float | None = None,
    backbone_lr: float | None = None,
    layer_lr_decay: float = 1.0,
    group_rates: Mapping[str, float] | None = None,
    granularity: str = "block",
    unfrozen_in: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Return the optimizer's groups over every parameter that requires a gradient, each part with and without weight decay.

    The parts are the backbone and the head. Where rates differ from layer to layer they are the groups of `layer_groups`: with layer-wise
    decay a group that is `k` groups below the head gets `learning_rate * layer_lr_decay ** k`, as in section A.5 of BEiT,
    https://arxiv.org/abs/2106.08254 (from ULMFiT, https://arxiv.org/abs/1801.06146, section 3.1).

    Args:
        model: A classifier, plain or inside a `PeftModel`.
        learning_rate: Peak rate, > 0.
        weight_decay: Decay of matrices and convolutions, >= 0; biases, norms and embeddings get 0.
        head_lr: Peak rate of the classification head; None gives it `learning_rate`.
        backbone_lr: Peak rate of the backbone and of adapters, and what layer-wise decay starts from; None gives them `learning_rate`.
        layer_lr_decay: In (0, 1]; 1 is no decay.
        group_rates: A part of the name of a layer group, such as `layer4` or `blocks.11`, to the peak rate of the groups so named.
        granularity: Of the layer groups, see `layer_groups`.
        unfrozen_in: Parameter → the first epoch in which it trains; groups are split by it, and carry it as `unfrozen_in`.

    Returns:
        Non-empty groups with keys `name`, `params`, `lr`, `weight_decay`, in a fixed order, so that a saved optimizer fits again.

    Raises:
        ConfigError: If a name of `group_rates` names no layer group.
    """
    head, spared = head_parameter_names(model), spared_from_decay(model)
    body_rate = learning_rate if backbone_lr is None else backbone_lr
    rates = {"backbone": body_rate, "head": learning_rate if head_lr is None else head_lr}
    parts = {name: "head" if name in head else "backbone" for name, _ in model.named_parameters()}
    if layer_lr_decay != 1.0 or group_rates:
        parts, layers = _layers_of_parameters(model, granularity)
        body = {name: body_rate * layer_lr_decay ** (len(layers) - 1 - index) for index, name in enumerate(layers)}
        rates = body | {"head": rates["head"]} | _named_rates(layers, group_rates or {})
    epochs = unfrozen_in or {}
    groups: dict[tuple[str, bool, int], list[nn.Parameter]] = {
        (part, decayed, epoch): [] for part in rates for epoch in sorted({0, *epochs.values()}) for decayed in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parts[name], name not in spared, epochs.get(name, 0)].append(parameter)
    return [
        {
            "name": f"{part}{'' if decayed else ' without decay'}{f' from epoch {epoch}' if epoch else ''}",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": weight_decay if decayed else 0.0,
            **({"unfrozen_in": epoch} if unfrozen_in is not None else {}),
        }
        for (part, decayed, epoch), parameters in groups.items()
        if parameters
    ]


def optimizer_options(args: FinetuneArguments) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """Return class and options of the optimizers that the Trainer does not have: `adam` and `nag`; None for its own.

    Adam (Kingma and Ba 2014, arXiv:1412.6980) adds weight decay to the gradient, as L2 regularisation; AdamW keeps it apart. NAG is SGD
    with Nesterov momentum (Sutskever et al. 2013), 0.9 unless `--optim_args momentum=...` says otherwise.
    """
    if args.optim == "adam":
        return torch.optim.Adam, {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    if args.optim == "nag":
        return torch.optim.SGD, {"lr": args.learning_rate, "momentum": parse_momentum(args.optim_args), "nesterov": True}
    return None


def check_rates(model: nn.Module, group_rates: Mapping[str, float], granularity: str = "block") -> None:
    """Raise `ConfigError` if a name of `group_rates` names no layer group of `model`."""
    _named_rates([layer.name for layer in layer_groups(model, granularity)] if group_rates else [], group_rates)


def _layers_of_parameters(model: nn.Module, granularity: str) -> tuple[dict[str, str], list[str]]:
    """Return parameter → layer group, under the names that `model` gives them, and the names of the groups from the stem to the head."""
    layers = layer_groups(model, granularity)
    inside = {id(parameter): name for name, parameter in unwrap_peft(model).named_parameters()}
    of = {name: layer.name for layer in layers for name in layer.parameters}
    return {name: of[inside[id(parameter)]] for name, parameter in model.named_parameters()}, [layer.name for layer in layers]


def _named_rates(layers: list[str], group_rates: Mapping[str, float]) -> dict[str, float]:
    rates: dict[str, float] = {}
    for part, rate in group_rates.items():
        found = [name for name in layers if f".{part}." in f".{name}."]
        if not found:
            raise ConfigError(
                f"--group_lr {part}={rate:g} names no layer group; there are {listed(layers, 30)}.{did_you_mean(part, layers)}"
            )
        rates |= dict.fromkeys(found, rate)
    return rates
