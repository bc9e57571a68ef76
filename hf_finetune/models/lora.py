"""LoRA adapters on any classifier: targets resolved from its own modules, a head that always trains, and a merge that changes nothing.

LoRA: https://arxiv.org/abs/2106.09685, DoRA: https://arxiv.org/abs/2402.09353, rsLoRA: https://arxiv.org/abs/2312.03732.
"""

from __future__ import annotations

import functools
import re

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from hf_finetune.errors import ModelError, did_you_mean, listed
from hf_finetune.models.batchnorm import hold_batchnorm
from hf_finetune.models.freezing import head_parameters
from hf_finetune.models.names import block_names, head_names, within

KEYWORDS = ("attention", "attention+mlp", "all-linear")

_ATTENTION = re.compile(r"attn|attention")
# Inside or beside attention, but no projection of queries, keys, values or outputs: position biases, gates, pooling for the head.
_NOT_PROJECTION = re.compile(r"mlp|bias|pool|norm|gate|down|rel_pos|pos_embed")
_MLP_PART = ("mlp", "ffn", "feed_forward", "intermediate", "output")
_MLP_LAYER = ("fc1", "fc2", "pwconv1", "pwconv2")


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    targets: str = "attention",
    layers: str = "all",
    dora: bool = False,
    rslora: bool = False,
) -> PeftModel:
    """Put LoRA adapters on a classifier; the adapters and the head train, everything else is frozen.

    BatchNorm is held in evaluation mode, since an adapter does not save its running statistics.

    Args:
        model: A classifier from `load_classifier`; changed in place.
        rank: Width of the adapters, at least 1.
        alpha: Scale of the adapters, above 0; they are multiplied by `alpha / rank`, or `alpha / sqrt(rank)` with `rslora`.
        dropout: Probability in [0, 1) with which an adapter's input is dropped in training.
        targets: `attention` (projections of queries, keys, values and outputs), `attention+mlp`, `all-linear` (every linear layer but the
            head), or a regular expression that must match the whole name of a linear layer or convolution.
        layers: `all`, `last:N`, or block numbers and ranges from 0 on, such as `6-11` or `0,2,4`. Stages are numbered through.
        dora: Train magnitude and direction apart.
        rslora: Scale by `alpha / sqrt(rank)`.

    Returns:
        A `PeftModel` whose `save_pretrained` asks no network.

    Raises:
        ModelError: If a number is out of range, or targets and layers select nothing that an adapter can be put on and merged from.
    """
    _check_numbers(rank, alpha, dropout)
    names = target_modules(model, targets, layers)
    heads = head_names(model)
    hold = hold_batchnorm(model, lambda name, _: not within(name, heads))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=names,
        modules_to_save=heads,
        use_dora=dora,
        use_rslora=rslora,
        bias="none",
    )
    adapted = get_peft_model(model, config)
    # PEFT ignores a name in modules_to_save that it does not find; a head that stays random would be the result.
    trained = head_parameters(adapted)
    if not trained or not all(parameter.requires_grad for parameter in trained):
        raise ModelError(f"PEFT did not take up the head ({', '.join(heads)}) of {type(model).__name__}, so it would not train.")
    adapted.batchnorm_hold = hold  # type: ignore[assignment]
    # Otherwise PEFT asks the Hub for the base model's vocabulary at every checkpoint.
    adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return adapted


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Fold the adapters into the weights and return the plain classifier, whose outputs are the same up to rounding (1e-5).

    Args:
        model: From `add_lora` or `PeftModel.from_pretrained`; it is taken apart and must not be used afterwards. Save the adapter first.

    Raises:
        ModelError: If an adapter holds NaN or infinity, as after a diverged training.
    """
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(f"The adapter cannot be merged: {error} The training has diverged; lower the learning rate.") from None
    if (hold := getattr(model, "batchnorm_hold", None)) is not None:
        hold.remove()
    return merged


def target_modules(model: PreTrainedModel, targets: str = "attention", layers: str = "all") -> list[str]:
    """Return the full names of the modules that `targets` and `layers` select, in the order of the model.

    Args:
        model: A plain classifier.
        targets: As in `add_lora`.
        layers: As in `add_lora`.

    Raises:
        ModelError: If nothing is selected, or a selected convolution is grouped, since its adapter could not be merged.
    """
    heads, blocks = head_names(model), block_names(model)
    modules: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d)) and not within(name, heads)
    }
    chosen = [name for name, module in modules.items() if _is_target(name, module, targets, blocks)]
    if not chosen:
        raise ModelError(
            f"lora_targets {targets!r} matches no module of {_model_name(model)}. Use {', '.join(KEYWORDS)}, or a regular expression that "
            f"matches whole names such as {listed(_examples(modules), 6)}.{'' if targets in KEYWORDS else did_you_mean(targets, KEYWORDS)}"
        )
    chosen = _in_layers(chosen, layers, blocks, targets, model)
    grouped = [name for name in chosen if getattr(modules[name], "groups", 1) > 1]
    if grouped:
        raise ModelError(
            f"lora_targets {targets!r} matches {len(grouped)} grouped convolutions ({listed(grouped, 3)}), whose adapters "
            "cannot be merged; narrow the expression to the others."
        )
    return chosen


def _check_numbers(rank: int, alpha: float, dropout: float) -> None:
    if rank < 1:
        raise ModelError(f"lora_rank is {rank}; it must be at least 1.")
    if not alpha > 0:
        raise ModelError(f"lora_alpha is {alpha}; it must be above 0.")
    if not 0 <= dropout < 1:
        raise ModelError(f"lora_dropout is {dropout}; it must be at least 0 and below 1.")


def _is_target(name: str, module: nn.Module, targets: str, blocks: list[str]) -> bool:
    if targets == "all-linear":
        return isinstance(module, nn.Linear)
    if targets in KEYWORDS:
        if isinstance(module, nn.Conv2d) and (module.kernel_size, module.groups) != ((1, 1), 1):
            return False
        return _is_attention(name) or (targets == "attention+mlp" and _is_mlp(name) and within(name, blocks))
    return re.fullmatch(_compiled(targets), name) is not None


def _is_attention(name: str) -> bool:
    parts = name.split(".")
    inside = [index for index, part in enumerate(parts[:-1]) if _ATTENTION.search(part)]
    return bool(inside) and not any(_NOT_PROJECTION.search(part) for part in parts[inside[0] :])


def _is_mlp(name: str) -> bool:
    parts = name.split(".")
    if any(_ATTENTION.search(part) for part in parts):
        return False
    return parts[-1] in _MLP_LAYER or any(part in _MLP_PART for part in parts)


def _compiled(targets: str) -> re.Pattern[str]:
    try:
        return re.compile(targets)
    except re.error as error:
        raise ModelError(
            f"lora_targets {targets!r} is neither one of {', '.join(KEYWORDS)} nor a regular expression ({error})."
            f"{did_you_mean(targets, KEYWORDS)}"
        ) from None


def _in_layers(names: list[str], layers: str, blocks: list[str], targets: str, model: PreTrainedModel) -> list[str]:
    if layers == "all":
        return names
    if not blocks:
        raise ModelError(f"lora_layers {layers!r} cannot be used: {_model_name(model)} has no numbered layers; leave it at all.")
    wanted = [blocks[number] for number in parse_layers(layers, len(blocks))]
    chosen = [name for name in names if within(name, wanted)]
    if not chosen:
        matched = [str(number) for number, block in enumerate(blocks) if any(within(name, [block]) for name in names)]
        raise ModelError(
            f"lora_layers {layers!r} leaves none of the {len(names)} modules that lora_targets {targets!r} matches; they are in layers "
            f"{listed(matched) or 'outside all'}."
        )
    return chosen


def parse_layers(layers: str, count: int) -> list[int]:
    """Return the block numbers that `layers` names, sorted, each once.

    Args:
        layers: `all`, `last:N`, or numbers and ranges such as `6-11` or `0,2,4`.
        count: How many blocks the model has.

    Raises:
        ModelError: If the text cannot be read, or names a block that is not there.
    """
    if layers == "all":
        return list(range(count))
    if match := re.fullmatch(r"last:(\d+)", layers.strip()):
        last = int(match[1])
        if not 1 <= last <= count:
            raise ModelError(f"lora_layers {layers!r} asks for the last {last} layers; the model has {count}.")
        return list(range(count - last, count))
    numbers: set[int] = set()
    for part in layers.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ModelError(f"lora_layers {layers!r} cannot be read: use all, last:N, or numbers and ranges such as 6-11 or 0,2,4.")
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if max(numbers) >= count:
        raise ModelError(f"lora_layers {layers!r} names layer {max(numbers)}; the model has {count} layers, numbered 0 to {count - 1}.")
    return sorted(numbers)


def _examples(modules: dict[str, nn.Module]) -> list[str]:
    """One name of each kind: the first of those that differ in nothing but numbers."""
    kinds: dict[str, str] = {}
    for name, module in modules.items():
        if getattr(module, "groups", 1) == 1:
            kinds.setdefault(re.sub(r"\d+", "#", name), name)
    return list(kinds.values())


def _model_name(model: PreTrainedModel) -> str:
    architecture = getattr(model.config, "architecture", None)
    return f"{type(model).__name__} ({architecture})" if architecture else type(model).__name__
