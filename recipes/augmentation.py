"""Augmentation and regularisation: what each part brings alone, and what all of them bring together.

    accelerate launch recipes/augmentation.py --preset demo                    # embedded data and checkpoint, no network
    accelerate launch recipes/augmentation.py --augmentation medium --cutmix_alpha 1 --weight_decay 1e-3
    python recipes/augmentation.py --study                                     # crop, flip, rotation, scale, erasing, MixUp, CutMix, L2

The question: how much do flips, small rotations, crops and small scalings, random erasing (arXiv:1708.04896), MixUp (arXiv:1710.09412),
CutMix (arXiv:1905.04899) and an L2 penalty help when everything is fine-tuned? `plots/batch.png` of a run shows what the network saw.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.launch import run_recipe

DEFAULTS = {
    "model": "timm/resnet18.a1_in1k",
    "augmentation": "none",
    "optim": "adam",  # whose weight decay is the gradient of an L2 penalty; that of AdamW does next to nothing in so few steps
    "weight_decay": 0.0,
    "learning_rate": 3e-4,
    "head_lr": 3e-3,
    "num_train_epochs": 8.0,
}
DEMO = {**DEFAULTS, "dataset": "drawn_pets", "model": "tiny_resnet", "max_train_samples": 592, "num_train_epochs": 3.0}
L2 = {"weight_decay": 1e-3}
NOTHING = {"optim": "adam", "augmentation": "none", "random_erasing": 0.0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "weight_decay": 0.0}


def cells(arguments: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return each part alone, then combinations."""
    compared: dict[str, dict[str, Any]] = {
        "nothing": {},
        "flip": {"augmentation": "flip"},
        "rotation": {"augmentation": "rotation"},
        "scale": {"augmentation": "scale"},
        "crop": {"augmentation": "crop"},
        "erasing": {"random_erasing": 0.5},
        "mixup": {"mixup_alpha": 0.2},
        "cutmix": {"cutmix_alpha": 1.0},
        "l2": L2,
        "l2_strong": {"weight_decay": 1e-2},
        "light": {"augmentation": "light"},
        "medium": {"augmentation": "medium"},
        "trivialaugment": {"augmentation": "trivialaugment"},
        "everything": {"augmentation": "medium", "random_erasing": 0.25, "mixup_alpha": 0.2, "cutmix_alpha": 1.0, **L2},
    }
    return {name: {**NOTHING, **settings} for name, settings in compared.items()}


def answer(results: Sequence[Any]) -> list[str]:
    """Say which parts help."""
    from hf_finetune.reporting.study import choice

    verdicts = {
        word: [result.name for result in results[1:] if result.verdict == word] for word in ("better", "no difference shown", "worse")
    }
    said = [
        f"{word.capitalize()} than nothing: {', '.join(names)}."
        for word, names in verdicts.items()
        if names and word != "no difference shown"
    ]
    if unclear := verdicts["no difference shown"]:
        said.append(f"No difference from nothing was shown for {', '.join(unclear)}.")
    return [choice(results), "", " ".join(said)]


def main() -> None:
    """Do what the command line says."""
    from hf_finetune.comparison import Comparison

    title = "Augmentation and regularisation, alone and together"
    Comparison("augmentation", title, cells, __doc__, DEFAULTS, DEMO, demo_seeds=(0,), answer=answer).run()


if __name__ == "__main__":
    run_recipe(main)
