"""Freezing schedules in training: what trains when, and that nothing else moves, is lost on resume, or differs without the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_finetune.errors import ConfigError, ModelError
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freeze_text import FreezeSettings, parse_freeze
from hf_finetune.models.freezing import FreezeSchedule, head_parameter_names
from hf_finetune.models.layers import layer_groups
from tests.builders import LABELS
from tests.coloured import weights_of

GRADUAL = FreezeSchedule.gradual(start=0, every=1)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("none", FreezeSettings("none")),
        ("head", FreezeSettings("head")),
        ("last:3", FreezeSettings("last", start=3)),
        ("gradual:start=1,every=2", FreezeSettings("gradual", 1, 2)),
        ("gradual:every=2,start=1,stop=4", FreezeSettings("gradual", 1, 2, 4)),
        ("gradual:start=1,every=2,stop=all", FreezeSettings("gradual", 1, 2, None)),
        ("head_then_all:epochs=2", FreezeSettings("head_then_all", every=2)),
        ("batch_norm_only", FreezeSettings("batch_norm_only")),
        (r"layer[34]\.", FreezeSettings("matching", pattern=r"layer[34]\.")),
    ],
)
def test_the_text_of_a_schedule(text: str, settings: FreezeSettings) -> None:
    assert parse_freeze(text) == settings


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("last:0", ", not 'last:0'."),
        ("gradual", ", not 'gradual'."),
        ("gradual:start=1", ", not 'gradual:start=1'."),
        ("gradual:start=1,evry=2", ", not 'gradual:start=1,evry=2'."),
        ("head_then_al:epochs=1", ", not 'head_then_al:epochs=1'. Did you mean 'head_then_all'?"),
        ("layer[3", ", not 'layer[3': unterminated character set at position 5."),
    ],
)
def test_a_text_that_names_no_schedule(text: str, end: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_freeze(text)
    assert str(error.value) == (
        "must be one of none, head, last:L, gradual:start=S,every=E, gradual:start=S,every=E,stop=T, head_then_all:epochs=N, "
        f"batch_norm_only or a regular expression for the names of what trains{end}"
    )


@pytest.fixture
def vit(checkpoint_of) -> torch.nn.Module:
    return load_classifier(str(checkpoint_of("vit")), LABELS)[0]  # stem, three blocks, head


def counts(schedule: FreezeSchedule, model: torch.nn.Module, epochs: int) -> list[int]:
    """How many layer groups beside the head train in each epoch."""
    groups = [set(group.parameters) for group in layer_groups(model)]
    found = []
    for epoch in range(epochs):
        trained = schedule.trainable(model, epoch)
        whole = [group <= trained for group in groups]
        assert set().union(*(group for group, trains in zip(groups, whole, strict=True) if trains)) == trained
        assert sorted(whole) == whole  # what trains is the end of the network
        found.append(sum(whole) - 1)
    return found


def test_what_trains_when(vit: torch.nn.Module) -> None:
    assert counts(FreezeSchedule.none(), vit, 2) == [4, 4]
    assert counts(FreezeSchedule.head(), vit, 2) == [0, 0]
    assert counts(FreezeSchedule.last(2), vit, 2) == [2, 2]
    assert counts(FreezeSchedule.gradual(1, 2), vit, 9) == [1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert counts(FreezeSchedule.gradual(0, 1, 2), vit, 4) == [0, 1, 2, 2]
    assert counts(FreezeSchedule.gradual(1, 0), vit, 2) == [4, 4]
    assert counts(FreezeSchedule.head_then_all(2), vit, 4) == [0, 0, 4, 4]
    assert FreezeSchedule.matching(r"layers\.1\.").trainable(vit, 0) == head_parameter_names(vit) | {
        name for name, _ in vit.named_parameters() if "layers.1." in name
    }


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (FreezeSchedule.last(5), "--freeze asks for 5 layer groups beside the head, more than ViTForImageClassification has, which is 4."),
        (
            FreezeSchedule.gradual(1, 1, 6),
            "--freeze asks for 6 layer groups beside the head, more than ViTForImageClassification has, which is 4.",
        ),
        (FreezeSchedule.batch_norm_only(), "--freeze batch_norm_only does not apply to ViTForImageClassification, which has no BatchNorm."),
        (
            FreezeSchedule.matching("layer4"),
            "--freeze 'layer4' matches no parameter; the names are such as classifier.bias, classifier.weight, vit.embeddings.cls_token.",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_the_network(schedule: FreezeSchedule, message: str, vit: torch.nn.Module) -> None:
    with pytest.raises(ModelError) as error:
        schedule.trainable(vit, 0)
    assert str(error.value) == message


def named(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer under its name in the module tree, which for a timm net is not that of its state."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


class Weights(TrainerCallback):
    """Keeps a copy of the weights at the end of every epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.seen.append(named(model))

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(named(model))


@pytest.mark.parametrize("kind", ["vit", "timm_resnet", "dinov2"])
def test_in_each_epoch_moves_what_the_schedule_names_and_nothing_else(kind: str, make_trainer) -> None:
    weights = Weights()
    trainer = make_trainer(kind, schedule=GRADUAL, num_train_epochs=4, weight_decay=0.1, callbacks=[weights])
    trainer.train()
    parameters = {name for name, _ in trainer.model.named_parameters()}
    unused = {name for name in parameters if name.endswith("mask_token")}
    for epoch, (before, after) in enumerate(zip(weights.seen, weights.seen[1:], strict=False)):
        trained = GRADUAL.trainable(trainer.model, epoch) - unused
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved & parameters == trained
        # buffers: the statistics of BatchNorm move with its weights
        owners = {name.rpartition(".")[0] for name in trained}
        assert all(name.rpartition(".")[0] in owners for name in moved - parameters)


def train(make_trainer, kind: str = "timm_resnet", checkpoint: str | None = None, **settings: Any) -> dict[str, torch.Tensor]:
    trainer = make_trainer(kind, **settings)
    trainer.train(resume_from_checkpoint=checkpoint)
    return weights_of(trainer.model)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["vit", "timm_resnet"])
def test_all_layers_at_once_is_full_fine_tuning(kind: str, make_trainer) -> None:
    plain = train(make_trainer, kind)
    groups = len(layer_groups(make_trainer(kind).model)) - 1
    for schedule in (FreezeSchedule.none(), FreezeSchedule.last(groups), FreezeSchedule.gradual(0, 0), FreezeSchedule.head_then_all(0)):
        assert_equal(plain, train(make_trainer, kind, schedule=schedule))


@pytest.mark.parametrize("step", [4, 5, 6, 10])
def test_resumed_before_at_and_after_a_boundary_is_the_uninterrupted_run(step: int, make_trainer) -> None:
    settings = {
        "schedule": FreezeSchedule.gradual(1, 1),
        "num_train_epochs": 3,
        "weight_decay": 0.1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    whole = make_trainer("timm_resnet", **settings, save_total_limit=None)
    whole.train()
    checkpoint = str(Path(whole.args.output_dir) / f"checkpoint-{step}")
    assert_equal(weights_of(whole.model), train(make_trainer, checkpoint=checkpoint, **settings, save_total_limit=None))


@pytest.mark.parametrize("kind", ["vit", "timm_resnet"])
def test_with_and_without_the_feature_cache(kind: str, make_trainer) -> None:
    settings = {"schedule": FreezeSchedule.gradual(0, 1, 2), "num_train_epochs": 4, "eval_strategy": "epoch"}
    one, other = (train(make_trainer, kind, feature_cache_gb=limit, **settings) for limit in (1.0, 0.0))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


def test_accumulated_gradients_cross_a_boundary(make_trainer) -> None:
    settings = {"schedule": GRADUAL, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "num_train_epochs": 3}
    one = train(make_trainer, "vit", per_device_train_batch_size=32, **settings)
    other = train(make_trainer, "vit", per_device_train_batch_size=8, gradient_accumulation_steps=4, **settings)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


def test_batch_norm_only_moves_batch_norm_and_the_head(make_trainer) -> None:
    trainer = make_trainer("timm_resnet", schedule=FreezeSchedule.batch_norm_only())
    before, trained = named(trainer.model), FreezeSchedule.batch_norm_only().trainable(trainer.model, 0)
    trainer.train()
    after = named(trainer.model)
    owners = {name.rpartition(".")[0] for name in trained - head_parameter_names(trainer.model)}
    statistics = {f"{owner}.{buffer}" for owner in owners for buffer in ("running_mean", "running_var", "num_batches_tracked")}
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained | statistics


def test_steps_may_take_more_epochs_than_the_setting_says(make_trainer) -> None:
    steps = train(make_trainer, schedule=GRADUAL, num_train_epochs=1, max_steps=15)
    epochs = train(make_trainer, schedule=GRADUAL, num_train_epochs=3)
    assert_equal(steps, epochs)


def test_a_trainer_evaluates_before_it_trains(make_trainer) -> None:
    assert 0 <= make_trainer("vit", schedule=GRADUAL).evaluate()["eval_accuracy"] <= 1
