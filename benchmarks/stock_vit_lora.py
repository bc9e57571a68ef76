"""The baseline: LoRA on a ViT with nothing but the stock `transformers.Trainer` and `peft`, as their public examples put it together.

    python benchmarks/stock_vit_lora.py --dataset DIR --model DIR [--seed 0 --epochs 5 --bf16]

`DIR` of the data set holds `data/{train,test}-*.parquet` with the columns `image` and `label`. Rank 8 on the query and value
projections, 5 epochs, learning rate 1e-3, batch 32, random resized crop and flip; prints one JSON line with test accuracy and seconds.
"""

import argparse
import json
import time

import numpy as np
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from torchvision.transforms import v2
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output_dir", default="runs/stock_vit_lora")
    return parser.parse_args()


def build(options: argparse.Namespace) -> tuple[Trainer, Dataset]:
    """Return the Trainer and the transformed test split."""
    torch.manual_seed(options.seed)
    files = {split: f"{options.dataset}/data/{split}-*.parquet" for split in ("train", "test")}
    dataset = load_dataset("parquet", data_files=files)
    labels = dataset["train"].features["label"].num_classes
    processor = AutoImageProcessor.from_pretrained(options.model)
    model = AutoModelForImageClassification.from_pretrained(options.model, num_labels=labels, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])

    bicubic, size = v2.InterpolationMode.BICUBIC, processor.crop_size["height"]
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]
    augment = v2.Compose([v2.RandomResizedCrop(size, interpolation=bicubic), v2.RandomHorizontalFlip(), *to_tensor])
    plain = v2.Compose([v2.Resize(processor.size["shortest_edge"], interpolation=bicubic), v2.CenterCrop(size), *to_tensor])

    def view(transform):
        return lambda rows: {"pixel_values": [transform(image.convert("RGB")) for image in rows["image"]], "labels": rows["label"]}

    def collate(rows):
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": torch.tensor([row["labels"] for row in rows])}

    arguments = TrainingArguments(
        output_dir=options.output_dir,
        num_train_epochs=options.epochs,
        learning_rate=1e-3,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        remove_unused_columns=False,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
    )
    train = dataset["train"].with_transform(view(augment))
    trainer = Trainer(get_peft_model(model, lora), arguments, data_collator=collate, train_dataset=train, processing_class=processor)
    return trainer, dataset["test"].with_transform(view(plain))


def main() -> None:
    """Train once and print the figures."""
    options = parse()
    trainer, test = build(options)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    prediction = trainer.predict(test)
    accuracy = float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))
    print(json.dumps({"seed": options.seed, "test_accuracy": round(accuracy, 4), "training_seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
