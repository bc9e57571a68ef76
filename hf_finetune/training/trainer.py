"""`FinetuneTrainer`: the stock `transformers.Trainer` with the traps of image classification closed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import nn
from transformers import BaseImageProcessor, EvalPrediction, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_finetune.arguments import FinetuneArguments
from hf_finetune.data.transforms import EvalTransform, TrainTransform
from hf_finetune.models.classifier import quiet
from hf_finetune.reporting.metrics import classification_metrics
from hf_finetune.training.callbacks import EpochToTransform, ReadableLog
from hf_finetune.training.losses import CrossEntropy
from hf_finetune.training.optim import parameter_groups


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return `pixel_values` [B, 3, H, W] float32 and `labels` [B] int64 from transformed examples."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [N, C] float32 from logits [N, C], computed by torch as `pipeline` does."""
    return torch.from_numpy(logits).float().softmax(-1).numpy()


def selection_metrics(label_names: list[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return a `compute_metrics` that gives the scalar metrics of `hf_finetune.reporting.metrics` for selection on validation."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        metrics = classification_metrics(softmax(logits), labels, label_names)
        return {name: value for name, value in metrics.items() if isinstance(value, float)}

    return compute


class FinetuneTrainer(Trainer):
    """A `Trainer` for image classifiers that resumes, accumulates, selects and shards exactly.

    What differs from the stock Trainer, and why:

    - Checkpoints carry the names of the parameters in memory. The stock Trainer writes the names of older releases for ViT, DeiT, DINOv2,
      BEiT and Swin, and its non-strict reload then leaves most of the encoder untouched, on resume and on best-model reload alike.
    - The loss is a sum divided by the examples of the whole optimizer step, so accumulation and several processes give the same gradient.
    - Weight decay spares every parameter of at most one dimension and the embeddings that the network names.
    - Augmentation is told the epoch before the first batch of it, so that a resumed epoch draws the same views.

    Args:
        model: A classifier from `load_classifier`, plain or as a `PeftModel`.
        args: The training arguments.
        train_dataset: Rows with `image`, `label` and `image_id`, as `load_dataset` returns them.
        eval_dataset: The validation split; selection happens here.
        processor: The checkpoint's image processor; it is saved beside every checkpoint.
        augmentation: Name of the training augmentation, see `hf_finetune.data.transforms`.
        loss: A callable as `CrossEntropy`; by default cross-entropy with `args.label_smoothing_factor`.
        callbacks: Further callbacks.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: FinetuneArguments,
        train_dataset: datasets.Dataset,
        eval_dataset: datasets.Dataset,
        processor: BaseImageProcessor,
        *,
        augmentation: str = "light",
        loss: Callable[..., torch.Tensor] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.eval_transform = EvalTransform(processor)
        train_transform = TrainTransform(processor, augmentation, args.seed)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset.with_transform(train_transform),
            eval_dataset=eval_dataset.with_transform(self.eval_transform),
            data_collator=collate,
            processing_class=processor,
            compute_metrics=selection_metrics(train_dataset.features["label"].names),
            compute_loss_func=loss or CrossEntropy(args.label_smoothing_factor),
            callbacks=[EpochToTransform(train_transform), *(callbacks or [])],
        )
        self.label_names = ["labels"]
        for stock in (ProgressCallback, PrinterCallback):
            self.remove_callback(stock)
        self.add_callback(ReadableLog())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer over `parameter_groups`; the class and its options are the Trainer's own choice (`--optim`)."""
        if self.optimizer is None:
            target = cast(PreTrainedModel, self.model if model is None else model)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, target)
            groups = parameter_groups(
                target,
                learning_rate=options.pop("lr"),
                head_learning_rate=cast(FinetuneArguments, self.args).head_learning_rate,
                weight_decay=self.args.weight_decay,
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def predict_split(self, dataset: datasets.Dataset) -> np.ndarray:
        """Return the probabilities [N, C] float32 of the model in evaluation mode for the rows of `dataset`, in their order."""
        output = self.predict(dataset.with_transform(self.eval_transform))
        return softmax(np.asarray(output.predictions))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(model, PreTrainedModel):
            super()._save(output_dir, state_dict)
            return
        model.save_pretrained = functools.partial(type(model).save_pretrained, model, save_original_format=False)  # type: ignore[method-assign]
        try:
            with quiet():
                super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained
