"""Decoded photos give the views that photos give, follow the epoch, and are scaled down where they are large."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PillowImage

from hf_finetune.data.decoded import DecodedPhotos
from hf_finetune.data.stored_arrays import ArrayStore, StoreError
from hf_finetune.data.transforms import TrainTransform
from hf_finetune.models.classifier import load_classifier
from tests.builders import LABELS
from tests.coloured import photo_split


@pytest.fixture
def transform(checkpoint_of: Callable[[str], Path]) -> TrainTransform:
    return TrainTransform(load_classifier(str(checkpoint_of("vit")), LABELS)[1], "medium", 0)


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
