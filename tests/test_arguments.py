"""Settings: their defaults, where they come from, which source wins, and the help."""

import argparse
import os
import re

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

import hf_finetune.argument_parsing.checks as checks
from hf_finetune.argument_parsing.fields import field_specs
from hf_finetune.arguments import (
    PRESETS,
    Arguments,
    DataArguments,
    FinetuneArguments,
    ModelArguments,
    make_arguments,
    parse_arguments,
)
from hf_finetune.errors import ConfigError


def problems(argv, **settings) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(argv, **settings)
    return caught.value.problems


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)


class TestDefaults:
    def test_are_those_of_the_contract(self):
        arguments = parse_arguments([])
        assert isinstance(arguments, Arguments)
        assert vars(arguments.data) == {
            "dataset": "oxford_pets",
            "label_column": "label",
            "image_column": "image",
            "validation_fraction": 0.2,
            "test_fraction": 0.2,
            "max_train_samples": None,
            "max_eval_samples": None,
            "skip_bad_images": False,
            "augmentation": "light",
            "random_erasing": 0.0,
            "mixup_alpha": 0.0,
            "cutmix_alpha": 0.0,
            "augmentation_views": None,
        }
        assert vars(arguments.model) == {
            "model": "google/vit-base-patch16-224-in21k",
            "model_revision": None,
            "image_size": None,
            "crop_pct": None,
            "adapter": "none",
            "lora_rank": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.0,
            "lora_targets": "attention",
            "lora_layers": "all",
            "lora_dora": False,
            "lora_rslora": False,
            "dropout": None,
            "drop_path": None,
            "freeze": "none",
            "batch_norm": None,
            "batch_norm_scope": "all",
        }
        training = arguments.training
        assert training.output_dir == "runs/vit_lora"
        assert (training.num_train_epochs, training.learning_rate, training.weight_decay, training.seed) == (5.0, 1e-3, 0.01, 42)
        assert (training.per_device_train_batch_size, training.per_device_eval_batch_size, training.save_total_limit) == (32, 64, 2)
        assert (training.lr_scheduler_type, training.eval_strategy, training.save_strategy) == ("cosine", "epoch", "epoch")
        assert (training.metric_for_best_model, training.greater_is_better, training.load_best_model_at_end) == ("accuracy", True, True)
        assert (training.warmup_steps, training.get_warmup_steps(100)) == (0.1, 10)
        assert (training.report_to, training.remove_unused_columns, training.head_lr) == ([], False, None)

    def test_output_folder_is_named_after_the_recipe(self):
        assert parse_arguments([], recipe="head_only").training.output_dir == "runs/head_only"

    def test_the_dataclasses_work_alone(self, tmp_path):
        assert FinetuneArguments(output_dir=str(tmp_path)).num_train_epochs == 5.0
        assert isinstance(FinetuneArguments(), TrainingArguments)
        assert DataArguments(dataset="digits").augmentation == "light"
        assert ModelArguments(model="tiny_vit").lora_rank == 8

    def test_a_machine_without_accelerator_trains_on_the_cpu(self, no_accelerator):
        training = FinetuneArguments()
        assert training.use_cpu
        assert training.device.type == "cpu"

    def test_launching_on_the_cpu_is_honoured(self, monkeypatch):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
        assert checks.device_kind() == "cuda"
        monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
        assert checks.device_kind() == "cpu"

    def test_lowest_calibration_error_is_best(self):
        assert FinetuneArguments(metric_for_best_model="ece").greater_is_better is False
        assert FinetuneArguments(metric_for_best_model="eval_loss").greater_is_better is False


class TestOrder:
    def test_later_sources_win(self, tmp_path):
        path = tmp_path / "my.yaml"
        path.write_text("lora_rank: 3\nlora_alpha: 5\n")
        defaults = {"adapter": "lora", "lora_rank": 1, "lora_alpha": 1, "lora_layers": "last:2", "seed": 7}
        argv = ["--lora_rank", "2", "--preset", "demo", "--config", str(path)]
        model = parse_arguments(argv, defaults=defaults).model
        assert (model.lora_rank, model.lora_alpha) == (2, 5)
        assert model.lora_targets == PRESETS["demo"]["lora_targets"]
        assert model.lora_layers == "last:2"

    def test_demo_needs_no_network(self):
        arguments = parse_arguments(["--preset", "demo"])
        assert (arguments.data.dataset, arguments.model.model, arguments.model.adapter) == ("drawn_pets", "tiny_vit", "lora")
        assert arguments.training.output_dir == "runs/demo"

    @pytest.mark.parametrize(
        ("argv", "name", "value"),
        [
            (["--num_train_epochs=2"], "num_train_epochs", 2.0),
            (["--num-train-epochs", "2"], "num_train_epochs", 2.0),
            (["--fp16", "false"], "fp16", False),
            (["--torch_empty_cache_steps", "3"], "torch_empty_cache_steps", 3),
            (["--save_total_limit", "none"], "save_total_limit", None),
            (["--eval_on_start"], "eval_on_start", True),
            (["--eval_on_start", "yes"], "eval_on_start", True),
            (["--no_dataloader_pin_memory"], "dataloader_pin_memory", False),
            (["--no-load-best-model-at-end"], "load_best_model_at_end", False),
            (["--include_for_metrics", "inputs", "loss"], "include_for_metrics", ["inputs", "loss"]),
            (["--lr_scheduler_kwargs", '{"num_cycles": 2}'], "lr_scheduler_kwargs", {"num_cycles": 2}),
            (["--activation_checkpointing"], "activation_checkpointing", True),
            (["--debug", "underflow_overflow"], "debug", ["underflow_overflow"]),
            (["--warmup_steps", "20"], "warmup_steps", 20.0),
            (["--run_name", "--config", "--seed", "1"], None, None),
        ],
    )
    def test_flags(self, argv, name, value):
        if name is None:
            assert problems(argv) == ["--run_name needs a value.", "--config needs a value."]
        else:
            assert getattr(parse_arguments(argv).training, name) == value

    def test_accelerator_settings_reach_accelerate(self):
        training = parse_arguments(["--accelerator_config", '{"even_batches": false}']).training
        assert training.accelerator_config.even_batches is False

    def test_yaml_keeps_plain_words_and_reads_exponents(self, tmp_path):
        path = tmp_path / "my.yaml"
        path.write_text("learning_rate: 1e-3\neval_strategy: no\nsave_strategy: no\nload_best_model_at_end: false\nseed: 010\n")
        training = parse_arguments(["--config", str(path)]).training
        assert (training.learning_rate, training.eval_strategy, training.save_strategy, training.seed) == (1e-3, "no", "no", 10)

    def test_what_overrules_a_file_is_no_contradiction(self, tmp_path):
        path = tmp_path / "my.yaml"
        path.write_text("adapter: lora\nlora_rank: 4\nnum_train_epochs: 3\n")
        arguments = parse_arguments(["--config", str(path), "--adapter", "none", "--max_steps", "2"])
        assert (arguments.model.adapter, arguments.training.max_steps) == ("none", 2)


class TestMakeArguments:
    def test_takes_python_values(self, tmp_path):
        arguments = make_arguments(dataset=tmp_path, lora_rank=np.int64(4), adapter="lora", learning_rate=1, output_dir="runs/x")
        assert (arguments.data.dataset, arguments.model.lora_rank, arguments.training.learning_rate) == (str(tmp_path), 4, 1.0)
        assert type(arguments.model.lora_rank) is int
        assert arguments.training.output_dir == "runs/x"

    def test_checks_like_the_command_line(self):
        with pytest.raises(ConfigError) as caught:
            make_arguments(lora_rnak=8, seed="1", lora_rank=4, freeze="haed", evaluation_strategy="no", max_steps=True)
        assert caught.value.problems == [
            "Unknown setting lora_rnak. Did you mean 'lora_rank'?",
            "seed must be an integer, not '1'. Remove the quotes.",
            "freeze must be one of none, head, last:L, gradual:start=S,every=E, gradual:start=S,every=E,stop=T, head_then_all:epochs=N, "
            "batch_norm_only or a regular expression for the names of what trains, not 'haed'. Did you mean 'head'?",
            "Unknown setting evaluation_strategy: today it is eval_strategy.",
            "max_steps must be an integer, not true.",
            "lora_rank=4 has no effect with adapter='none' (the default): add adapter='lora' or leave it out.",
        ]

    def test_each_call_has_its_own_lists(self):
        make_arguments().training.include_for_metrics.append("x")
        assert make_arguments().training.include_for_metrics == []

    def test_dataclasses_check_themselves(self):
        with pytest.raises(ConfigError) as caught:
            ModelArguments(lora_rank=0, adapter="lroa", lora_dropout="much")
        assert caught.value.problems == [
            "adapter must be one of none, lora, not 'lroa'. Did you mean 'lora'?",
            "lora_rank must be at least 1, not 0.",
            "lora_dropout must be a number, not 'much'.",
        ]
        with pytest.raises(ConfigError, match=re.escape("validation_fraction must be above 0 and below 1, not 1.")):
            DataArguments(validation_fraction=1.0)
        with pytest.raises(ConfigError, match=re.escape("head_lr must be above 0, not -1.")):
            FinetuneArguments(head_lr=-1.0)


class TestHelp:
    @pytest.fixture
    def text(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as left:
            parse_arguments(
                ["--seed", "x", "--help"], recipe="mine", defaults={"adapter": "lora"}, description="What it is.\n\n  an example"
            )
        assert left.value.code == 0
        return capsys.readouterr().out

    def test_is_grouped(self, text):
        titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
        assert titles == [
            "Where settings come from (the later wins: defaults, --preset, --config, flags)",
            "Data",
            "Model",
            "Fine-tuning",
            "Everything else of transformers.TrainingArguments",
            "example",
        ]
        assert text.startswith("usage: accelerate launch recipes/mine.py")
        assert "What it is.\n\n  an example" in text

    def test_has_every_setting_once(self, text):
        flags = re.findall(r"^  --(\w+)", text, re.MULTILINE)
        expected = set(field_specs(DataArguments, ModelArguments, FinetuneArguments)) - set(checks.FIXED_FIELDS)
        assert expected <= set(flags)
        # the negative form of a switch that is on by default stands beside it
        assert {flag.removeprefix("no_") for flag in flags} == expected | {"config", "preset"}
        assert len(flags) == len(set(flags))

    def test_shows_defaults_and_choices(self, text):
        flat = " ".join(text.split())
        assert "--adapter {none,lora} lora trains low-rank updates and the head, and leaves the rest as it is. (default: lora)" in flat
        assert "(default: runs/mine)" in flat
        assert "One of linear, cosine," in flat

    def test_every_setting_is_explained(self):
        for cls in (DataArguments, ModelArguments, FinetuneArguments):
            for field in cls.__dataclass_fields__.values():
                assert not field.init or field.metadata.get("help"), field.name

    def test_errors_never_print_a_usage(self, capsys, monkeypatch):
        monkeypatch.setattr(argparse.ArgumentParser, "error", lambda *_: pytest.fail("argparse spoke"))
        problems(["--seed", "x", "--sed", "1"])
        captured = capsys.readouterr()
        assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("device", "cores", "processes", "expected"), [("cpu", 16, 1, 0), ("cuda", 16, 1, 8), ("cuda", 16, 4, 3), ("cuda", 1, 1, 0)]
)
def test_a_gpu_gets_loader_processes_from_the_cores_there_are(device, cores, processes, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert checks.loader_processes(device) == expected
