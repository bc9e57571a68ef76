"""This project's side, through its public way, and the raw limit: the bare step on a batch that is ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import DatasetDict
from speed_clock import figures, now, time_prediction
from speed_rows import BATCH, EVAL_BATCH, LEARNING_RATE, SEED, Row, epochs, model_folder, photos_folder
from speed_trainer import time_training
from torch import nn
from transformers import set_seed

from hf_finetune.arguments import Arguments, make_arguments
from hf_finetune.run import build_trainer, load_model, load_splits
from hf_finetune.training.trainer import FinetuneTrainer

FEWEST_RAW_STEPS, MOST_RAW_STEPS = 3, 10


def measure(row: Row, photos: int, inputs: Path, output_dir: Path, **more: Any) -> dict[str, Any]:
    """Return the measurement of one row; what the trainer computes once, such as the features of a frozen part, is within its training."""
    trainer, dataset = prepare(settings(row, photos, inputs, output_dir, num_train_epochs=epochs(row, photos), **more))
    if row.evaluation:
        return time_prediction(trainer.predict_split, dataset["validation"], dataset["test"], photos)
    return time_training(trainer, row, photos)


def measure_bf16(row: Row, photos: int, inputs: Path, output_dir: Path) -> dict[str, Any]:
    """Return the measurement of one row in bfloat16, on hardware that has it and where this project would choose float32."""
    return measure(row, photos, inputs, output_dir, bf16=True)


def measure_raw(row: Row, photos: int, inputs: Path, output_dir: Path) -> dict[str, Any]:
    """Return the measurement of the bare step, with the model and the batch as this project's trainer hands them to each other.

    One step of the trainer, with whole batches and without its caches, fixes precision, memory layout and what trains; the batch it saw
    is used again.
    """
    trainer, dataset = prepare(
        settings(row, photos, inputs, output_dir, max_steps=1, feature_cache_gb=0, image_cache_gb=0, micro_batch_size=0)
    )
    capture = Capture(trainer.model)
    if row.evaluation:
        trainer.predict_split(dataset["validation"])
    else:
        trainer.train()
    capture.remove()
    step = prediction_step(trainer.model, capture) if row.evaluation else training_step(trainer.model, capture)
    step()
    count = min(max(photos // len(capture.pixels), FEWEST_RAW_STEPS), MOST_RAW_STEPS)
    started = now()
    for _ in range(count):
        step()
    seconds = now() - started
    return figures(count * len(capture.pixels), seconds, precision=capture.precision(), layout=trainer.layout.replace("_", " "))


def settings(row: Row, photos: int, inputs: Path, output_dir: Path, **more: Any) -> Arguments:
    """Return the settings of a run: precision, caches and loading are left to the project."""
    return make_arguments(
        dataset=str(photos_folder(inputs, row, photos)),
        model=str(model_folder(inputs, row.model)),
        output_dir=str(output_dir),
        augmentation="crop+flip" if row.augmented else "none",
        freeze=row.freeze,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=EVAL_BATCH,
        seed=SEED,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        **({"adapter": "lora", "lora_rank": 8, "lora_targets": r".*\.(q_proj|v_proj)"} if row.lora else {}),
        **more,
    )


def prepare(arguments: Arguments) -> tuple[FinetuneTrainer, DatasetDict]:
    """Return the trainer, ready to train, and the photos, by the steps of `hf_finetune.run.finetune`."""
    set_seed(arguments.training.seed)
    dataset = load_splits(arguments, [])
    model, processor = load_model(arguments.model, dataset, [])
    return build_trainer(arguments, dataset, model, processor, callbacks=[]), dataset


class Capture:
    """Remembers the largest batch that a model gets, and the autocast under which its first layer computes.

    Attributes:
        pixels: The batch `[B, 3, H, W]` as the model got it.
        autocast: Whether autocast was on.
        dtype: What autocast computes in, or else the type of the layer's parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.pixels = torch.empty(0)
        self.autocast, self.dtype = False, None
        layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
        self._handles = [model.register_forward_pre_hook(self._see_batch, with_kwargs=True)]
        self._handles += [layer.register_forward_pre_hook(self._see_layer) for layer in layers]

    def _see_batch(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels = next(value for value in (*args, *kwargs.values()) if torch.is_tensor(value) and value.ndim == 4)
        if len(pixels) > len(self.pixels):
            self.pixels, self.dtype = pixels, None

    def _see_layer(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if self.dtype is None:
            kind = self.pixels.device.type
            self.autocast = torch.is_autocast_enabled(kind)
            self.dtype = torch.get_autocast_dtype(kind) if self.autocast else next(layer.parameters()).dtype

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def context(self) -> torch.autocast:
        """Return the autocast that was seen, or one that is off."""
        return torch.autocast(self.pixels.device.type, dtype=self.dtype if self.autocast else None, enabled=self.autocast)

    def precision(self) -> str:
        """Return the precision in words."""
        name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        return f"{name} autocast" if self.autocast else name


def training_step(model: nn.Module, capture: Capture) -> Any:
    """Return a function that does forward, cross-entropy, backward and AdamW on the captured batch."""
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], LEARNING_RATE, fused=True)

    def step() -> None:
        with capture.context():
            logits = model(pixel_values=capture.pixels).logits
        labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def prediction_step(model: nn.Module, capture: Capture) -> Any:
    """Return a function that does forward in evaluation mode on the captured batch."""
    model.eval()

    @torch.inference_mode()
    def step() -> None:
        with capture.context():
            model(pixel_values=capture.pixels)

    return step
