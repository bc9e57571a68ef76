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
ADAM = {"optim": "adam", "learning_rate": 3e-3}
NAG = {"optim": "nag", "learning_rate": 3e-2}  # a plain gradient needs a larger rate than Adam, which divides by its size


def cells(arguments: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return both optimizers at the largest size, then Adam at smaller ones."""
    largest, *smaller = DEMO_SIZES if arguments.model.model.startswith("tiny_") else SIZES
    found = {f"adam_{largest}px": {"image_size": largest, **ADAM}, f"nag_{largest}px": {"image_size": largest, **NAG}}
    return found | {f"adam_{size}px": {"image_size": size, **ADAM} for size in smaller}


def answer(results: Sequence[Any]) -> list[str]:
    """Say which optimizer is better, and down to which size nothing is lost."""
    first, *others = results
    said = [f"Adam on photos of full size names {100 * first.accuracy:.1f} % of the test photos correctly."]
    said += [f"NAG in its place: {other.verdict}." for other in others if other.name.startswith("nag")]
    sizes = [other for other in others if other.name.startswith("adam")]
    lost = next((index for index, other in enumerate(sizes) if other.verdict == "worse"), len(sizes))
    if lost:
        smallest = sizes[lost - 1]
        times = " against ".join(f"{one.training_seconds + one.caching_seconds:.0f} s" for one in (smallest, first))
        said.append(f"The smallest photos before a loss is shown are those of {smallest.name}, in {times} with the features computed.")
    if lost < len(sizes):
        low, high = (100 * value for value in sizes[lost].difference)
        said.append(f"With {sizes[lost].name} accuracy is lost ({low:+.1f} to {high:+.1f} points).")
    return [" ".join(said)]


def main() -> None:
    """Do what the command line says."""
    from hf_finetune.comparison import Comparison

    title = "Cat or dog: Adam against NAG, and how small the photos may be"
    Comparison("cat_vs_dog", title, cells, __doc__, DEFAULTS, DEMO, answer=answer).run()


if __name__ == "__main__":
    run_recipe(main)
