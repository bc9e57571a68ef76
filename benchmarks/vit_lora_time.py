"""How long the LoRA recipe trains, against the stock Trainer with peft: steps timed in turn, in one process, and the whole run reckoned.

    python benchmarks/vit_lora_time.py --dataset DIR --model DIR [--config recipes/configs/vit_lora_flowers.yaml --rounds 3 --photos 64]

In every round each side trains on `--photos` photos, data loading and optimizer included. Prints seconds a photo of every round, the median
ratio, and what the whole training takes: photos an epoch x epochs x the median. The machine's drift hits both sides alike.
"""

import argparse
import statistics
import time

import stock_vit_lora
from transformers import Trainer, TrainerCallback

from hf_finetune.arguments import parse_arguments
from hf_finetune.run import adapt, load_model, load_splits
from hf_finetune.training.trainer import FinetuneTrainer


class Stopwatch(TrainerCallback):
    """Times the optimizer steps of a training, the first one, which warms up, left out."""

    def on_step_end(self, args, state, control, **kwargs):
        """Start after the first step; remember the last."""
        if state.global_step == 1:
            self.started = time.perf_counter()
        self.seconds = time.perf_counter() - self.started


def seconds_a_photo(trainer: Trainer, photos: int) -> float:
    """Train on `photos` photos after one step of warm-up, and return seconds a photo."""
    steps = photos // trainer.args.per_device_train_batch_size
    trainer.args.max_steps, watch = steps + 1, Stopwatch()
    trainer.add_callback(watch)
    trainer.train()
    trainer.remove_callback(watch)
    return watch.seconds / (steps * trainer.args.per_device_train_batch_size)


def main() -> None:
    """Build both sides, time them in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", default="recipes/configs/vit_lora_flowers.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=64)
    options = parser.parse_args()

    flags = ["--dataset", options.dataset, "--model", options.model, "--output_dir", "runs/vit_lora_time"]
    still = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    arguments = parse_arguments(["--config", options.config, *flags, *still])
    dataset = load_splits(arguments, [])
    model, processor = load_model(arguments.model, dataset, [])
    adapted = adapt(model, arguments.model)
    recipe = FinetuneTrainer(adapted, arguments.training, dataset["train"], dataset["validation"], processor)
    stock_options = argparse.Namespace(dataset=options.dataset, model=options.model, seed=0, epochs=5, bf16=False, output_dir="runs/stock")
    sides = {"stock Trainer + peft": stock_vit_lora.build(stock_options)[0], "recipe": recipe}
    epochs = {name: trainer.args.num_train_epochs for name, trainer in sides.items()}
    timed: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, trainer in sides.items():
            timed[name].append(seconds_a_photo(trainer, options.photos))

    for name, values in timed.items():
        whole = statistics.median(values) * epochs[name] * len(dataset["train"])
        rounds = ", ".join(f"{value:.3f}" for value in values)
        print(f"{name}: {rounds} s a photo; {epochs[name]:g} epochs of {len(dataset['train'])} photos take {whole:.0f} s")
    stock, ours = timed.values()
    ratio = statistics.median(b * epochs["recipe"] / (a * epochs["stock Trainer + peft"]) for a, b in zip(stock, ours, strict=True))
    print(f"training time of the recipe / of the stock script: {ratio:.2f} (median of {options.rounds} rounds)")


if __name__ == "__main__":
    main()
