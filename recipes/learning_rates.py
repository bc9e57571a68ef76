"""Learning rates that differ from layer to layer: the head faster than the backbone, and the first layers slowest of all.

    accelerate launch recipes/learning_rates.py --preset demo                  # embedded data and checkpoint, no network
    accelerate launch recipes/learning_rates.py --lr_finder                    # which rate to begin from
    accelerate launch recipes/learning_rates.py --layer_lr_decay 0.75 --head_lr 1e-2
    python recipes/learning_rates.py --study                                   # one rate, a faster head, layer-wise decay, schedules

The question: what do different rates, or different schedules, for different layers bring when everything is fine-tuned? All cells begin
from one `--learning_rate`, and all but the one with a single rate have the same rate for the new head, ten times as high.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.launch import run_recipe

DEFAULTS = {"model": "timm/resnet18.a1_in1k", "layer_groups": "stage", "learning_rate": 1e-3, "num_train_epochs": 5.0}
DEMO = {**DEFAULTS, "dataset": "drawn_pets", "model": "tiny_resnet", "max_train_samples": 740, "num_train_epochs": 4.0}
DEMO |= {"augmentation": "crop+flip"}


def cells(arguments: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the compared rates."""
    from hf_finetune.comparison import layer_count

    groups = layer_count(arguments)
    rate, epochs = arguments.training.learning_rate, max(1, int(arguments.training.num_train_epochs))
    by_layer = f"gradual:start={max(1, groups - epochs // 2)},every=1"  # all layers train from half of the epochs on
    plain = {"head_lr": 10 * rate, "backbone_lr": None, "layer_lr_decay": 1.0, "group_lr": None, "freeze": "none", "unfreeze_warmup": 0}
    plain |= {"lr_scheduler_type": "cosine"}
    compared: dict[str, dict[str, Any]] = {
        "head_10x": {},
        "one_rate": {"head_lr": None},
        "backbone_tenth": {"backbone_lr": rate / 10},
        "decay_0.7": {"layer_lr_decay": 0.7},
        "decay_0.4": {"layer_lr_decay": 0.4},
        "constant": {"lr_scheduler_type": "constant_with_warmup"},
        "warmup_by_layer": {"freeze": by_layer, "unfreeze_warmup": 10},
    }
    return {name: {**plain, **settings} for name, settings in compared.items()}


def answer(results: Sequence[Any]) -> list[str]:
    """Say which rates to use."""
    from hf_finetune.reporting.study import choice

    return [choice(results)]


def main() -> None:
    """Do what the command line says."""
    from hf_finetune.comparison import Comparison

    title = "Learning rates for each layer"
    Comparison("learning_rates", title, cells, __doc__, DEFAULTS, DEMO, answer=answer).run()


if __name__ == "__main__":
    run_recipe(main)
