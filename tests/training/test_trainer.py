"""The trainer: accumulation, selection, checkpoints and augmentation are exact; what must not move does not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_finetune.data.mixing import BatchMixing
from hf_finetune.errors import ModelError
from hf_finetune.models.freezing import FreezeSchedule, head_parameter_names
from hf_finetune.models.lora import add_lora
from hf_finetune.training.trainer import FinetuneTrainer
from tests.coloured import assert_only_changed, weights_of
from tests.training.helpers import assert_close, head_only, trained

MakeTrainer = Callable[..., FinetuneTrainer]


def without_drop_path(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model


# beit, swinv2 and the custom loss on vit get gradients times the number of micro-batches from the stock Trainer
@pytest.mark.parametrize("kind", ["vit", "beit", "swinv2", "dinov2", "timm_vit"])
def test_batch_8_times_4_equals_32_times_1(kind: str, make_trainer: MakeTrainer):
    # plain SGD, since Adam's normalisation would hide a factor; 40 photos make the second step a short one
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "adapt": without_drop_path}
    whole = trained(make_trainer(kind, per_device_train_batch_size=32, **settings))
    parts = trained(make_trainer(kind, per_device_train_batch_size=8, gradient_accumulation_steps=4, **settings))
    assert_close(whole, parts, 1e-5)


def test_the_short_last_micro_batch_is_weighed_by_its_size(make_trainer: MakeTrainer):
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "num_train_epochs": 1}
    whole = trained(make_trainer("vit", per_device_train_batch_size=40, **settings))
    parts = trained(make_trainer("vit", per_device_train_batch_size=16, gradient_accumulation_steps=3, **settings))
    assert_close(whole, parts, 1e-5)


@pytest.mark.parametrize("kind", ["vit", "timm_resnet", "dinov2"])
def test_head_only_training_moves_the_head_and_nothing_else(kind: str, make_trainer: MakeTrainer):
    trainer = make_trainer(kind, adapt=head_only)
    head, before = head_parameter_names(trainer.model), weights_of(trainer.model)
    assert_only_changed(before, trained(trainer), lambda name: name in head)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "timm_vit"])
def test_lora_training_moves_adapters_and_head_and_nothing_else(kind: str, make_trainer: MakeTrainer):
    trainer = make_trainer(kind, adapt=lambda model: add_lora(model, rank=2))
    before = weights_of(trainer.model)
    assert_only_changed(before, trained(trainer), lambda name: "lora_" in name or "modules_to_save" in name)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin", "timm_resnet"])
def test_a_checkpoint_carries_the_names_in_memory_and_the_best_one_is_reloaded_whole(kind: str, make_trainer: MakeTrainer):
    kept: dict[str, dict[str, torch.Tensor]] = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            kept[f"checkpoint-{state.global_step}"] = weights_of(model)

    trainer = make_trainer(
        kind,
        callbacks=[Keep()],
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the worst epoch, which is not the last
        learning_rate=1e-3,
        num_train_epochs=3,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    on_disk = load_file(best / "model.safetensors")
    if kind != "timm_resnet":  # the timm wrapper translates its own names, in both directions
        assert on_disk.keys() == trainer.model.state_dict().keys()
    assert best.name != f"checkpoint-{trainer.state.global_step}"
    reloaded = weights_of(trainer.model)
    assert all(torch.equal(reloaded[name], kept[best.name][name]) for name in reloaded)


def test_the_augmentation_is_told_every_epoch(make_trainer: MakeTrainer):
    seen = []
    trainer = make_trainer("vit", augmentation="light", num_train_epochs=3)
    transform = trainer.inputs.transform
    original = transform.set_epoch
    transform.set_epoch = lambda epoch: (seen.append(epoch), original(epoch))[1]
    trainer.train()
    assert seen == [0, 1, 2]


def test_predictions_are_probabilities_in_the_order_of_the_rows(make_trainer: MakeTrainer, photos):
    trainer = make_trainer("vit", per_device_eval_batch_size=4)
    probabilities = trainer.predict_split(photos["test"])
    assert probabilities.shape == (15, 5)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    backwards = trainer.predict_split(photos["test"].select(range(14, -1, -1)))
    assert np.allclose(backwards[::-1], probabilities, atol=1e-6)


def test_evaluation_runs_under_inference_mode_in_the_precision_of_training(make_trainer: MakeTrainer, photos, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    trainer = make_trainer("vit", bf16=True)
    seen = []

    def see(module, args, output):
        seen.append((torch.is_inference_mode_enabled(), output.dtype))

    next(module for module in trainer.model.modules() if isinstance(module, torch.nn.Linear)).register_forward_hook(see)
    trainer.predict_split(photos["test"])
    assert set(seen) == {(True, torch.bfloat16)}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("kind", "adapt"), [("vit", add_lora), ("vit", None), ("dinov2", add_lora), ("timm_vit", None)])
def test_activation_checkpointing_gives_the_same_weights(kind: str, adapt: Callable | None, make_trainer: MakeTrainer):
    settings = {"adapt": adapt or (lambda model: model), "num_train_epochs": 1}
    assert_close(trained(make_trainer(kind, **settings)), trained(make_trainer(kind, activation_checkpointing=True, **settings)), 1e-5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "timm_resnet",
            "--activation_checkpointing computes every batch twice, and 15 BatchNorm layers would count it twice; add --batch_norm frozen, "
            "or leave it out.",
        ),
        ("convnext", "--activation_checkpointing does not apply to ConvNextForImageClassification; leave it out."),
    ],
)
def test_activation_checkpointing_that_cannot_be_exact_is_refused(kind: str, message: str, make_trainer: MakeTrainer):
    with pytest.raises(ModelError) as error:
        make_trainer(kind, activation_checkpointing=True)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "settings",
    [
        {"adapt": head_only, "feature_cache_gb": 0.0},
        {"adapt": head_only},
        {"kind": "vit", "adapt": add_lora, "micro_batch_size": 2},
        {"schedule": FreezeSchedule.gradual(0, 1), "unfreeze_warmup": 2, "lr_scheduler_type": "cosine"},
        {"ema_decay": 0.9},
        {"mixing": BatchMixing(5, 0.4), "augmentation": "light"},
    ],
    ids=["head", "cached head", "lora", "schedule", "average", "mixing"],
)
def test_a_batch_that_does_not_fit_gives_way_to_a_smaller_one(
    settings, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    settings = {"kind": "timm_resnet", "auto_find_batch_size": True, "per_device_train_batch_size": 5, **settings}
    trainer, whole = make_trainer(**settings), []
    step = type(trainer).training_step

    def too_large(self, model, inputs, *args):
        # from the second epoch on, where a schedule unfreezes
        if len(inputs["labels"]) > 4 and (self.state.global_step >= 8 or "schedule" not in settings):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        whole.append(len(inputs["labels"]))
        return step(self, model, inputs, *args)

    monkeypatch.setattr(type(trainer), "training_step", too_large)
    with caplog.at_level("WARNING", "hf_finetune"):
        found = trained(trainer)
    assert (trainer.state.global_step, trainer._train_batch_size) == (20, 4)
    assert whole[-20:] == [4] * 20
    assert caplog.messages[-1:] == ["A batch does not fit in memory. Training begins again, with 4 photos in a batch."]
    assert_close(trained(make_trainer(**{**settings, "per_device_train_batch_size": 4, "auto_find_batch_size": False})), found, 1e-6)
