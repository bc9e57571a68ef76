"""BatchNorm: do its weights train, and do its mean and variance follow the new photos?

    accelerate launch recipes/batch_norm.py --preset demo                      # embedded data and checkpoint, no network
    accelerate launch recipes/batch_norm.py --batch_norm frozen                # everything trains but BatchNorm
    accelerate launch recipes/batch_norm.py --freeze head --batch_norm recalibrate
    python recipes/batch_norm.py --study                                       # every policy, on a trained and on a frozen network

The question: does fine-tuning the parameters of BatchNorm, or updating its estimates of mean and deviation, change the final accuracy? Both
are asked of a network that trains whole, and of a frozen one whose last layer trains.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.launch import run_recipe

DEFAULTS = {
    "model": "timm/resnet18.a1_in1k",
    "augmentation": "none",
    "batch_norm": "train",
    "learning_rate": 3e-4,
    "head_lr": 3e-3,
    "num_train_epochs": 8.0,
}
DEMO = {**DEFAULTS, "dataset": "drawn_pets", "model": "tiny_resnet", "max_train_samples": 740, "num_train_epochs": 4.0}
MODES = ("train", "frozen", "statistics_only", "affine_only", "recalibrate")


def cells(arguments: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return every policy with the rest of the network trained, then with it frozen."""
    trained = {f"all_{mode}": {"batch_norm": mode, "batch_norm_scope": "all", "freeze": "none"} for mode in MODES}
    return trained | {f"head_{mode}": {"batch_norm": mode, "batch_norm_scope": "all", "freeze": "head"} for mode in MODES}


def answer(results: Sequence[Any]) -> list[str]:
    """Say which policy to use, and how far BatchNorm alone comes on a frozen network."""
    from hf_finetune.reporting.study import choice, chosen

    said = [choice(results)]
    frozen = [result for result in results if result.name.startswith("head_")]
    if frozen:
        best, plain = chosen(frozen), next((result for result in frozen if result.name == "head_frozen"), frozen[0])
        said += ["", f"On the frozen network {best.name} is best on validation: {100 * best.accuracy:.1f} % on test, against"]
        said[-1] += f" {100 * plain.accuracy:.1f} % with BatchNorm as it was pretrained ({plain.name})."
    return said


def main() -> None:
    """Do what the command line says."""
    from hf_finetune.comparison import Comparison

    title = "BatchNorm: weights and statistics, trained, frozen or estimated anew"
    Comparison("batch_norm", title, cells, __doc__, DEFAULTS, DEMO, demo_seeds=(0,), answer=answer).run()


if __name__ == "__main__":
    run_recipe(main)
