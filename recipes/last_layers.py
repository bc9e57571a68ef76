"""Strategy 1: the last l layers are fine-tuned together from the start, for l = 0, 1, 2 ... until more of them bring nothing.

    accelerate launch recipes/last_layers.py --preset demo                     # embedded data and checkpoint, no network
    accelerate launch recipes/last_layers.py --freeze last:2                   # the last two stages of a ResNet-18, on Oxford-IIIT Pet
    python recipes/last_layers.py --study                                      # l = 0, 1, 2 ... with the stopping rule
    python recipes/last_layers.py --study --layer_groups block                 # residual blocks in place of whole stages

The stopping rule looks at validation alone: it ends the study when the last two cells have not been better than the best before them.
What is frozen computes its activations once for all epochs, so fewer layers also mean less time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.launch import run_recipe

DEFAULTS = {
    "model": "timm/resnet18.a1_in1k",
    "layer_groups": "stage",
    "augmentation": "none",
    "freeze": "last:1",
    "learning_rate": 3e-4,  # of what was pretrained
    "head_lr": 3e-3,  # the head starts from nothing
    "num_train_epochs": 8.0,
}
DEMO = {**DEFAULTS, "dataset": "drawn_pets", "model": "tiny_resnet", "max_train_samples": 740, "num_train_epochs": 4.0}
DEMO |= {"learning_rate": 1e-3, "head_lr": 1e-2}
PATIENCE = 2  # cells without an improvement on validation


def cells(arguments: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the head alone, then one layer group more in each cell, up to the whole network."""
    from hf_finetune.comparison import layer_count

    groups = layer_count(arguments)
    return {"head": {"freeze": "head"}} | {f"last_{number}": {"freeze": f"last:{number}"} for number in range(1, groups + 1)}


def enough(results: Sequence[Any]) -> bool:
    """Return whether the last cells were not better on validation than the best before them."""
    scores = [result.validation_accuracy for result in results]
    return len(scores) > PATIENCE and max(scores[-PATIENCE:]) <= max(scores[:-PATIENCE])


def answer(results: Sequence[Any]) -> list[str]:
    """Say how many layers are worth it."""
    from hf_finetune.reporting.study import choice, chosen

    if not enough(results):
        best, last = chosen(results), results[-1]
        more = " More layers may be better still: the best cell is the last that was run." if best.name == last.name != "head" else ""
        return [choice(results) + more]
    return [choice(results), "", f"The study ended after {results[-1].name}: the last {PATIENCE} cells were not better on validation."]


def main() -> None:
    """Do what the command line says."""
    from hf_finetune.comparison import Comparison

    title = "Strategy 1: how many of the last layers to fine-tune"
    Comparison("last_layers", title, cells, __doc__, DEFAULTS, DEMO, answer=answer, enough=enough).run()


if __name__ == "__main__":
    run_recipe(main)
