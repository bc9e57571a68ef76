import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from transformers import AutoImageProcessor, BitImageProcessor, ConvNextImageProcessor, MobileViTImageProcessor, ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_finetune.data.transforms import EvalTransform, InputSpec, TrainTransform, input_spec
from hf_finetune.errors import ConfigError, ModelError

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def vit() -> Any:
    return ViTImageProcessor(size={"height": 32, "width": 40}, image_mean=MEAN, image_std=STD, resample=2)


def dinov2() -> Any:
    return BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD, resample=3, do_convert_rgb=True
    )


def convnext() -> Any:
    return ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875, image_mean=MEAN, image_std=STD, resample=3)


def timm() -> Any:
    return TimmWrapperImageProcessor(
        pretrained_cfg={"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": MEAN, "std": STD, "crop_pct": 0.9}
    )


PROCESSORS = {"vit": vit, "dinov2": dinov2, "convnext": convnext, "timm": timm}


def photo(seed: int, size: tuple[int, int] = (60, 45)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def batch(count: int = 4) -> dict[str, list[Any]]:
    images = [photo(row, (60, 45) if row % 2 else (40, 70)) for row in range(count)]
    return {"image": images, "label": list(range(count)), "image_id": [f"photo-{row}" for row in range(count)]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit", InputSpec(32, 40, InterpolationMode.BILINEAR, MEAN, STD)),
        ("dinov2", InputSpec(32, 32, InterpolationMode.BICUBIC, MEAN, STD)),
        ("convnext", InputSpec(32, 32, InterpolationMode.BICUBIC, MEAN, STD)),
        ("timm", InputSpec(32, 32, InterpolationMode.BICUBIC, MEAN, STD)),
    ],
)
def test_input_spec(name: str, expected: InputSpec) -> None:
    spec = input_spec(PROCESSORS[name]())
    assert spec[:3] == expected[:3]
    assert spec.mean == pytest.approx(expected.mean)
    assert spec.std == pytest.approx(expected.std)


def test_a_processor_without_a_fixed_size() -> None:
    processor = BitImageProcessor(size={"shortest_edge": 30}, do_center_crop=False)
    with pytest.raises(ModelError) as error:
        input_spec(processor)
    assert str(error.value) == (
        "The image processor BitImageProcessor gives 40 x 30 pixels for a wide photo and 30 x 40 for a tall one; set a fixed size with "
        "--image_size, or add a crop to its preprocessor_config.json."
    )


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_evaluation_view_is_the_processors_own(name: str) -> None:
    processor = PROCESSORS[name]()
    view = EvalTransform(processor)(batch())
    alone = [processor(images=image, return_tensors="pt")["pixel_values"][0] for image in batch()["image"]]
    assert all(torch.equal(*pair) for pair in zip(view["pixel_values"], alone, strict=True))
    assert view["labels"] == [0, 1, 2, 3]
    assert {(tensor.dtype, tensor.ndim) for tensor in view["pixel_values"]} == {(torch.float32, 3)}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_photos_of_any_mode_pass(name: str, mode: str) -> None:
    rows = {**batch(1), "image": [photo(0).convert(mode)]}
    processor = PROCESSORS[name]()
    expected = processor(images=[photo(0).convert(mode).convert("RGB")], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(EvalTransform(processor)(rows)["pixel_values"][0], expected)
    assert TrainTransform(processor, "medium", 0)(rows)["pixel_values"][0].shape == expected.shape


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("augmentation", ["light", "medium"])
def test_training_views_have_the_checkpoints_form(name: str, augmentation: str) -> None:
    processor = PROCESSORS[name]()
    spec = input_spec(processor)
    view = TrainTransform(processor, augmentation, 0)(batch())
    assert {(tuple(tensor.shape), tensor.dtype) for tensor in view["pixel_values"]} == {((3, spec.height, spec.width), torch.float32)}
    low, high = ((value - np.array(MEAN)) / np.array(STD) for value in (0, 1))
    pixels = torch.stack(view["pixel_values"]).numpy()
    assert (pixels >= low[:, None, None] - 1e-5).all()
    assert (pixels <= high[:, None, None] + 1e-5).all()


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_plain_photo_is_normalised_as_the_processor_does(name: str) -> None:
    processor = PROCESSORS[name]()
    rows = {"image": [Image.new("RGB", (50, 50), (10, 120, 250))], "label": [0], "image_id": ["plain"]}
    expected = EvalTransform(processor)(rows)["pixel_values"][0]
    assert torch.allclose(TrainTransform(processor, "crop+flip", 0)(rows)["pixel_values"][0], expected, atol=1e-5)


def test_a_processor_that_does_not_rescale() -> None:
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3)
    assert input_spec(processor).mean == pytest.approx((0.5, 0.5, 0.5))
    TrainTransform(processor, "light", 0)


def test_a_processor_that_does_more() -> None:
    processor = MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})  # swaps red and blue
    with pytest.raises(ModelError) as error:
        TrainTransform(processor, "light", 0)
    assert str(error.value) == (
        "The image processor MobileViTImageProcessor does more than resize, crop, rescale and normalise, so its training view cannot be "
        "augmented; use --augmentation none."
    )
    TrainTransform(processor, "none", 0)


def test_none_is_the_evaluation_view() -> None:
    views = [transform(batch())["pixel_values"] for transform in (TrainTransform(vit(), "none", 0), EvalTransform(vit()))]
    assert all(torch.equal(*pair) for pair in zip(*views, strict=True))


def test_an_unknown_augmentation() -> None:
    with pytest.raises(ConfigError) as error:
        TrainTransform(vit(), "lite", 0)
    assert str(error.value) == (
        "--augmentation must be one of none, light, medium, randaugment, trivialaugment, or crop, flip, rotation, scale joined by +, "
        "not 'lite'. Did you mean 'light'?"
    )


def views(transform: TrainTransform, rows: dict[str, list[Any]] | None = None) -> torch.Tensor:
    return torch.stack(transform(rows or batch())["pixel_values"])


RANDOM = ["light", "medium", "randaugment", "trivialaugment", "flip+scale", "rotation", "none, erasing"]


def random_transform(processor: Any, name: str, seed: int) -> TrainTransform:
    augmentation, _, erasing = name.partition(", ")
    return TrainTransform(processor, augmentation, seed, random_erasing=0.9 if erasing else 0.0)


@pytest.mark.parametrize("augmentation", RANDOM)
def test_a_view_depends_on_seed_epoch_and_identity_alone(augmentation: str) -> None:
    transform = random_transform(vit(), augmentation, 7)
    first = views(transform)
    torch.manual_seed(123)
    assert torch.equal(views(transform), first)
    backwards = {key: values[::-1] for key, values in batch().items()}
    assert torch.equal(views(transform, backwards).flip(0), first)
    assert not torch.equal(views(random_transform(vit(), augmentation, 8)), first)
    transform.set_epoch(1)
    assert transform.epoch == 1
    assert not torch.equal(views(transform), first)
    transform.set_epoch(0)
    assert torch.equal(views(transform), first)
    same_photo = {**batch(2), "image": [photo(0)] * 2}
    one, other = views(transform, same_photo)
    assert not torch.equal(one, other)


def test_the_global_random_state_is_untouched() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    views(TrainTransform(vit(), "medium", 0))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def black_to_white(size: int = 32) -> Any:
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=[0] * 3, image_std=[1] * 3)


def test_crop_and_flip() -> None:
    transform = TrainTransform(black_to_white(), "crop+flip", 0)
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    rows = {"image": [ramp] * 200, "label": [0] * 200, "image_id": [str(row) for row in range(200)]}
    pixels = views(transform, rows)[:, 0]
    flipped = pixels[:, 0, 0] > pixels[:, 0, -1]
    assert 70 < int(flipped.sum()) < 130
    widths = (pixels[:, 0, 0] - pixels[:, 0, -1]).abs()  # of the crop, as a share of the photo
    assert 0.55 < float(widths.min()) < 0.75  # sqrt(0.5 * 3 / 4) = 0.61, less half a pixel at each end
    assert float(widths.max()) > 0.9


def turns_and_zooms(augmentation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the degrees by which views of a white line on black are turned, and the zoom of them, measured from their pixels."""
    line = np.zeros((96, 96, 3), np.uint8)
    line[46:50, 18:78] = 255
    rows = {"image": [Image.fromarray(line)] * 300, "label": [0] * 300, "image_id": [str(row) for row in range(300)]}
    ink = views(TrainTransform(black_to_white(96), augmentation, 0), rows)[:, 0]
    down, across = (axis.float() for axis in torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij"))
    down, across = ((axis - (ink * axis).sum((1, 2), keepdim=True) / ink.sum((1, 2), keepdim=True)) for axis in (down, across))
    moment = [(ink * one * other).sum((1, 2)) / ink.sum((1, 2)) for one, other in ((across, across), (down, down), (across, down))]
    turn = torch.atan2(2 * moment[2], moment[0] - moment[1]) / 2
    along = (moment[0] + moment[1] + torch.hypot(moment[0] - moment[1], 2 * moment[2])) / 2
    return torch.rad2deg(turn), (12 * along).sqrt() / 60


@pytest.mark.parametrize(("parts", "degrees", "zoom"), [("rotation+scale", 15, 0.1), ("rotation", 15, 0), ("scale", 0, 0.1)])
def test_rotation_and_scale_go_as_far_as_they_say(parts: str, degrees: float, zoom: float) -> None:
    turned, zoomed = turns_and_zooms(parts)
    assert 0.9 * degrees <= float(turned.abs().max()) <= degrees + 0.5
    assert 0.9 * zoom <= float((zoomed - 1).abs().max()) <= zoom + 0.02


def test_light_is_all_four_parts_and_medium_the_same_twice_as_far() -> None:
    light = TrainTransform(black_to_white(), "light", 3)
    assert torch.equal(views(light), views(TrainTransform(black_to_white(), "scale+rotation+flip+crop", 3)))
    plain = Image.new("RGB", (64, 64), "white")
    rows = {"image": [plain] * 300, "label": [0] * 300, "image_id": [str(row) for row in range(300)]}
    filled = [(views(TrainTransform(black_to_white(), name, 0), rows) < 0.5).float().mean() for name in ("light", "medium")]
    assert 0.02 < filled[0] < filled[1] / 1.5
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    middles = [
        views(TrainTransform(black_to_white(), name, 0), {**rows, "image": [ramp] * 300})[:, 0, 16, 12:20] for name in ("light", "medium")
    ]
    slopes = [(pixels[:, -1] - pixels[:, 0]).abs().quantile(0.02) for pixels in middles]
    assert slopes[1] < 0.85 * slopes[0]  # crops of a quarter of the area, against crops of a half


def test_medium_fills_the_corners_with_the_mean_colour() -> None:
    transform = TrainTransform(vit(), "medium", 0)
    white = {"image": [Image.new("RGB", (64, 64), "white")] * 50, "label": [0] * 50, "image_id": [str(row) for row in range(50)]}
    corners = views(transform, white)[:, :, 0, 0]
    filled = corners[corners[:, 0] < 1.0]
    assert len(filled) > 10
    assert float(filled.abs().max()) < 0.02  # the mean colour is 0 after normalisation, but for rounding to 8 bits


def test_parts_without_a_crop_begin_from_the_evaluation_view() -> None:
    rows = {"image": [photo(3)] * 60, "label": [0] * 60, "image_id": [str(row) for row in range(60)]}
    straight = EvalTransform(vit())(rows)["pixel_values"][0]
    flips = [torch.equal(view, straight.flip(-1)) for view in views(TrainTransform(vit(), "flip", 0), rows)]
    same = [torch.equal(view, straight) for view in views(TrainTransform(vit(), "flip", 0), rows)]
    assert 15 < sum(flips) < 45
    assert sum(flips) + sum(same) == 60
    turned = views(TrainTransform(vit(), "rotation", 0), rows)
    assert sum(torch.equal(view, straight) for view in turned) == 0
    assert float((turned - straight)[:, :, 14:18, 18:22].abs().mean()) < float((turned - straight).abs().mean())  # the middle moves least
    assert sum(bool((view[:, 0, 0] == 0).all()) for view in turned) / 60 > 0.3  # corners of the mean colour


def test_erasing_takes_a_rectangle_and_leaves_the_rest_of_the_view() -> None:
    rows = {"image": [photo(3)] * 40, "label": [0] * 40, "image_id": [str(row) for row in range(40)]}
    plain, erased = (views(TrainTransform(vit(), "light", 0, random_erasing=share), rows) for share in (0.0, 1.0))
    for before, after in zip(plain, erased, strict=True):
        changed = (before != after).any(0)
        inside = changed.any(1)[:, None] & changed.any(0)
        assert 0.01 < float(inside.float().mean()) < 0.4
        assert float(after[:, inside].abs().max()) == 0
        assert torch.equal(after[:, ~inside], before[:, ~inside])


def dataset(rows: int = 12) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=rows), "image_id": datasets.Value("string")}
    )
    return datasets.Dataset.from_dict(batch(rows), features=features)


def loaded(loader: DataLoader) -> torch.Tensor:
    return torch.cat([batch["pixel_values"] for batch in loader])


@pytest.mark.parametrize("augmentation", ["none", *RANDOM])
def test_any_number_of_workers_gives_the_same_tensors(augmentation: str) -> None:
    transform = random_transform(dinov2(), augmentation, 3)
    data = dataset().with_transform(transform)
    loaders = [DataLoader(data, batch_size=5, num_workers=workers) for workers in (0, 1, 2)]
    loaders.append(DataLoader(data, batch_size=4, num_workers=2, persistent_workers=True))
    epochs = []
    for epoch in range(3):
        transform.set_epoch(epoch)
        results = [loaded(loader) for loader in loaders]
        assert all(torch.equal(result, results[0]) for result in results)
        epochs.append(results[0])
    assert torch.equal(epochs[0], epochs[1]) == (augmentation == "none")


def test_a_copy_of_the_data_set_follows_the_epoch() -> None:
    transform = TrainTransform(vit(), "light", 3)
    part = dataset().with_transform(transform).select(range(4))
    first = part[0]["pixel_values"]
    transform.set_epoch(1)
    assert not torch.equal(part[0]["pixel_values"], first)


def test_it_can_be_pickled() -> None:
    transform = TrainTransform(timm(), "medium", 3)
    transform.set_epoch(2)
    copy = pickle.loads(pickle.dumps(transform))
    assert copy.epoch == 2
    assert torch.equal(views(copy), views(transform))


@pytest.mark.real
@pytest.mark.parametrize("name", ["dinov2-small-saliency", "tf_efficientnet_lite0"])
def test_real_checkpoints(real: Path, name: str) -> None:
    processor = AutoImageProcessor.from_pretrained(real / "models" / name)
    parquet = str(real / "data" / "oxford-flowers102" / "data" / "train-00000-of-00001.parquet")
    rows = datasets.load_dataset("parquet", data_files=parquet, split="train[:6]")
    rows = rows.rename_column("image_id", "number").add_column("image_id", [str(row) for row in range(6)])
    view = torch.stack(EvalTransform(processor)(rows[:])["pixel_values"])
    alone = torch.cat([processor(images=image, return_tensors="pt")["pixel_values"] for image in rows[:]["image"]])
    assert view.shape == (6, 3, 224, 224)
    assert torch.equal(view, alone)
    light = views(TrainTransform(processor, "light", 0), rows[:])
    assert light.shape == view.shape
    assert light.mean().item() == pytest.approx(view.mean().item(), abs=0.2)
