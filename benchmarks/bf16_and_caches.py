"""Do bfloat16 and the caches change what is learnt? The head, and the last two layer groups, on photos of your own.

    python benchmarks/bf16_and_caches.py --study --dataset DIR --model DIR --num_train_epochs 6 --output_dir runs/bf16_and_caches

Every strategy trains in float32 without caches, in float32 with them, and in bfloat16 with them; all flags of the recipes are understood.
Needs hardware that computes in bfloat16.
"""

from collections.abc import Mapping
from typing import Any

from hf_finetune.launch import run_recipe

STRATEGIES = {"head": "head", "last_2": "last:2"}
WITHOUT = "fp32_no_caches"
CACHES = {"feature_cache_gb": 4.0, "image_cache_gb": 4.0}
NUMBERS = {
    WITHOUT: {"precision": "fp32", "bf16": False, "feature_cache_gb": 0.0, "image_cache_gb": 0.0},
    "fp32_caches": {"precision": "fp32", "bf16": False, **CACHES},
    "bf16_caches": {"precision": "auto", "bf16": True, **CACHES},
}
DEFAULTS = {"layer_groups": "stage", "augmentation": "none", "learning_rate": 3e-4, "head_lr": 3e-3, "num_train_epochs": 6.0}


def cells(arguments: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return every strategy in every kind of numbers; all are looked at before the first one trains."""
    from hf_finetune.arguments import make_arguments

    for settings in NUMBERS.values():
        make_arguments(output_dir=str(arguments.training.output_dir), use_cpu=arguments.training.use_cpu, **settings)
    return {f"{name}_{kind}": {"freeze": freeze, **settings} for name, freeze in STRATEGIES.items() for kind, settings in NUMBERS.items()}


def reference(cell: str) -> str:
    """Return the same strategy in float32 without caches."""
    return next(f"{name}_{WITHOUT}" for name in STRATEGIES if cell.startswith(f"{name}_"))


def main() -> None:
    """Do what the command line says."""
    from hf_finetune.comparison import Comparison

    title = "Do bfloat16 and the caches change what is learnt?"
    Comparison("bf16_and_caches", title, cells, __doc__, DEFAULTS, reference=reference, folder="benchmarks").run()


if __name__ == "__main__":
    run_recipe(main)
