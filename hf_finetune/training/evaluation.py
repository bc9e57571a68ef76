"""Scoring a classifier on a split, and the table of its predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from hf_finetune.data.transforms import EvalTransform
from hf_finetune.models.folding import folded_batchnorm
from hf_finetune.models.modes import evaluating
from hf_finetune.reporting.metrics import classification_metrics
from hf_finetune.training.allocator import keep_freed_memory
from hf_finetune.training.features import Rows
from hf_finetune.training.trainer import Collate


@dataclass(frozen=True)
class Evaluation:
    """What one model says of one split.

    Attributes:
        metrics: The dictionary of `classification_metrics`; fractions in [0, 1].
        predictions: One row an image, with the columns of `prediction_table`.
    """

    metrics: dict[str, Any]
    predictions: pa.Table


def prediction_table(probabilities: np.ndarray, dataset: datasets.Dataset, split: str) -> pa.Table:
    """Return the rows of `predictions.parquet` for one split.

    Args:
        probabilities: [N, C] float32, rows in the order of `dataset`.
        dataset: N rows with `image_id` and `label`.
        split: The split's name.

    Returns:
        Columns `image_id` string, `split` string, `label` int64, `prediction` int64, `probabilities` list of C float32.
    """
    rows = dataset.with_format(None).select_columns(["image_id", "label"])
    return pa.table(
        {
            "image_id": pa.array(rows["image_id"][:], pa.string()),
            "split": pa.array([split] * len(dataset), pa.string()),
            "label": pa.array(rows["label"][:], pa.int64()),
            "prediction": pa.array(probabilities.argmax(1), pa.int64()),
            "probabilities": pa.array(list(probabilities.astype(np.float32)), pa.list_(pa.float32())),
        }
    )


def evaluation_of(probabilities: np.ndarray, dataset: datasets.Dataset, split: str) -> Evaluation:
    """Return the metrics and the table for `probabilities` [N, C] of the N rows of `dataset`."""
    table = prediction_table(probabilities, dataset, split)
    names = dataset.features["label"].names
    return Evaluation(classification_metrics(probabilities, table["label"].to_numpy(), names), table)


@torch.inference_mode()
def evaluate_classifier(
    model: PreTrainedModel | torch.nn.Module,
    dataset: datasets.Dataset,
    processor: BaseImageProcessor,
    *,
    batch_size: int = 64,
    split: str = "test",
) -> Evaluation:
    """Score `model` on every row of `dataset`, on the device that the model is on, and leave every module in the mode it came in.

    Args:
        model: A classifier whose output has `logits` [B, C].
        dataset: Rows with `image`, `label` (`ClassLabel` of C names) and `image_id`.
        processor: The checkpoint's image processor.
        batch_size: Images a forward pass, >= 1.
        split: The name that the predictions carry.
    """
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    rows, collate = Rows(dataset.with_transform(EvalTransform(processor))), Collate()
    loader = DataLoader(rows, batch_size=batch_size, collate_fn=collate)
    with evaluating(model), folded_batchnorm(model, lambda: {"pixel_values": collate([rows[0]])["pixel_values"].to(device)}):
        logits = [model(pixel_values=batch["pixel_values"].to(device)).logits.float().cpu() for batch in loader]
    return evaluation_of(torch.cat(logits).softmax(-1).numpy(), dataset, split)
