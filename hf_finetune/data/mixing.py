"""MixUp and CutMix: each photo of a batch mixed with its neighbour, and the labels with it.

The mixing itself is torchvision's. What it draws depends on the views in the batch alone, so a resumed epoch, and loader processes, mix
alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torchvision.transforms import v2

from hf_finetune.data.augmentation import seeded, stable_seed


class BatchMixing:
    """Mixes a batch by MixUp (Zhang et al. 2017, arXiv:1710.09412) or CutMix (Yun et al. 2019, arXiv:1905.04899).

    One share is drawn for the whole batch, as in both papers' code; a photo is mixed with the one before it in the batch. Deviation from
    CutMix's code: a batch is always mixed, not with probability 0.5.

    Args:
        classes: Number of classes.
        mixup_alpha: Shares are drawn from Beta(alpha, alpha); 0 leaves MixUp out.
        cutmix_alpha: The same for CutMix. Where both are above 0, each batch takes one of the two, with equal probability.
    """

    def __init__(self, classes: int, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0) -> None:
        self._ways: list[Any] = []
        if mixup_alpha > 0:
            self._ways.append(v2.MixUp(alpha=mixup_alpha, num_classes=classes))
        if cutmix_alpha > 0:
            self._ways.append(v2.CutMix(alpha=cutmix_alpha, num_classes=classes))

    def __bool__(self) -> bool:
        return bool(self._ways)

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor, seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mixed pixels and the probabilities of the classes, [B, C] float32.

        Args:
            pixels: [B, 3, H, W] float32.
            labels: [B] int64.
            seeds: The `view_seed` of each row.
        """
        with seeded(stable_seed(*seeds)):
            way = self._ways[int(torch.randint(len(self._ways), ()))]
            return way(pixels, labels)
