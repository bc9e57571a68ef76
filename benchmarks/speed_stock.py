"""The stock side: `transformers.Trainer` as its public image-classification example sets it up, with peft where LoRA trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from speed_clock import time_prediction
from speed_rows import BATCH, EVAL_BATCH, LEARNING_RATE, SEED, Row, epochs, model_folder, photos_folder
from speed_trainer import time_training
from torch import nn
from torchvision.transforms import CenterCrop, Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize, ToTensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, Trainer, TrainingArguments, set_seed


def measure(row: Row, photos: int, inputs: Path, output_dir: Path) -> dict[str, Any]:
    """Return the measurement of one row."""
    set_seed(SEED)
    dataset = datasets.load_from_disk(photos_folder(inputs, row, photos))
    processor = AutoImageProcessor.from_pretrained(model_folder(inputs, row.model))
    model = build_model(row, model_folder(inputs, row.model), dataset["train"].features["label"].names)
    train, plain = views(processor, augmented=row.augmented), views(processor, augmented=False)
    trainer = Trainer(
        model,
        training_arguments(row, photos, output_dir),
        data_collator=collate,
        train_dataset=dataset["train"].with_transform(train),
        processing_class=processor,
    )
    if row.evaluation:
        return time_prediction(trainer.predict, dataset["validation"].with_transform(plain), dataset["test"].with_transform(plain), photos)
    return time_training(trainer, row, photos)


def build_model(row: Row, folder: Path, names: list[str]) -> nn.Module:
    """Return the checkpoint with a head for the classes, and with what shall not train frozen."""
    labels = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = AutoModelForImageClassification.from_pretrained(folder, **labels, dtype=torch.float32, ignore_mismatched_sizes=True)
    if row.lora:
        from peft import LoraConfig, get_peft_model  # here, since the other rows do without its memory

        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
        return get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not row.trainable or any(part in name for part in row.trainable))
    return model


def training_arguments(row: Row, photos: int, output_dir: Path) -> TrainingArguments:
    """Return the settings: fp32, photos read in the training process, nothing saved and nothing evaluated on the way."""
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=epochs(row, photos),
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=EVAL_BATCH,
        remove_unused_columns=False,
        seed=SEED,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def views(processor: BaseImageProcessor, *, augmented: bool) -> Any:
    """Return the transform of a batch of rows, from PIL pictures to tensors, by torchvision."""
    side, mean, std = input_of(processor)
    geometry = [RandomResizedCrop(side), RandomHorizontalFlip()] if augmented else [Resize(side), CenterCrop(side)]
    view = Compose([*geometry, ToTensor(), Normalize(mean, std)])
    return lambda rows: {"pixel_values": [view(image.convert("RGB")) for image in rows["image"]], "labels": rows["label"]}


def input_of(processor: BaseImageProcessor) -> tuple[int, list[float], list[float]]:
    """Return the side in pixels, the mean and the standard deviation that the checkpoint expects."""
    prepared = getattr(processor, "data_config", None)
    if prepared is not None:
        return prepared["input_size"][-1], prepared["mean"], prepared["std"]
    return (processor.crop_size or processor.size)["height"], processor.image_mean, processor.image_std


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a batch from transformed rows."""
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": torch.tensor([row["labels"] for row in rows])}
