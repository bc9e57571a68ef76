"""Precision and layout: chosen by the hardware, said in a line, and without an effect on what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hf_finetune.argument_parsing.sections as sections
from hf_finetune.arguments import FinetuneArguments, config_values, make_arguments
from hf_finetune.errors import ConfigError
from hf_finetune.models.classifier import load_classifier, save_classifier
from hf_finetune.training.inputs import Inputs
from hf_finetune.training.precision import computing_dtype, describe, is_convolutional, set_layout
from tests.builders import LABELS


@pytest.fixture
def cpu_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which instructions for bfloat16 the CPU has."""

    def say(avx512: bool = False, amx: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    return say


@pytest.fixture
def native(cpu_with: Callable[..., None]) -> None:
    """A CPU that is faster in bfloat16."""
    cpu_with(avx512=True, amx=True)


def test_bfloat16_where_the_hardware_has_it(native: None) -> None:
    arguments = FinetuneArguments("runs/x", use_cpu=True)
    assert computing_dtype(arguments) == torch.bfloat16
    line = "Computing in bfloat16, weights and optimizer state in float32; memory layout channels-last."
    assert describe(arguments, "channels_last") == line


def test_float32_where_it_has_not(cpu_with: Callable[..., None]) -> None:
    cpu_with()
    arguments = FinetuneArguments("runs/x", use_cpu=True)
    assert computing_dtype(arguments) == torch.float32
    line = "Computing in float32 (this CPU has neither AVX512-BF16 nor AMX); memory layout contiguous."
    assert describe(arguments, "contiguous") == line


def test_float32_where_bfloat16_can_be_slower_unless_it_is_asked_for(cpu_with: Callable[..., None]) -> None:
    cpu_with(avx512=True)
    line = (
        "Computing in float32 (this CPU has AVX512-BF16 but no AMX, without which bfloat16 can be slower; --bf16 uses it); memory layout "
        "contiguous."
    )
    assert describe(FinetuneArguments("runs/x", use_cpu=True), "contiguous") == line
    assert computing_dtype(FinetuneArguments("runs/x", use_cpu=True, bf16=True)) == torch.bfloat16


def test_float32_on_demand(native: None) -> None:
    arguments = FinetuneArguments("runs/x", use_cpu=True, precision="fp32")
    assert computing_dtype(arguments) == torch.float32
    assert describe(arguments, "contiguous") == "Computing in float32 (--precision fp32); memory layout contiguous."


def test_a_gpu_since_ampere_uses_bfloat16_and_tf32_unless_float32_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "device_kind", lambda use_cpu: "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    for name in ("is_torch_tf32_available", "is_torch_bf16_gpu_available"):
        monkeypatch.setattr(f"transformers.training_args.{name}", lambda: True)
    switched: list[bool] = []
    monkeypatch.setattr("transformers.training_args.enable_tf32", switched.append)
    for precision, fast in (("auto", True), ("fp32", False)):
        arguments = FinetuneArguments("runs/x", precision=precision)
        assert (arguments.bf16, arguments.tf32) == (fast, fast)
    assert switched == [True, False]


def test_the_key_of_cached_features_holds_how_a_gpu_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs.__new__(Inputs)
    inputs.args = SimpleNamespace(device=torch.device("cuda"), bf16=False, fp16=False)
    keys = []
    for setting in ("ieee", "tf32"):
        monkeypatch.setattr(torch.backends, "fp32_precision", setting)  # as TrainingArguments sets it
        keys.append(inputs._precision())
    assert keys == ["torch.float32 cuda ieee ieee", "torch.float32 cuda tf32 tf32"]


@pytest.mark.parametrize(
    ("settings", "expected"), [({}, "bf16"), ({"precision": "fp32"}, "no"), ({"bf16": True}, "bf16")], ids=["alone", "fp32", "both"]
)
def test_the_launcher_is_heard_where_no_setting_says_otherwise(
    settings: dict[str, Any], expected: str, cpu_with: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_with(avx512=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments = FinetuneArguments("runs/x", use_cpu=True, **settings)
    assert arguments.mixed_precision == expected
    assert computing_dtype(arguments) == (torch.float32 if expected == "no" else torch.bfloat16)


def test_a_launcher_that_asks_for_what_is_not_there(cpu_with: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with()
    for asked, line in {
        "bf16": "bf16 needs native bfloat16, which this machine lacks (its CPU has neither AVX512-BF16 nor AMX); leave it out for float32.",
        "fp8": "accelerate's mixed_precision must be one of no, bf16 and fp16, not 'fp8'; leave it out for float32.",
    }.items():
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        with pytest.raises(ConfigError) as error:
            FinetuneArguments("runs/x", use_cpu=True)
        assert str(error.value) == line


def test_float32_and_half_precision_exclude_each_other(native: None) -> None:
    with pytest.raises(ConfigError) as error:
        FinetuneArguments("runs/x", use_cpu=True, precision="fp32", bf16=True)
    assert str(error.value) == "precision fp32 and bf16 exclude each other; give one."


def test_the_choice_of_this_machine_is_not_written_into_the_config(native: None) -> None:
    values = config_values(make_arguments(use_cpu=True, output_dir="runs/x"))
    assert (values["precision"], values["bf16"]) == ("auto", False)


@pytest.mark.parametrize(("kind", "convolutional"), [("vit", False), ("swin", False), ("timm_resnet", True), ("convnext", True)])
def test_convolutional_networks_are_stored_channels_last_and_saved_as_ever(
    kind: str, convolutional: bool, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, processor = load_classifier(str(checkpoint_of(kind)), LABELS)
    pixels = torch.randn(2, 3, 32, 32)
    before, values = model(pixel_values=pixels).logits, {name: value.clone() for name, value in model.state_dict().items()}
    assert is_convolutional(model) == convolutional
    assert set_layout(model) == ("channels_last" if convolutional else "contiguous")
    torch.testing.assert_close(model(pixel_values=pixels).logits, before, rtol=1e-4, atol=1e-5)
    save_classifier(model, processor, tmp_path)
    again, _ = load_classifier(str(tmp_path), LABELS)
    for name, value in again.state_dict().items():
        assert torch.equal(value, values[name])


@pytest.mark.parametrize("kind", ["vit", "timm_resnet"])
def test_training_in_bfloat16_keeps_weights_and_checkpoint_in_float32(kind: str, make_trainer, native: None) -> None:
    trainer = make_trainer(kind, num_train_epochs=1, eval_strategy="epoch")
    assert trainer.args.bf16
    trainer.train()
    assert {tensor.dtype for tensor in trainer.model.state_dict().values()} <= {torch.float32, torch.int64}
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert {value.dtype for value in states} == {torch.float32}
