"""The embedded checkpoints: small, complete, loadable without this package, and better than random weights on digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hf_finetune.models
from hf_finetune.data.digits import digits
from hf_finetune.data.drawn import drawn_pets
from hf_finetune.data.drawn_shapes import SHAPE_NAMES

EMBEDDED = Path(hf_finetune.models.__file__).parent / "embedded"
NAMES = ["tiny_resnet", "tiny_vit"]
SIDE = {"tiny_resnet": 64, "tiny_vit": 48}
RANDOM_LABELS = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "num_labels": 2}


def load(name: str, **kwargs: object) -> transformers.PreTrainedModel:
    return transformers.AutoModelForImageClassification.from_pretrained(EMBEDDED / name, **kwargs).eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_float32_and_at_most_two_megabytes(name: str) -> None:
    assert sum(file.stat().st_size for file in (EMBEDDED / name).iterdir()) <= 2_000_000
    with safe_open(EMBEDDED / name / "model.safetensors", "pt") as weights:
        kinds = {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118 - it is no dict
    assert {kind for key, kind in kinds.items() if not key.startswith("classifier.")} <= {"F32", "I64"}
    assert {parameter.dtype for parameter in load(name).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_says_how_it_was_made(name: str) -> None:
    record = json.loads((EMBEDDED / name / "training.json").read_text())
    assert record["command"].startswith(f"python recipes/pretrain_tiny.py --model {name} ")
    assert {"seed", "date", "versions", "runtime_s", "parameters", "pretraining_accuracy", "figures"} <= set(record)
    assert record["parameters"] == load(name).num_parameters()


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_of_the_file_arrives_in_the_model(name: str) -> None:
    model, info = transformers.AutoModelForImageClassification.from_pretrained(EMBEDDED / name, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert list(model.config.id2label.values()) == list(SHAPE_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_can_be_replaced(name: str) -> None:
    model = load(name, ignore_mismatched_sizes=True, **RANDOM_LABELS)
    with torch.no_grad():
        assert model(pixel_values=torch.zeros(3, 3, SIDE[name], SIDE[name])).logits.shape == (3, 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(90, 60), (41, 70), (64, 64), (300, 200)])
def test_the_pipeline_keeps_the_aspect_and_crops_the_middle(name: str, size: tuple[int, int]) -> None:
    pipe = transformers.pipeline("image-classification", model=str(EMBEDDED / name), device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    seen = pipe.image_processor(image, return_tensors="pt")["pixel_values"]
    side = SIDE[name]
    assert seen.shape == (1, 3, side, side)
    scale = side / min(size)
    wide, high = (max(side, int(length * scale)) for length in size)
    left, top = round((wide - side) / 2), round((high - side) / 2)
    expected = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side)))
    # Crops may start one pixel apart where the margin is odd; a squeezed image would be off by ten times as much.
    assert np.abs(seen[0].permute(1, 2, 0).numpy() - (expected / 127.5 - 1)).mean() < 0.05
    scores = pipe(image, top_k=3)
    assert len(scores) == 3
    assert all(answer["label"] in SHAPE_NAMES for answer in scores)


def images_of(rows: object, name: str) -> torch.Tensor:
    processor = transformers.AutoImageProcessor.from_pretrained(EMBEDDED / name)
    views = [processor(image.convert("RGB"), return_tensors="pt")["pixel_values"] for image in rows["image"][:]]  # type: ignore[index]
    return torch.cat(views)


def features(model: transformers.PreTrainedModel, views: torch.Tensor) -> np.ndarray:
    """Return what the head of `model` reads, `[n, width]`."""
    seen: list[torch.Tensor] = []
    head = model.timm_model.get_classifier() if hasattr(model, "timm_model") else model.classifier
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for part in views.split(128):
            model(pixel_values=part)
    handle.remove()
    return torch.cat(seen).numpy()


def untrained(name: str) -> transformers.PreTrainedModel:
    """Return the same network with the random weights that its own library gives it."""
    from recipes.pretrain_tiny import build_model

    torch.manual_seed(0)
    return build_model(name).eval()


def probe(model: transformers.PreTrainedModel, data: Callable[[], object], name: str) -> tuple[float, float]:
    """Return the test accuracy of a logistic regression on frozen features, as they are and with mean 0 and deviation 1."""
    splits = data()
    train, test = splits["train"], splits["test"]  # type: ignore[index]
    inputs = features(model, images_of(train, name)), features(model, images_of(test, name))
    scores = []
    for steps in ([], [StandardScaler()]):
        classifier = make_pipeline(*steps, LogisticRegression(max_iter=3000))
        classifier.fit(inputs[0], train["label"][:])
        scores.append(float(classifier.score(inputs[1], test["label"][:])))
    return scores[0], scores[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_probe_on_digits_gains_over_random_weights(name: str) -> None:
    (plain, standardised), (random_plain, random_standardised) = (probe(model, digits, name) for model in (load(name), untrained(name)))
    assert plain >= random_plain + 0.10
    # standardising helps random features most, whose values hardly differ from photo to photo
    assert standardised >= random_standardised + 0.04


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_random_weights_do_not_solve_the_pets(name: str) -> None:
    (_, random), (_, pretrained) = (probe(model, drawn_pets, name) for model in (untrained(name), load(name)))
    assert random < 0.40 < pretrained + 0.05
