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
    trained: dict[str, dict[str, Any]] = {
        f"all_{mode}": {"batch_norm": mode, "batch_norm_scope": "all", "freeze": "none"} for mode in MODES
    }
    return trained | {f"head_{mode}": {"batch_norm": mode, "batch_norm_scope": "all", "freeze": "head"} for mode in MODES}


def reference(cell: str) -> str:
    """Return the policy that others are compared with: as in any training, or as it was pretrained where the network is frozen."""
    return "all_train" if cell.startswith("all_") else "head_frozen"


def answer(results: Sequence[Any]) -> list[str]:
    """Say which policy is best on validation, on the network that trains whole and on the frozen one."""
    from hf_finetune.reporting.study import choice

    parts = {"Trained whole": "all_", "Frozen but for its head": "head_"}
    found = {words: [result for result in results if result.name.startswith(prefix)] for words, prefix in parts.items()}
    return [line for words, some in found.items() if some for line in (f"{words}. {choice(some)}", "")][:-1]


def main() -> None:
    """Do what the command line says."""
    from hf_finetune.comparison import Comparison

    title = "BatchNorm: weights and statistics, trained, frozen or estimated anew"
    Comparison("batch_norm", title, cells, __doc__, DEFAULTS, DEMO, demo_seeds=(0,), answer=answer, reference=reference).run()


if __name__ == "__main__":
    run_recipe(main)
