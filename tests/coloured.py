"""A photo set that a tiny model learns in seconds: five colours under noise, and what tests do with trained weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PillowImage

NAMES = ["red", "green", "blue", "grey", "white"]
COLOURS = [(200, 60, 60), (60, 200, 60), (60, 60, 200), (120, 120, 120), (220, 220, 220)]


def coloured_photo(label: int, number: int) -> PillowImage.Image:
    """A noisy image of its class's colour."""
    rng = np.random.default_rng([label, number])
    pixels = np.clip(np.array(COLOURS[label]) + rng.normal(0, 50, (36 + number % 5, 40, 3)), 0, 255)
    return PillowImage.fromarray(pixels.astype(np.uint8))


def photo_split(per_class: int, offset: int = 0) -> Dataset:
    """Rows with `image`, `label` and `image_id`, `per_class` for each of the five colours."""
    rows = [(label, offset + number) for number in range(per_class) for label in range(len(NAMES))]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES), "image_id": Value("string")})
    columns = {
        "image": [coloured_photo(label, number) for label, number in rows],
        "label": [label for label, _ in rows],
        "image_id": [f"{NAMES[label]}_{number}" for label, number in rows],
    }
    return Dataset.from_dict(columns, features=features)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_only_changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], changed: Callable[[str], bool]) -> None:
    """Every tensor that `changed` names has moved, and every other one is bit-identical."""
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if changed(name)}
