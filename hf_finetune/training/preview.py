"""Training photos as the model sees them in the first epoch: cropped, turned, erased, mixed."""

from __future__ import annotations

import numpy as np
import torch

from hf_finetune.training.trainer import FinetuneTrainer


def first_batch(trainer: FinetuneTrainer, photos: int = 16) -> list[tuple[np.ndarray, str]]:
    """Return some training photos in the views of the first epoch, mixed among themselves where batches are mixed, with their classes.

    Args:
        trainer: Of the training.
        photos: How many, at most; spread evenly over the split.

    Returns:
        Pixels [H, W, 3] uint8 with the checkpoint's normalisation undone, and the class, or the classes of a mixed photo with their shares,
        one a line.
    """
    split, transform = trainer.inputs.photos["train"], trainer.inputs.transform
    rows = np.unique(np.linspace(0, len(split) - 1, min(photos, len(split))).astype(int))
    views = split.select(rows).with_transform(transform.at_view(0))
    batch = trainer.data_collator([views[row] for row in range(len(rows))])
    names = split.features["label"].names
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.spec.mean, transform.spec.std))
    pixels = ((batch["pixel_values"] * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [(image, _caption(label, names)) for image, label in zip(pixels, batch["labels"], strict=True)]


def _caption(label: torch.Tensor, names: list[str]) -> str:
    if label.ndim == 0:
        return names[int(label)]
    parts = sorted(((float(share), name) for share, name in zip(label, names, strict=True) if share > 0), reverse=True)
    return "\n".join(f"{share:.2f} {name}" for share, name in parts)
