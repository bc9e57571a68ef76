"""The layer groups of a classifier, from the pixels to the class scores."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from timm.models import group_parameters
from torch import nn

from hf_finetune.models.names import block_names, head_names, is_timm, unwrap_peft, within


@dataclass(frozen=True)
class LayerGroup:
    """Parameters that freeze and train together.

    Attributes:
        name: `stem`, the full name of a block or stage, `tail` or `head`.
        parameters: Names as in `model.named_parameters()`, in that order.
    """

    name: str
    parameters: tuple[str, ...]


GRANULARITIES = ("block", "stage")


def layer_groups(model: nn.Module, granularity: str = "block") -> list[LayerGroup]:
    """Return the ordered groups stem → blocks → tail → head of a classifier, with every parameter in exactly one of them.

    A block is one transformer layer or one residual block (see `block_names`). What a model holds between two blocks, a downsampling for
    example, belongs to the block after it. What follows the last block is a group of its own, `tail`, where it holds a weight matrix
    or a convolution (EfficientNet's `conv_head`), and belongs to the last block where it does not (the final norm of a ViT). Blocks of
    timm nets that are not numbered are those of timm's own `group_matcher`; a network of transformers without repeated blocks has the
    groups `stem` and `head`.

    Args:
        model: A plain classifier of transformers, a timm net in its wrapper included.
        granularity: `block`, or `stage`: the blocks of one resolution together. A network without stages, such as a ViT, has the same
            groups either way.

    Returns:
        Non-empty groups in the order in which an image passes through them.

    Raises:
        ModelError: If no head can be found.
        ValueError: If `granularity` is neither.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, not {granularity!r}.")
    classifier = unwrap_peft(model)
    heads, coarse = head_names(classifier), granularity == "stage"
    names = block_names(classifier)
    blocks = _by_timm(classifier, heads, coarse) if not names and is_timm(classifier) else {}
    stages = _stages(names) if coarse else {}
    for block in names:
        blocks |= {name: stages.get(block, block) for name, _ in classifier.get_submodule(block).named_parameters(prefix=block)}
    return _in_order(classifier, blocks, heads)


def has_stages(model: nn.Module) -> bool:
    """Return whether `layer_groups` by `stage` differ from those by `block`."""
    return layer_groups(model, "stage") != layer_groups(model, "block")


def group_table(model: nn.Module, granularity: str = "block") -> str:
    """Return the layer groups of `model` as a table for a person: name, parameters, and how many of them train now."""
    parameters = dict(unwrap_peft(model).named_parameters())
    rows = [("layer group", "parameters", "trainable")]
    for group in layer_groups(model, granularity):
        members = [parameters[name] for name in group.parameters]
        counts = (sum(p.numel() for p in members), sum(p.numel() for p in members if p.requires_grad))
        rows.append((group.name, f"{counts[0]:,}", f"{counts[1]:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{name:<{widths[0]}}  {count:>{widths[1]}}  {trains:>{widths[2]}}" for name, count, trains in rows)


def _stages(blocks: list[str]) -> dict[str, str]:
    """Return block → stage; none where all blocks stand in one row."""
    stages = {block: re.sub(r"(?<=\d)\.(?:blocks|layers)$", "", block.rpartition(".")[0]) for block in blocks}
    return stages if len(set(stages.values())) > 1 else {}


def _by_timm(model: nn.Module, heads: list[str], coarse: bool) -> dict[str, str]:
    """Return parameter → block for a net whose blocks are not numbered (RegNet, DenseNet, VGG), as timm's own `group_matcher` has it."""
    net: Any = model.timm_model
    groups: dict[int, list[str]] = group_parameters(net, net.group_matcher(coarse=coarse), reverse=False)
    blocks: dict[str, str] = {}
    for _, members in sorted(groups.items())[1:]:  # the first is the stem
        names = [name for member in members if not within(name := f"timm_model.{member}", heads)]
        blocks |= dict.fromkeys(names, _common_module(names, model))
    return blocks


def _common_module(names: list[str], model: nn.Module) -> str:
    """Return the module that holds the parameters `names` and no others, or where there is none, the one that holds the last of them."""
    if not names:
        return ""
    module = os.path.commonpath([name.replace(".", "/") for name in names]).replace("/", ".")
    inside = sum(within(name, [module]) for name, _ in model.named_parameters())
    return module if inside == len(names) else names[-1].rpartition(".")[0]


def _in_order(model: nn.Module, blocks: dict[str, str], heads: list[str]) -> list[LayerGroup]:
    """Return the groups; what belongs to no block is stem, tail or head by where it stands."""
    members: dict[str, list[str]] = {"stem": [], **{block: [] for block in blocks.values()}, "tail": [], "head": []}
    between: list[str] = []  # of which it is not known yet whether another block follows
    last = ""
    for name, _ in model.named_parameters():
        if within(name, heads):
            members["head"].append(name)
        elif name in blocks:
            last = blocks[name]
            members[last] += [*between, name]
            between = []
        elif last:
            between.append(name)
        else:
            members["stem"].append(name)
    matrices = any(model.get_parameter(name).ndim > 1 for name in between)
    members["tail" if matrices or not last else last] += between
    return [LayerGroup(name, tuple(parameters)) for name, parameters in members.items() if parameters]
