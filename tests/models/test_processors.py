"""What a model sees: processors that keep the aspect, and other image sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ConvNextImageProcessor, DeiTImageProcessor, ViTImageProcessor, pipeline

from hf_finetune.errors import ModelError
from hf_finetune.models.classifier import load_classifier, save_classifier
from hf_finetune.models.names import head_names
from hf_finetune.models.processors import output_size
from tests.builders import (
    BUILDERS,
    HF_BUILDERS,
    LABELS,
    MEAN,
    build_convnext_dir,
    build_timm_dir,
    build_vit_dir,
    draw_head,
    photo,
    scores_of,
)


def test_squashing_processors_are_mended_and_told(tmp_path: Path) -> None:
    expected = (
        "The image processor of {} did not keep the aspect of a picture; here, and in what is saved, it resizes the shortest side to 32 "
        "and crops the centre of 32×32 pixels."
    )
    for kind in ("vit", "swin", "beit"):
        HF_BUILDERS[kind](tmp_path / kind)
        notices: list[str] = []
        model, processor = load_classifier(str(tmp_path / kind), LABELS, notices=notices)
        assert notices == [expected.format(tmp_path / kind)]
        assert dict(processor.size) == {"shortest_edge": 32}
        assert list(processor.image_mean) == MEAN
        save_classifier(model, processor, tmp_path / f"{kind}-saved")
        notices.clear()
        load_classifier(str(tmp_path / f"{kind}-saved"), LABELS, notices=notices)
        assert notices == []
    build_timm_dir(tmp_path / "squash", "test_efficientnet", pretrained_cfg={"crop_mode": "squash", "crop_pct": 1.0})
    notices = []
    _, processor = load_classifier(str(tmp_path / "squash"), LABELS, notices=notices)
    assert notices == [expected.format(tmp_path / "squash")]
    assert processor.data_config["crop_mode"] == "center"


def test_a_processor_that_squashes_and_crops_keeps_its_ratio(tmp_path: Path) -> None:
    HF_BUILDERS["deit_plain"](tmp_path)
    DeiTImageProcessor(size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    notices: list[str] = []
    _, processor = load_classifier(str(tmp_path), LABELS, notices=notices)
    assert notices == [
        f"The image processor of {tmp_path} did not keep the aspect of a picture; here, and in what is saved, it resizes the shortest "
        "side to 36 and crops the centre of 32×32 pixels."
    ]
    assert dict(processor.size) == {"shortest_edge": 36}
    assert output_size(processor) == (32, 32)


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind not in ("vit", "swin", "swinv2", "beit")])
def test_processors_that_keep_the_aspect_stay_silent(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    notices: list[str] = []
    _, processor = load_classifier(str(tmp_path), LABELS, notices=notices)
    assert notices == []
    assert output_size(processor) == (32, 32)


def test_convnext_from_384_pixels_on_gets_a_processor_that_crops(tmp_path: Path) -> None:
    build_convnext_dir(tmp_path / "base")
    small, large = ({"shortest_edge": size} for size in (376, 384))
    for size, kind in ((small, ConvNextImageProcessor), (large, ViTImageProcessor)):
        ConvNextImageProcessor(size=size, crop_pct=0.875, image_mean=MEAN).save_pretrained(tmp_path / "base")
        model, processor = load_classifier(str(tmp_path / "base"), LABELS)
        assert type(processor) is kind
        assert output_size(processor) == (size["shortest_edge"],) * 2
        assert list(processor.image_mean) == MEAN
    save_classifier(model, processor, tmp_path / "saved")
    _, again = load_classifier(str(tmp_path / "saved"), LABELS)
    picture = photo(0, (600, 400))
    assert torch.equal(again(picture, return_tensors="pt").pixel_values, processor(picture, return_tensors="pt").pixel_values)


SMALLER = [(kind, 24) for kind in ("vit", "dinov2", "beit", "timm_vit", "timm_swin")]


@pytest.mark.parametrize(("kind", "size"), [*((kind, 48) for kind in BUILDERS), *SMALLER])
def test_another_image_size_reaches_the_saved_pipeline(kind: str, size: int, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path / "base")
    model, processor = load_classifier(str(tmp_path / "base"), LABELS, image_size=size)
    draw_head(model)
    picture = photo()
    inputs = processor(picture, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, size, size)
    save_classifier(model, processor, tmp_path / "saved")
    got = scores_of(pipeline("image-classification", model=str(tmp_path / "saved"), device="cpu"), picture)
    with torch.no_grad():
        expected = model(**inputs).logits.softmax(-1)[0].tolist()
    assert [got[label] for label in LABELS] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", BUILDERS)
def test_crop_pct_decides_how_much_of_a_photo_is_seen_also_once_it_is_saved(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path / "base")
    white, picture = (Image.new("RGB", (96, 64), colour) for colour in ("white", "black"))
    picture.paste((255, 255, 255), (28, 12, 68, 52))  # more than the middle half of the shorter side
    for crop_pct, dark in ((0.5, 0.0), (1.0, 1 - (40 / 64) ** 2)):
        notices: list[str] = []
        model, processor = load_classifier(str(tmp_path / "base"), LABELS, crop_pct=crop_pct, notices=notices)
        assert output_size(processor) == (32, 32)
        pixels, of_white = (processor(each, return_tensors="pt").pixel_values for each in (picture, white))
        assert (pixels < of_white - 0.5).float().mean().item() == pytest.approx(dark, abs=0.1)
        told = f"it resizes the shortest side to {round(32 / crop_pct)} and crops the centre of 32×32 pixels."
        assert [notice.endswith(told) for notice in notices] == [True] * (kind in ("vit", "swin", "swinv2", "beit"))
        save_classifier(model, processor, tmp_path / "saved")
        _, again = load_classifier(str(tmp_path / "saved"), LABELS)
        assert torch.equal(again(picture, return_tensors="pt").pixel_values, pixels)


@pytest.mark.parametrize("crop_pct", [0.0, 1.5])
def test_crop_pct_out_of_range(crop_pct: float, tmp_path: Path) -> None:
    build_vit_dir(tmp_path)
    with pytest.raises(ModelError) as raised:
        load_classifier(str(tmp_path), LABELS, crop_pct=crop_pct)
    assert str(raised.value) == f"crop_pct is {crop_pct}; it must be above 0 and at most 1."


@pytest.mark.parametrize("kind", ["vit", "deit", "beit", "timm_vit"])
def test_resampled_positions_keep_the_picture(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    plain, _ = load_classifier(str(tmp_path), LABELS)
    large, _ = load_classifier(str(tmp_path), LABELS, image_size=64)
    small, _ = load_classifier(str(tmp_path), LABELS, image_size=32)
    words = ("position_embeddings", "pos_embed", "relative_position_bias_table")
    for (key, old), new, same in zip(plain.state_dict().items(), large.state_dict().values(), small.state_dict().values(), strict=True):
        if not key.startswith(tuple(head_names(plain))):
            assert torch.equal(old, same)
            assert torch.equal(old, new) or key.endswith(words), key


TOO_SMALL = [
    ("vit", 7, "image_size 7 is too small for {}: the smallest that works is 8, its patch size."),
    ("timm_vit", 4, "image_size 4 is too small for {}: the smallest that works is 8, its patch size."),
    ("vit", 20, "image_size 20 is not a multiple of 8, the patch size of {}; the nearest are 16 and 24."),
    ("swin", 24, "image_size 24 is too small for {}: the smallest that works is 25."),
    ("convnext", 7, "image_size 7 is too small for {}: the smallest that works is 8."),
    ("timm_convnext", 24, "image_size 24 is too small for {}: the smallest that works is 32."),
    ("vit", 0, "image_size is 0; it must be at least 1 pixel."),
]


@pytest.mark.parametrize(("kind", "size", "message"), TOO_SMALL)
def test_image_sizes_that_cannot_be(kind: str, size: int, message: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    with pytest.raises(ModelError) as error:
        load_classifier(str(tmp_path), LABELS, image_size=size)
    assert str(error.value) == message.format(tmp_path)


def test_a_processor_that_does_not_fit_its_model(tmp_path: Path) -> None:
    build_vit_dir(tmp_path)
    ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as error:
        load_classifier(str(tmp_path), LABELS)
    assert str(error.value) == (
        f"The image processor of {tmp_path} makes pictures of 48×48 pixels, which its model does not take (Input image size (48*48) "
        "doesn't match model (32*32)); set image_size to what the model was trained on."
    )
    model, processor = load_classifier(str(tmp_path), LABELS, image_size=32)
    assert output_size(processor) == (32, 32)
    assert model.config.image_size == 32
