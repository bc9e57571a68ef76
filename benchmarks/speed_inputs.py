"""The photos and checkpoints of the speed benchmark, written once for all processes that measure."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
import transformers
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import save_file
from speed_rows import SEED, Row, model_folder, photos_folder, stored_photos

from hf_finetune.data.catalog import load_dataset
from hf_finetune.data.drawn import drawn_pets

PHOTO_SIDE = 256
TIMM_NAMES = {"resnet18": "resnet18", "efficientnet": "tf_efficientnet_lite0"}
VIT_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
VIT_CROP = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
# what a checkpoint of timm says about the preparation of a picture and about its own ends
PREPARATION = ("input_size", "interpolation", "mean", "std", "crop_pct", "num_classes", "pool_size", "first_conv", "classifier")


def build_inputs(inputs: Path, dataset: str, wanted: Iterable[tuple[Row, int]], models: Mapping[str, str | None]) -> None:
    """Write everything that the measurements read.

    Args:
        inputs: Folder, empty.
        dataset: A data set as `hf_finetune.load_dataset` takes it; `drawn_pets` is enlarged to the size of photos.
        wanted: Rows with the photos that they ask for.
        models: Network → a folder or a Hub id, or None for random weights.
    """
    datasets.disable_progress_bars()
    counts = {photos_folder(inputs, row, photos): stored_photos(row, photos) for row, photos in wanted}
    photos = drawn_photos(max(map(sum, counts.values()))) if dataset == "drawn_pets" else found_photos(dataset)
    order = alternating(np.asarray(photos["label"][:]))
    for folder, (count, beside) in counts.items():
        take_photos(photos, order, count, beside).save_to_disk(folder)
    model_folder(inputs, "").mkdir(parents=True)
    for model, source in models.items():
        build_model(model, source, model_folder(inputs, model))


def drawn_photos(count: int) -> datasets.Dataset:
    """Return at least `count` drawn pets, enlarged and stored as JPEG files, so that reading one costs what reading a photo costs."""
    classes = drawn_pets(n_train=1, n_test=1)["train"].features["label"]
    pets = drawn_pets(SEED, n_train=math.ceil(count / classes.num_classes), n_test=1)["train"]
    columns = {"image": [{"bytes": enlarged(image), "path": None} for image in pets["image"]], "label": pets["label"][:]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), "label": classes}))


def enlarged(image: Image.Image) -> bytes:
    """Return a picture as a JPEG file whose shorter side has `PHOTO_SIDE` pixels."""
    scale = PHOTO_SIDE / min(image.size)
    buffer = io.BytesIO()
    image.convert("RGB").resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def found_photos(dataset: str) -> datasets.Dataset:
    """Return the photos of all splits of a data set, as they are."""
    return datasets.concatenate_datasets([split.select_columns(["image", "label"]) for split in load_dataset(dataset).values()])


def alternating(labels: np.ndarray) -> list[int]:
    """Return all row numbers, one row of every class in turn, the rows of a class shuffled."""
    random = np.random.default_rng(SEED)
    classes = [random.permutation(np.flatnonzero(labels == label)).tolist() for label in np.unique(labels)]
    return [row for turn in itertools.zip_longest(*classes) for row in turn if row is not None]


def take_photos(photos: datasets.Dataset, order: list[int], count: int, beside: int) -> datasets.DatasetDict:
    """Return `count` photos as training split, the first `count`, or 1 where a training needs no more, as test split.

    The validation split holds `beside` other photos. Photos repeat where there are too few.
    """
    labels = photos["label"][:]
    rows = list(itertools.islice(itertools.cycle(order), count))
    known = {labels[row] for row in rows}
    others = itertools.islice((row for row in itertools.cycle([*order[count:], *order]) if labels[row] in known), beside)
    splits = {"train": rows, "validation": list(others), "test": rows if beside > 1 else rows[:1]}
    return datasets.DatasetDict({name: photos.select(chosen) for name, chosen in splits.items()})


def build_model(model: str, source: str | None, folder: Path) -> None:
    """Make `folder` a checkpoint: a link to another folder, a copy from the Hub, or random weights."""
    torch.manual_seed(SEED)
    if source is None:
        build_vit(folder) if model == "vit" else build_timm(TIMM_NAMES[model], folder)
    elif Path(source).is_dir():
        folder.symlink_to(Path(source).resolve(), target_is_directory=True)
    else:
        snapshot_download(source, local_dir=folder)


def build_timm(architecture: str, folder: Path) -> None:
    """Write a network of timm with random weights as its checkpoints on the Hub are written."""
    network = timm.create_model(architecture)
    prepared = {key: network.pretrained_cfg[key] for key in PREPARATION}
    config = {"architecture": architecture, "num_classes": network.num_classes, "pretrained_cfg": prepared}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})


def build_vit(folder: Path) -> None:
    """Write a ViT-S/16 for 224 pixels with random weights."""
    transformers.ViTForImageClassification(transformers.ViTConfig(**VIT_SMALL)).save_pretrained(folder)
    transformers.ViTImageProcessor(**VIT_CROP).save_pretrained(folder)
