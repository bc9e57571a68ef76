"""Scoring outside a trainer agrees with scoring inside, and disturbs nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from hf_finetune.models.classifier import load_classifier
from hf_finetune.training.evaluation import evaluate_classifier
from tests.coloured import NAMES


def test_a_table_row_an_image_and_the_metrics_of_the_report(checkpoint_of: Callable[[str], Path], photos, make_trainer):
    model, processor = load_classifier(str(checkpoint_of("timm_resnet")), NAMES)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluation = evaluate_classifier(model, photos["test"], processor, batch_size=4)
    assert model.training
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    table = evaluation.predictions.to_pydict()
    assert list(table) == ["image_id", "split", "label", "prediction", "probabilities"]
    assert table["image_id"] == photos["test"]["image_id"][:]
    assert set(table["split"]) == {"test"}
    hits = np.array(table["label"]) == np.array(table["prediction"])
    assert evaluation.metrics["accuracy"] == hits.mean()
    assert evaluation.metrics["per_class"].keys() == set(NAMES)


def test_every_module_is_in_its_own_mode_afterwards(checkpoint_of, photos) -> None:
    model, processor = load_classifier(str(checkpoint_of("timm_resnet")), NAMES)
    model.train()
    model.timm_model.bn1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    evaluate_classifier(model, photos["test"], processor)
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("inside", [True, False], ids=["trainer", "outside"])
def test_batchnorm_is_folded_into_convolutions_while_photos_are_scored(inside: bool, make_trainer, photos, monkeypatch) -> None:
    trainer = make_trainer("timm_resnet")
    images: list[int] = []
    plain = functional.batch_norm
    monkeypatch.setattr(functional, "batch_norm", lambda pixels, *args: (images.append(len(pixels)), plain(pixels, *args))[1])
    if inside:
        trainer.predict_split(photos["test"])
    else:
        evaluate_classifier(trainer.model, photos["test"], trainer.processing_class)
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in trainer.model.modules())
    assert images == [1] * norms  # the one image that shows what can be folded
    assert not any("forward" in vars(module) for module in trainer.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
