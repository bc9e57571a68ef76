"""Averaged weights, warm-up by layer, optimizers, early stopping, dropout and BatchNorm policies in training; all of it exact on resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_finetune.data.mixing import BatchMixing
from hf_finetune.errors import ConfigError, ModelError
from hf_finetune.models.batchnorm import BatchNormMode, BatchNormPolicy, batchnorm_modules, recalibrate
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freezing import FreezeSchedule
from hf_finetune.training.lr_finder import propose, range_test, smooth
from hf_finetune.training.preview import first_batch
from hf_finetune.training.trainer import Collate
from tests.coloured import NAMES, weights_of


class Steps(TrainerCallback):
    """Keeps the weights after every optimizer step, and the rates of the groups in it."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.rates: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights_of(model))

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights_of(model))


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_final_model_is_the_average_by_hand(make_trainer) -> None:
    steps = Steps()
    trainer = make_trainer("timm_resnet", ema_decay=0.6, callbacks=[steps])
    trainer.train()
    average = copy.deepcopy(steps.weights[0])
    for step, weights in enumerate(steps.weights[1:]):
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in weights.items():
            average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
    final = weights_of(trainer.model)
    for name in final:
        torch.testing.assert_close(final[name], average[name], rtol=1e-5, atol=1e-6)
    assert not any(torch.equal(final[name], steps.weights[-1][name]) for name in final if name.endswith("fc.weight"))


def test_evaluations_see_the_average_and_training_does_not(make_trainer) -> None:
    plain, averaged = Steps(), Steps()
    make_trainer("vit", callbacks=[plain]).train()
    seen = []
    trainer = make_trainer("vit", ema_decay=0.9, eval_strategy="epoch", callbacks=[averaged])
    trainer.model.register_forward_pre_hook(
        lambda model, _: None if model.training else seen.append(model.classifier.weight.detach().clone())
    )
    trainer.train()
    assert_equal(plain.weights[-1], averaged.weights[-1])
    assert seen
    assert not any(torch.equal(weight, weights["classifier.weight"]) for weight in seen for weights in averaged.weights[1:])


def test_the_best_checkpoint_brings_its_average(make_trainer) -> None:
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": None}
    trainer = make_trainer("vit", ema_decay=0.9, num_train_epochs=3, metric_for_best_model="loss", **settings)
    seen: dict[int, torch.Tensor] = {}
    trainer.model.register_forward_pre_hook(
        lambda model, _: None if model.training else seen.update({trainer.state.global_step: model.classifier.weight.detach().clone()})
    )
    trainer.train()
    assert torch.equal(trainer.model.classifier.weight, seen[trainer.state.best_global_step])


def test_a_checkpoint_without_an_average_is_refused(make_trainer) -> None:
    trainer = make_trainer("vit", save_strategy="epoch")
    trainer.train()
    checkpoint = str(Path(trainer.args.output_dir) / "checkpoint-5")
    with pytest.raises(ModelError) as error:
        make_trainer("vit", save_strategy="epoch", ema_decay=0.9).train(resume_from_checkpoint=checkpoint)
    assert str(error.value) == (
        f"{checkpoint} holds no average of the weights (weight_average.safetensors): it was made without --ema_decay; leave that out."
    )


EVERYTHING: dict[str, Any] = {
    "schedule": FreezeSchedule.gradual(0, 1, granularity="stage"),
    "layer_groups": "stage",
    "batch_norm": BatchNormPolicy(BatchNormMode.FROZEN),
    "mixing": BatchMixing(len(NAMES), 0.4, 1.0),
    "augmentation": "medium",
    "layer_lr_decay": 0.7,
    "unfreeze_warmup": 3,
    "ema_decay": 0.9,
    "weight_decay": 0.1,
    "num_train_epochs": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
}


def test_resumed_anywhere_with_everything_on_is_the_uninterrupted_run(make_trainer) -> None:
    whole = make_trainer("timm_resnet", **EVERYTHING)
    whole.train()
    for step in (1, 5, 8, 10, 17, 19):
        resumed = make_trainer("timm_resnet", **EVERYTHING)
        resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / f"checkpoint-{step}"))
        assert_equal(weights_of(whole.model), weights_of(resumed.model))


@pytest.mark.parametrize("optim", ["nag", "adam"])
def test_resumed_with_our_optimizers(optim: str, make_trainer) -> None:
    settings = {
        "optim": optim,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
    }
    whole = make_trainer("timm_resnet", **settings)
    whole.train()
    resumed = make_trainer("timm_resnet", **settings)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-6"))
    assert_equal(weights_of(whole.model), weights_of(resumed.model))


def test_a_group_warms_up_when_it_is_unfrozen(make_trainer) -> None:
    steps = Steps()
    settings = {"lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": 1e-2, "callbacks": [steps]}
    trainer = make_trainer("vit", schedule=FreezeSchedule.gradual(1, 1, 2), num_train_epochs=3, unfreeze_warmup=4, **settings)
    trainer.train()
    head = [rates["head"] for rates in steps.rates]
    later = [rates["backbone from epoch 1"] for rates in steps.rates]
    assert head == [1e-2] * 15
    assert later == pytest.approx([0] * 5 + [0.25e-2, 0.5e-2, 0.75e-2] + [1e-2] * 7)


def test_a_warm_up_needs_a_course_of_steps(make_trainer) -> None:
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "unfreeze_warmup": 4}
    with pytest.raises(ConfigError) as error:
        make_trainer("vit", schedule=FreezeSchedule.gradual(1, 1), **settings).train()
    assert str(error.value) == (
        "--unfreeze_warmup needs a learning rate that depends on the step alone; use --lr_scheduler_type cosine or linear."
    )


@pytest.mark.parametrize(
    ("settings", "kind", "options"),
    [
        ({"optim": "nag"}, torch.optim.SGD, {"nesterov": True, "momentum": 0.9}),
        ({"optim": "nag", "optim_args": "momentum=0.5"}, torch.optim.SGD, {"nesterov": True, "momentum": 0.5}),
        ({"optim": "adam", "adam_beta2": 0.99}, torch.optim.Adam, {"betas": (0.9, 0.99)}),
        ({"optim": "adamw_torch"}, torch.optim.AdamW, {"betas": (0.9, 0.999)}),
    ],
)
def test_optimizers(settings: dict[str, Any], kind: type, options: dict[str, Any], make_trainer) -> None:
    optimizer = make_trainer("vit", **settings).create_optimizer()
    assert type(optimizer) is kind
    assert {key: optimizer.defaults[key] for key in options} == options


def test_training_stops_early_and_ends_with_the_best(make_trainer) -> None:
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": None}
    for checkpoint in (None, "checkpoint-10"):
        trainer = make_trainer("vit", num_train_epochs=9, learning_rate=1e-12, callbacks=[EarlyStoppingCallback(2)], **settings)
        trainer.train(resume_from_checkpoint=checkpoint and str(Path(trainer.args.output_dir) / checkpoint))
        assert trainer.state.epoch == 3
        assert trainer.state.best_global_step == 5


def test_a_training_that_had_stopped_early_does_not_go_on(make_trainer) -> None:
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": None}
    settings |= {"num_train_epochs": 9, "learning_rate": 1e-12, "schedule": FreezeSchedule.gradual(0, 2)}
    found = []
    for checkpoint in (None, "checkpoint-15"):
        trainer = make_trainer("vit", callbacks=[EarlyStoppingCallback(2)], **settings)
        trainer.train(resume_from_checkpoint=checkpoint and str(Path(trainer.args.output_dir) / checkpoint))
        assert (trainer.state.epoch, trainer.state.global_step, trainer.state.best_global_step) == (3, 15, 5)
        found.append(weights_of(trainer.model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    trainer.train()  # anew
    assert trainer.state.global_step == 15


@pytest.mark.parametrize(
    ("kind", "settings", "where"),
    [
        ("vit", {"dropout": 0.3}, lambda model: model.config.hidden_dropout_prob),
        ("swin", {"drop_path": 0.3}, lambda model: model.config.drop_path_rate),
        ("timm_vit", {"drop_path": 0.3}, lambda model: model.timm_model.blocks[-1].drop_path1.drop_prob),
        ("timm_efficientnet", {"dropout": 0.3}, lambda model: model.timm_model.drop_rate),
    ],
)
def test_dropout_and_stochastic_depth_reach_the_network(kind: str, settings: dict[str, float], where, checkpoint_of) -> None:
    model, _ = load_classifier(str(checkpoint_of(kind)), NAMES, **settings)
    assert where(model) == pytest.approx(0.3)


def test_a_network_without_dropout_says_so(checkpoint_of) -> None:
    name = str(checkpoint_of("resnet"))
    with pytest.raises(ModelError) as error:
        load_classifier(name, NAMES, drop_path=0.1)
    assert str(error.value) == (
        f"--drop_path 0.1 does not apply to {name!r}: a resnet has none of drop_path_rate, drop_connect_rate, stochastic_depth_prob."
    )


@pytest.mark.parametrize("mode", BatchNormMode)
def test_policies_in_training(mode: BatchNormMode, make_trainer) -> None:
    trainer = make_trainer("timm_resnet", schedule=FreezeSchedule.head(), batch_norm=BatchNormPolicy(mode), feature_cache_gb=1.0)
    before = weights_of(trainer.model)
    trainer.train()
    after = weights_of(trainer.model)
    norms = set(batchnorm_modules(trainer.model))
    moved = {name.rpartition(".")[2] for name in before if name.rpartition(".")[0] in norms and not torch.equal(before[name], after[name])}
    affine, statistics = {"weight", "bias"}, {"running_mean", "running_var", "num_batches_tracked"}
    moves = statistics | affine if mode is BatchNormMode.TRAIN else set()
    moves |= affine if mode is BatchNormMode.AFFINE_ONLY else set()
    if mode is BatchNormMode.RECALIBRATE:
        moved.discard("num_batches_tracked")  # begins anew, and may end where it was
        statistics = statistics - {"num_batches_tracked"}
    moves |= statistics if mode in (BatchNormMode.STATISTICS_ONLY, BatchNormMode.RECALIBRATE) else set()
    assert moved == moves
    # what follows no batch can be computed once
    assert (trainer.features is not None) == (mode in (BatchNormMode.FROZEN, BatchNormMode.RECALIBRATE))


@pytest.mark.parametrize("schedule", [FreezeSchedule.head(), FreezeSchedule.none()])
def test_recalibrated_statistics_are_those_of_the_training_photos(schedule: FreezeSchedule, make_trainer) -> None:
    trainer = make_trainer("timm_resnet", schedule=schedule, batch_norm=BatchNormPolicy(BatchNormMode.RECALIBRATE))
    expected = copy.deepcopy(trainer.model)
    for norm in batchnorm_modules(expected).values():
        norm._forward_pre_hooks.clear()
    views = trainer.inputs.photos["train"].with_transform(trainer.inputs.evaluation)
    recalibrate(expected, batchnorm_modules(expected).values(), [torch.stack([views[row]["pixel_values"] for row in range(40)])])
    trainer.train()
    for norm, wanted in zip(batchnorm_modules(trainer.model).values(), batchnorm_modules(expected).values(), strict=True):
        torch.testing.assert_close(norm.running_mean, wanted.running_mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.running_var, wanted.running_var, rtol=1e-4, atol=1e-4)
        assert not torch.equal(norm.running_var, torch.ones_like(norm.running_var))


def test_recalibration_is_not_repeated_on_resume(make_trainer) -> None:
    settings = {"schedule": FreezeSchedule.head(), "batch_norm": BatchNormPolicy(BatchNormMode.RECALIBRATE), "save_strategy": "epoch"}
    whole = make_trainer("timm_resnet", **settings)
    whole.train()
    resumed = make_trainer("timm_resnet", **settings)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-5"))
    assert_equal(weights_of(whole.model), weights_of(resumed.model))


def test_batchnorm_that_trains_is_that_of_the_stock_trainer(make_trainer) -> None:
    ours = make_trainer("timm_resnet", batch_norm=BatchNormPolicy(BatchNormMode.TRAIN), schedule=FreezeSchedule.none(), weight_decay=0.0)
    theirs = make_trainer("timm_resnet", weight_decay=0.0)
    stock = Trainer(theirs.model, theirs.args, Collate(), theirs.train_dataset, theirs.eval_dataset)
    ours.train()
    stock.train()
    one, other = weights_of(ours.model), weights_of(stock.model)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)


def test_no_decay_of_the_rate_is_no_difference(make_trainer) -> None:
    plain, decayed = make_trainer("timm_resnet"), make_trainer("timm_resnet", layer_lr_decay=1.0, layer_groups="stage")
    plain.train()
    decayed.train()
    assert_equal(weights_of(plain.model), weights_of(decayed.model))


def test_the_range_test_proposes_a_rate_that_learns(make_trainer, tmp_path: Path) -> None:
    arguments = make_trainer("timm_resnet").args

    def make(args: Any) -> Any:
        return make_trainer(
            "timm_resnet", max_steps=args.max_steps, logging_steps=1, logging_first_step=True, learning_rate=args.learning_rate
        )

    test = range_test(make, arguments, steps=60)
    assert len(test.rates) == len(test.losses) == len(test.smoothed)
    assert test.rates[0] == pytest.approx(1e-6)
    assert list(test.rates) == sorted(test.rates)
    assert test.proposal is not None
    assert 1e-5 < test.proposal < 0.1


def test_a_loss_that_never_falls_proposes_nothing() -> None:
    assert propose((1e-3, 1e-2, 1e-1), [1.0, 1.0, 2.0]) is None
    assert propose((1e-3, 1e-2, 1e-1), [2.0, 1.0, 3.0]) == pytest.approx(1e-3)
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])


def test_the_batch_that_is_shown_is_what_the_model_sees(make_trainer) -> None:
    plain = first_batch(make_trainer("vit"), 5)
    assert [caption for _, caption in plain] == ["red", "white", "white", "white", "white"]  # rows 0, 9, 19, 29 and 39
    assert all(pixels.dtype.name == "uint8" and pixels.shape[-1] == 3 for pixels, _ in plain)
    mixed = first_batch(make_trainer("vit", mixing=BatchMixing(len(NAMES), 0.4), augmentation="light"), 5)
    shares = [[float(line.split()[0]) for line in caption.splitlines()] for _, caption in mixed]
    assert all(sum(found) == pytest.approx(1, abs=0.011) for found in shares)
    assert any(len(found) == 2 for found in shares)
