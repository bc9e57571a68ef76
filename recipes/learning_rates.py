"""Learning rates that differ from layer to layer: the head faster than the backbone, and the first layers slowest of all.

    accelerate launch recipes/learning_rates.py --preset demo                  # embedded data and checkpoint, no network
    accelerate launch recipes/learning_rates.py --lr_finder                    # which rate to begin from
    accelerate launch recipes/learning_rates.py --layer_lr_decay 0.75 --head_lr 1e-2
    python recipes/learning_rates.py --study                                   # one rate, a faster head, layer-wise decay, schedules

The question: what do different rates, or different schedules, for different layers bring when everything is fine-tuned? All cells begin
from one `--learning_rate`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.launch import run_recipe

DEFAULTS = {"model": "timm/resnet18.a1_in1k", "layer_groups": "stage", "learning_rate": 1e-3, "num_train_epochs": 5.0}
DEMO = {**DEFAULTS, "dataset": "drawn_pets", "model": "tiny_resnet", "max_train_samples": 740, "num_train_epochs": 4.0}


def cells(arguments: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the compared rates."""
    rate = arguments.training.learning_rate
    plain = {"head_lr": None, "backbone_lr": None, "layer_lr_decay": 1.0, "group_lr": None, "freeze": "none", "unfreeze_warmup": 0}
    plain |= {"lr_scheduler_type": "cosine"}
    compared = {
        "one_rate": {},
        "head_10x": {"head_lr": 10 * rate},
        "backbone_tenth": {"backbone_lr": rate / 10, "head_lr": 10 * rate},
        "decay_0.7": {"layer_lr_decay": 0.7, "head_lr": 10 * rate},
        "decay_0.4": {"layer_lr_decay": 0.4, "head_lr": 10 * rate},
        "constant": {"lr_scheduler_type": "constant_with_warmup", "head_lr": 10 * rate},
        "warmup_by_layer": {"freeze": "gradual:start=1,every=1", "unfreeze_warmup": 10, "head_lr": 10 * rate},
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
