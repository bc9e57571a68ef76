"""Cat or dog: only a new last layer is trained on a frozen network, and that is nearly enough.

    accelerate launch recipes/cat_vs_dog.py --preset demo                      # embedded data and checkpoint, no network
    accelerate launch recipes/cat_vs_dog.py                                    # ResNet-18 on Oxford-IIIT Pet, from the Hub
    accelerate launch recipes/cat_vs_dog.py --optim nag --learning_rate 0.03 --image_size 128
    python recipes/cat_vs_dog.py --study                                       # Adam and NAG, and smaller and smaller photos

The questions: does Adam or Nesterov's accelerated gradient train the layer better, and how small may the photos be? A network divides
height and width by 32; below that nothing is left to pool, and long before it the features have nothing to see.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_finetune.launch import run_recipe

DEFAULTS = {
    "model": "timm/resnet18.a1_in1k",
    "label_column": "label_cat_dog",
    "augmentation": "none",  # so that the features of the frozen network are computed once
    "freeze": "head",
    "optim": "adam",
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
    "num_train_epochs": 10.0,
}
DEMO = {**DEFAULTS, "dataset": "drawn_pets", "model": "tiny_resnet"}
# in real photos and in the drawn ones of the demo, which are smaller
SIZES, DEMO_SIZES = (224, 192, 160, 128, 96, 64, 32), (64, 48, 32, 24, 16)
# the one of the recipe first; a plain gradient needs a larger rate than Adam, which divides by its size
RATES = {"adam": (3e-3, 1e-3, 1e-2), "nag": (3e-2, 1e-2, 1e-1)}


def cells(arguments: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return both optimizers at three rates each on photos of full size, then Adam on smaller ones."""
    largest, *smaller = DEMO_SIZES if arguments.model.model.startswith("tiny_") else SIZES
    found: dict[str, dict[str, Any]] = {
        f"{optim}_{rate:g}": {"image_size": largest, "optim": optim, "learning_rate": rate}
        for optim, rates in RATES.items()
        for rate in rates
    }
    adam = {"optim": "adam", "learning_rate": RATES["adam"][0]}
    return found | {f"{size}px": {"image_size": size, **adam} for size in smaller}


def answer(results: Sequence[Any]) -> list[str]:
    """Say which optimizer is better, each at its best rate on validation, and what smaller photos lose."""
    from hf_finetune.reporting.study import chosen, sentence

    said = []
    for optim, word in (("adam", "Adam"), ("nag", "NAG")):
        if rates := [result for result in results if result.name.startswith(optim)]:
            best = chosen(rates)
            tested = f"{100 * best.accuracy:.1f} % of the test photos (95 % interval {100 * best.interval.low:.1f} to"
            said.append(f"{word} at its best rate on validation, {best.name.partition('_')[2]}, names {tested}")
            said[-1] += f" {100 * best.interval.high:.1f} %) correctly." + (f" {sentence(best, results)}" if best.difference else "")
    sizes = [result for result in results if result.name.endswith("px") and result.difference]
    if kept := [one for one in sizes if one.difference.high >= 0]:
        most = max(-one.difference.low for one in kept)
        said.append(f"No loss is shown with {', '.join(one.name for one in kept)}; one of {100 * most:.1f} points is not ruled out.")
    if lost := [one for one in sizes if one.difference.high < 0]:
        low, high = (100 * value for value in lost[0].difference)
        said.append(f"With {lost[0].name} accuracy is lost ({low:+.1f} to {high:+.1f} points).")
    return [" ".join(said)]


def main() -> None:
    """Do what the command line says."""
    from hf_finetune.comparison import Comparison

    title = "Cat or dog: Adam against NAG, and how small the photos may be"
    Comparison("cat_vs_dog", title, cells, __doc__, DEFAULTS, DEMO, answer=answer).run()


if __name__ == "__main__":
    run_recipe(main)
