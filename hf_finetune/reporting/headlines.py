"""What a reader asks about first: the headline figures and the main settings, the same in the report and in the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# all other flags follow folded away, or are left to config.yaml
MAIN_SETTINGS = (
    *("dataset", "model", "model_revision", "image_size", "crop_pct", "label_column", "max_train_samples", "max_eval_samples"),
    *("validation_fraction", "test_fraction", "augmentation", "random_erasing", "mixup_alpha", "cutmix_alpha"),
    *("freeze", "batch_norm", "batch_norm_scope", "dropout", "drop_path", "adapter"),
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_layers", "lora_dora", "lora_rslora"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "learning_rate"),
    *("head_lr", "backbone_lr", "layer_lr_decay", "group_lr", "layer_groups", "unfreeze_warmup", "ema_decay"),
    *("early_stopping_patience", "lr_scheduler_type", "warmup_steps", "weight_decay", "label_smoothing_factor", "max_grad_norm"),
    *("bf16", "fp16", "metric_for_best_model", "seed", "data_seed"),
)


class Headline(NamedTuple):
    """A figure: its key in `metrics.json`, its name, what it means, and the id of the metric on the Hub."""

    key: str
    name: str
    meaning: str
    metric_id: str


_HEADLINES = (
    Headline("accuracy", "Accuracy", "of all images named correctly", "accuracy"),
    Headline("top5_accuracy", "Top-5 accuracy", "true class among the five most probable", "top_5_accuracy"),
    Headline("macro_f1", "Macro F1", "precision and recall, every class counted alike", "f1"),
    Headline("balanced_accuracy", "Balanced accuracy", "mean accuracy of the classes", "balanced_accuracy"),
    Headline("ece", "Calibration error", "mean gap between confidence and accuracy; smaller is better", "expected_calibration_error"),
)


def headlines(scores: Mapping[str, Any], classes: int) -> list[Headline]:
    """List the figures that `scores` has and that say something of so many classes.

    Args:
        scores: One split of `metrics.json`.
        classes: Number of classes; with five or fewer the top-5 accuracy is 100 % whatever the model does.
    """
    return [line for line in _HEADLINES if scores.get(line.key) is not None and (line.key != "top5_accuracy" or classes > 5)]
