import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_finetune.data import images
from hf_finetune.data.image_folder import load_class_folders
from hf_finetune.data.images import check_images, to_rgb
from hf_finetune.errors import DataError

MEND = "Mend or remove it, or add --skip_bad_images, which leaves it out."
RAMP = np.tile(np.arange(256, dtype=np.uint8), (16, 1))  # 16 x 256, every grey value


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def animation() -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def dataset(**bytes_by_id: bytes | None) -> datasets.DatasetDict:
    columns = {"image": list(bytes_by_id.values()), "image_id": list(bytes_by_id)}
    features = datasets.Features({"image": datasets.Image(), "image_id": datasets.Value("string")})
    return datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))


GOOD = encoded(noise())


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "I;16B"]
)
def test_any_mode_becomes_rgb(mode: str) -> None:
    image = to_rgb(Image.new(mode, (10, 9)))
    assert (image.mode, image.size) == ("RGB", (10, 9))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_colours_are_those_of_pillow(mode: str) -> None:
    image = noise().convert(mode)
    assert np.array_equal(to_rgb(image), image.convert("RGB"))


def test_transparency_of_a_palette_is_dropped_as_pipelines_do() -> None:
    image = noise().convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = bytes(range(256))
    with pytest.warns(UserWarning, match="Transparency"):
        expected = image.convert("RGB")
    assert np.array_equal(to_rgb(image), expected)


def test_lab_keeps_its_colour() -> None:
    red, green, blue = np.asarray(to_rgb(Image.new("LAB", (8, 8), (136, 208, 195))))[0, 0].astype(int)
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_and_not_clipped(dtype: str) -> None:
    image = Image.fromarray((RAMP.astype(np.uint16) * 257).astype(dtype))
    assert image.mode.startswith("I;16")
    assert np.array_equal(np.asarray(to_rgb(image))[..., 0], RAMP)


@pytest.mark.parametrize(
    ("dtype", "factor"), [(np.int32, 1), (np.int32, 257), (np.int32, 8_000_000), (np.float32, 1), (np.float32, 257), (np.float32, 1 / 255)]
)
def test_thirty_two_bits_are_scaled_by_their_range(dtype: type, factor: float) -> None:
    image = Image.fromarray((RAMP * np.float64(factor)).astype(dtype))
    assert np.array_equal(np.asarray(to_rgb(image))[..., 1], RAMP)


def test_negative_and_missing_values_of_a_float_image() -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, 1] = np.nan
    pixels = np.asarray(to_rgb(Image.fromarray(values)))[..., 0]
    assert (pixels[0, 0], pixels[0, 1], pixels[-1, -1]) == (0, 128, 255)


def test_exif_orientation_is_honoured() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    image = Image.open(io.BytesIO(encoded(noise(24, 16), "PNG", exif=exif)))
    assert np.array_equal(to_rgb(image), np.rot90(np.asarray(noise(24, 16)), -1))


def test_the_first_frame_of_an_animation() -> None:
    image = Image.open(io.BytesIO(animation()))
    image.seek(1)
    assert to_rgb(image).getpixel((0, 0)) == (255, 0, 0)


def test_good_images_pass_unchanged() -> None:
    data = dataset(a=GOOD, b=encoded(noise(), "PNG"))
    notices: list[str] = []
    assert check_images(data, notices=notices) is data
    assert notices == []


SMALL = encoded(noise(), "PNG")
DAMAGED = {
    "truncated": (GOOD[: len(GOOD) // 2], "truncated"),
    "truncated_png": (SMALL[: len(SMALL) // 2], "truncated"),
    "text": (b"this is no photo", "not an image"),
    "empty": (b"", "not an image"),
    "pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "1 x 1 pixels, at least 8 x 8 are needed"),
    "flat": (encoded(Image.new("RGB", (100, 7))), "100 x 7 pixels, at least 8 x 8 are needed"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_image_is_an_error(name: str) -> None:
    content, reason = DAMAGED[name]
    with pytest.raises(DataError) as error:
        check_images(dataset(a=GOOD, broken=content))
    assert str(error.value) == (
        f"1 of 2 images cannot be used: broken in train ({reason}). Mend or remove it, or add --skip_bad_images, which leaves it out."
    )


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_called_jpg_is_an_error(name: str, class_folders: Path) -> None:
    content, reason = DAMAGED[name]
    (class_folders / "cat" / "3.jpg").write_bytes(content)
    with pytest.raises(DataError) as error:
        check_images(datasets.DatasetDict(load_class_folders(class_folders)))
    assert str(error.value) == (
        f"1 of 20 images cannot be used: cat/3.jpg in train ({reason}). Mend or remove it, or add --skip_bad_images, which leaves it out."
    )


GREY16 = Image.fromarray(RAMP.astype(np.uint16) * 257)
UNUSUAL = {
    "cmyk": encoded(noise().convert("CMYK")),
    "sixteen_bit": encoded(GREY16, "PNG"),
    "sixteen_bit_tiff": encoded(GREY16, "TIFF"),
    "palette": encoded(noise().convert("P"), "PNG"),
    "grey_alpha": encoded(noise().convert("LA"), "PNG"),
    "animated": animation(),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_image_works(name: str) -> None:
    data = check_images(dataset(image=UNUSUAL[name]))
    assert to_rgb(data["train"][0]["image"]).mode == "RGB"


def test_all_damaged_images_are_counted_and_the_first_named() -> None:
    with pytest.raises(DataError) as error:
        check_images(dataset(good=GOOD, **{f"t{number:02}": b"text" for number in range(12)}))
    named = ", ".join(f"t{number:02} in train (not an image)" for number in range(10))
    assert str(error.value) == (
        f"12 of 13 images cannot be used: {named} and 2 more. Mend or remove them, or add --skip_bad_images, which leaves them out."
    )


def test_damaged_images_are_left_out_on_request() -> None:
    data = dataset(a=GOOD, b=b"text", c=GOOD)
    data["test"] = dataset(d=GOOD[:100], e=GOOD)["train"]
    notices: list[str] = []
    kept = check_images(data, True, notices)
    assert {name: list(split["image_id"]) for name, split in kept.items()} == {"train": ["a", "c"], "test": ["e"]}
    assert notices == [
        "2 of 5 images left out because they are damaged (train: 1, test: 1): b in train (not an image), d in test (truncated)."
    ]


def test_animated_images_are_noted_and_camera_previews_are_not() -> None:
    preview = encoded(noise(), "MPO", save_all=True, append_images=[noise()])
    notices: list[str] = []
    check_images(dataset(a=GOOD, b=animation(), c=preview), notices=notices)
    assert notices == ["1 animated image, of which only the first frame is used (train: 1): b in train."]


def test_an_empty_row_and_a_missing_file(tmp_path: Path) -> None:
    data = dataset(a=GOOD, b=None)
    with pytest.raises(DataError) as error:
        check_images(data)
    assert str(error.value) == f"1 of 2 images cannot be used: b in train (no image in this row). {MEND}"
    missing = {"image": [str(tmp_path / "missing.jpg")], "image_id": ["x"]}
    features = datasets.Features({"image": datasets.Image(), "image_id": datasets.Value("string")})
    with pytest.raises(DataError) as error:
        check_images(datasets.DatasetDict(train=datasets.Dataset.from_dict(missing, features=features)))
    assert str(error.value) == f"1 of 1 images cannot be used: x in train (the file is missing). {MEND}"


def on_disk(folder: Path) -> datasets.DatasetDict:
    features = datasets.Features({"image": datasets.Image(), "image_id": datasets.Value("string")})
    columns = {"image": [str(path) for path in sorted(folder.iterdir())], "image_id": [path.name for path in sorted(folder.iterdir())]}
    return datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))


def test_the_verdict_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(GOOD)
    (folder / "b.jpg").write_bytes(b"text")
    inspected = []
    inspect_all = images._inspect_all
    monkeypatch.setattr(images, "_inspect_all", lambda split: inspected.append(len(split)) or inspect_all(split))
    for _ in range(2):
        with pytest.raises(DataError) as error:
            check_images(on_disk(folder))
        assert str(error.value) == f"1 of 2 images cannot be used: b.jpg in train (not an image). {MEND}"
    assert inspected == [2]
    (folder / "b.jpg").write_bytes(GOOD)
    assert len(check_images(on_disk(folder))["train"]) == 2
    assert inspected == [2, 2]


def test_an_unreadable_verdict_is_made_anew() -> None:
    data = dataset(a=GOOD, b=GOOD)
    check_images(data)
    (verdict,) = (datasets.config.HF_DATASETS_CACHE / "hf_finetune").iterdir()
    assert json.loads(verdict.read_text()) == {"damaged": {}, "animated": []}
    verdict.write_text("{")
    assert check_images(data) is data
    assert json.loads(verdict.read_text()) == {"damaged": {}, "animated": []}
