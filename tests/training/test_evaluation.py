"""Scoring outside a trainer agrees with scoring inside, and disturbs nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

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
