"""The layer groups of a classifier, from the pixels to the class scores."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hf_finetune.models.names import block_names, head_names, unwrap_peft, within


@dataclass(frozen=True)
class LayerGroup:
    """Parameters that freeze and train together.

    Attributes:
        name: `stem`, the full name of a block, `tail` or `head`.
        parameters: Names as in `model.named_parameters()`, in that order.
    """

    name: str
    parameters: tuple[str, ...]


def layer_groups(model: nn.Module) -> list[LayerGroup]:
    """Return the ordered groups stem → blocks → tail → head of a classifier, with every parameter in exactly one of them.

    A block is one transformer layer or one residual block (see `block_names`). What a model holds between two blocks, a downsampling for
    example, belongs to the block after it. What follows the last block is a group of its own, `tail`, where it holds a weight matrix
    or a convolution (EfficientNet's `conv_head`), and belongs to the last block where it does not (the final norm of a ViT). A model
    without repeated blocks has the groups `stem` and `head`.

    Args:
        model: A plain classifier of transformers, a timm net in its wrapper included.

    Returns:
        Non-empty groups in the order in which an image passes through them.

    Raises:
        ModelError: If no head can be found.
    """
    classifier = unwrap_peft(model)
    heads, blocks = head_names(classifier), block_names(classifier)
    members: dict[str, list[str]] = {name: [] for name in ("stem", *blocks, "tail", "head")}
    between: list[str] = []  # of which it is not known yet whether another block follows
    seen_block = False
    for name, _ in classifier.named_parameters():
        block = next((block for block in blocks if within(name, [block])), None)
        if within(name, heads):
            members["head"].append(name)
        elif block is not None:
            members[block] += [*between, name]
            between, seen_block = [], True
        elif seen_block:
            between.append(name)
        else:
            members["stem"].append(name)
    shapes = {name: parameter.ndim for name, parameter in classifier.named_parameters()}
    matrices = any(shapes[name] > 1 for name in between)
    members["tail" if matrices or not blocks else blocks[-1]] += between
    return [LayerGroup(name, tuple(parameters)) for name, parameters in members.items() if parameters]
