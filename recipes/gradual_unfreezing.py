"""Strategy 2: layers are unfrozen one after the other, from the last to the first, while the training goes on.

    accelerate launch recipes/gradual_unfreezing.py --preset demo              # embedded data and checkpoint, no network
    accelerate launch recipes/gradual_unfreezing.py --freeze gradual:start=1,every=2 --unfreeze_warmup 20
    python recipes/gradual_unfreezing.py --study                               # against strategy 1, with the same number of epochs

The question: is there any difference in accuracy or in training time between unfreezing gradually (Howard and Ruder 2018, arXiv:1801.06146)
and fine-tuning the same layers together from the start? Every cell sees every photo equally often, all layers of a gradual cell train from
half of the epochs on, and no cell takes activations from the feature cache, so that the times are those of the strategies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.launch import run_recipe

DEFAULTS = {
    "model": "timm/resnet18.a1_in1k",
    "layer_groups": "stage",
    "augmentation": "none",
    "freeze": "gradual:start=1,every=1",
    "learning_rate": 3e-4,  # of what was pretrained
    "head_lr": 3e-3,  # the head starts from nothing
    "num_train_epochs": 8.0,
}
DEMO = {**DEFAULTS, "dataset": "drawn_pets", "model": "tiny_resnet", "max_train_samples": 740, "num_train_epochs": 4.0}
DEMO |= {"learning_rate": 1e-3, "head_lr": 1e-2}


def cells(arguments: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return strategy 1 with all and half of the layers, strategy 2 in its variants, which end with the same layers, and the head alone."""
    from hf_finetune.comparison import layer_count

    groups = layer_count(arguments)
    half, epochs = -(-groups // 2), max(1, int(arguments.training.num_train_epochs))

    def gradual(stop: int) -> str:
        every = max(1, epochs // 2 // max(stop - 1, 1))
        start = max(1, stop - epochs // 2 // every)  # above 1 where half of the epochs are too few to begin with one and end with all
        return f"gradual:start={start},every={every},stop={stop}"

    compared: dict[str, dict[str, Any]] = {
        "together_all": {"freeze": f"last:{groups}"},
        "together_half": {"freeze": f"last:{half}"},
        "gradual_all": {"freeze": gradual(groups)},
        "gradual_half": {"freeze": gradual(half)},
        "gradual_all_warmup": {"freeze": gradual(groups), "unfreeze_warmup": 10},
        "head_then_all": {"freeze": f"head_then_all:epochs={max(1, round(epochs / 4))}"},
        "head": {"freeze": "head"},
    }
    return {name: {"unfreeze_warmup": 0, "feature_cache_gb": 0, **settings} for name, settings in compared.items()}


def reference(cell: str) -> str:
    """Return the cell that trains the same layers together."""
    return "together_half" if cell in ("gradual_half", "together_half") else "together_all"


def answer(results: Sequence[Any]) -> list[str]:
    """Say how strategy 2 compares with strategy 1."""
    from hf_finetune.reporting.study import choice, sentence

    pairs = {result.name: sentence(result, results) for result in results if result.name in ("gradual_all", "gradual_half")}
    words = {"gradual_all": "all layers", "gradual_half": "half of the layers"}
    return [choice(results), "", " ".join(f"Strategy 2 against strategy 1, {words[name]}: {pair}" for name, pair in pairs.items())]


def main() -> None:
    """Do what the command line says."""
    from hf_finetune.comparison import Comparison

    title = "Strategy 2: gradual unfreezing against fine-tuning together"
    Comparison("gradual_unfreezing", title, cells, __doc__, DEFAULTS, DEMO, answer=answer, reference=reference).run()


if __name__ == "__main__":
    run_recipe(main)
