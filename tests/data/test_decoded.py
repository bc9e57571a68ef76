"""Decoded photos give the views that photos give, follow the epoch, and are scaled down where they are large."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PillowImage
from transformers import ConvNextImageProcessor, ViTImageProcessor, ViTImageProcessorPil

from hf_finetune.data.decoded import DecodedPhotos, KeptViews
from hf_finetune.data.stored_arrays import ArrayStore, StoreError
from hf_finetune.data.transforms import EvalTransform, TrainTransform
from hf_finetune.models.classifier import load_classifier
from tests.builders import LABELS
from tests.coloured import photo_split


@pytest.fixture
def transform(checkpoint_of: Callable[[str], Path]) -> TrainTransform:
    return TrainTransform(load_classifier(str(checkpoint_of("vit")), LABELS)[1], "medium", 0)


def noise(number: int) -> Dataset:
    """Photos of three sizes that hold every value of every colour."""
    generator = np.random.default_rng(0)
    sides = [((40, 50), (32, 32), (70, 45))[row % 3] for row in range(number)]
    features = Features({"image": Image(), "label": ClassLabel(names=LABELS), "image_id": Value("string")})
    images = [PillowImage.fromarray(generator.integers(0, 256, (*side, 3), np.uint8)) for side in sides]
    rows = {"image": images, "label": [row % len(LABELS) for row in range(number)], "image_id": [str(row) for row in range(number)]}
    return Dataset.from_dict(rows, features=features)


def test_small_photos_give_the_very_same_views_in_every_epoch(transform: TrainTransform, tmp_path: Path) -> None:
    photos, store = photo_split(3), ArrayStore(tmp_path, 2**20)
    for decoded in (DecodedPhotos(photos, transform, store), DecodedPhotos(photos, transform, store)):
        for epoch in (0, 1):
            transform.set_epoch(epoch)
            plain = photos.with_transform(transform)
            assert len(decoded) == len(plain)
            for one, other in zip(decoded.__getitems__([4, 0, 7]), plain.__getitems__([4, 0, 7]), strict=True):
                assert one["labels"] == other["labels"]
                assert torch.equal(one["pixel_values"], other["pixel_values"])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_large_photo_is_kept_upright_and_small(transform: TrainTransform, tmp_path: Path) -> None:
    photo = PillowImage.new("RGB", (800, 400), (200, 0, 0))
    photo.paste((0, 0, 200), (0, 0, 400, 400))
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: its left half, which is blue, becomes the upper one
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", exif=exif)
    features = Features({"image": Image(), "label": ClassLabel(names=LABELS), "image_id": Value("string")})
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}], "label": [1], "image_id": ["a"]}
    decoded = DecodedPhotos(Dataset.from_dict(rows, features=features), transform, ArrayStore(tmp_path, 2**20))
    kept = np.asarray(decoded._photo(0))
    assert kept.shape == (128, 64, 3)
    assert kept[:60, :, 2].min() > 190
    assert kept[68:, :, 0].min() > 190


def test_photos_that_do_not_fit_are_refused(transform: TrainTransform, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        DecodedPhotos(photo_split(3), transform, ArrayStore(tmp_path, 1000))
    assert str(error.value) == "66600 bytes are needed and 1000 bytes allowed"


def test_jpegs_of_the_usual_size_are_decoded_whole(transform: TrainTransform, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 50, 3), np.uint8)
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "JPEG", quality=90)
    features = Features({"image": Image(), "label": ClassLabel(names=LABELS), "image_id": Value("string")})
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}], "label": [1], "image_id": ["a"]}
    decoded = DecodedPhotos(Dataset.from_dict(rows, features=features), transform, ArrayStore(tmp_path, 2**20))
    np.testing.assert_array_equal(np.asarray(decoded._photo(0)), np.asarray(PillowImage.open(buffer)))


PROCESSORS: dict[str, Callable[[Path], Any]] = {
    "vit": lambda folder: load_classifier(str(folder), LABELS)[1],
    "pil": lambda folder: ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "shortest edge": lambda folder: ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8),
    "without a mean": lambda folder: ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
}


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("name", ["vit", "timm_resnet"])
def test_kept_views_are_those_of_the_processor_bit_for_bit(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, name: str, processor: Callable[[Path], Any]
) -> None:
    own = processor(checkpoint_of(name))
    photos, store = noise(20), ArrayStore(tmp_path, 2**20)
    for transform in (EvalTransform(own), TrainTransform(own, "none", 0), TrainTransform(own, "flip+rotation", 0, random_erasing=0.5)):
        kept, plain = KeptViews(photos, transform, store), photos.with_transform(transform)
        for epoch in (0, 1):
            if isinstance(transform, TrainTransform):
                transform.set_epoch(epoch)
            for one, other in zip(kept.__getitems__([4, 0, 17]), plain.__getitems__([4, 0, 17]), strict=True):
                assert one["labels"] == other["labels"]
                assert torch.equal(one["pixel_values"], other["pixel_values"])
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(pickle.loads(pickle.dumps(kept))[3]["pixel_values"], plain[3]["pixel_values"])


def test_kept_views_of_another_processor_are_not_taken(tmp_path: Path) -> None:
    photos, store = noise(2), ArrayStore(tmp_path, 2**20)
    for mean in (0.5, 0.4):
        own = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[mean] * 3)
        transform = EvalTransform(own)
        assert torch.equal(KeptViews(photos, transform, store)[1]["pixel_values"], photos.with_transform(transform)[1]["pixel_values"])
    assert len(list(tmp_path.iterdir())) == 4  # two tables and the views of two


def test_a_processor_that_computes_with_neighbours_keeps_no_views(tmp_path: Path) -> None:
    class Blurring(ViTImageProcessor):
        def __call__(self, images: Any, **settings: Any) -> Any:
            features = super().__call__(images, **settings)
            features["pixel_values"] = torch.nn.functional.avg_pool2d(features["pixel_values"], 3, 1, 1, count_include_pad=False)
            return features

    with pytest.raises(StoreError) as error:
        KeptViews(noise(2), EvalTransform(Blurring(size={"height": 32, "width": 32})), ArrayStore(tmp_path, 2**20))
    assert str(error.value) == "the image processor does more than to give each of the 256 values of a colour one float"
    assert [np.load(file).shape for file in tmp_path.iterdir()] == [(3, 256)]  # the table alone
