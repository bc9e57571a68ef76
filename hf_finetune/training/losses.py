"""Losses as small objects: they see the model's outputs and the targets, and know how many examples make one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of one label an image, or of its class probabilities, averaged over everything that makes one optimizer step.

    A mean over each micro-batch would weigh a short last micro-batch too heavily, and is multiplied by the number of accumulation steps
    for many models of `transformers`; the sum divided by the step's count is exact under accumulation and across processes.

    Attributes:
        label_smoothing: Share of the probability mass, in [0, 1), that is spread over all classes (Szegedy et al. 2016,
            arXiv:1512.00567). It regularises training only: an evaluation loss is always the plain cross-entropy.
    """

    label_smoothing: float = 0.0

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        """Return the scalar loss.

        Args:
            outputs: What the model returned, with `logits` [B, C] of any floating dtype.
            labels: [B] int64, in [0, C), or [B, C] float32, as MixUp and CutMix give them.
            num_items_in_batch: Elements of `labels` in the whole optimizer step, over all micro-batches and processes, as the Trainer
                counts them: C for each example with probabilities. Those of this batch where it is None.
        """
        smoothing = self.label_smoothing if torch.is_grad_enabled() else 0.0
        total = F.cross_entropy(outputs["logits"].float(), labels, label_smoothing=smoothing, reduction="sum")
        items = labels.numel() if num_items_in_batch is None else num_items_in_batch
        return total * (labels.numel() // len(labels)) / items
