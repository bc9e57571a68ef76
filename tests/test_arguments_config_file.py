"""The file that a run writes and that starts it again, and the example files of the recipes."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from hf_finetune.argument_parsing.fields import field_specs
from hf_finetune.arguments import (
    DataArguments,
    FinetuneArguments,
    ModelArguments,
    config_values,
    parse_arguments,
    read_config,
    write_config,
)
from hf_finetune.errors import ConfigError

TOKEN = "hf_" + "aB3dE5gH7jK9mN1pQ3sT"


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)


class TestConfigFile:
    @pytest.mark.parametrize(
        "argv",
        [
            [],
            ["--preset", "demo"],
            ["--preset", "demo", "--max_steps", "3", "--max_train_samples", "10"],
            ["--adapter", "lora", "--lora_layers", "3", "--lora_targets", ".*(q|v)_proj", "--hub_token", TOKEN],
            ["--freeze", "head", "--label_column", "1e-3", "--model_revision", "no", "--image_column", "null"],
            ["--lr_scheduler_kwargs", '{"num_cycles": 2}', "--include_for_metrics", "inputs", "--debug", "underflow_overflow"],
            ["--accelerator_config", '{"even_batches": false}', "--activation_checkpointing", "--learning_rate", "3e-7"],
            ["--eval_strategy", "no", "--save_strategy", "no", "--no_load_best_model_at_end", "--save_total_limit", "none"],
            ["--push_to_hub", "--hub_model_id", "me/x", "--metric_for_best_model", "ece"],
        ],
    )
    def test_starts_the_same_run(self, argv, tmp_path):
        first = parse_arguments(argv)
        write_config(first, tmp_path / "config.yaml")
        second = parse_arguments(["--config", str(tmp_path / "config.yaml")])
        assert config_values(second) == config_values(first) == read_config(tmp_path / "config.yaml")
        first.training.hub_token = None
        if "--max_steps" in argv:  # the epochs are of no effect, and so not in the file
            first.training.num_train_epochs = second.training.num_train_epochs
        assert second == first

    def test_is_flat_complete_and_plain_yaml(self, tmp_path):
        write_config(parse_arguments(["--adapter", "lora"]), tmp_path / "config.yaml")
        loaded = yaml.safe_load((tmp_path / "config.yaml").read_text())
        specs = set(field_specs(DataArguments, ModelArguments, FinetuneArguments))
        assert specs - set(loaded) == {
            "batch_norm_scope",
            "hub_token",
            "local_rank",
            "parallelism_config",
            "gradient_checkpointing",
            "gradient_checkpointing_kwargs",
            "resume_from_checkpoint",
            "overwrite_output_dir",
            "remove_unused_columns",
            "dataloader_drop_last",
            "prediction_loss_only",
            "batch_eval_metrics",
            "hub_always_push",
            "bf16_full_eval",
            "fp16_full_eval",
            "do_train",
            "do_eval",
            "do_predict",
        }
        assert loaded["seed"] == 42
        assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]

    def test_leaves_out_what_has_no_effect(self):
        assert not [name for name in config_values(parse_arguments([])) if name.startswith("lora_")]
        assert "num_train_epochs" not in config_values(parse_arguments(["--max_steps", "3"]))

    def test_does_not_carry_this_machine_to_another(self, no_accelerator):
        values = config_values(parse_arguments([]))
        assert values["use_cpu"] is False
        assert values["dataloader_pin_memory"] is True
        assert config_values(parse_arguments(["--use_cpu"]))["use_cpu"] is True

    def test_reading_a_bad_file(self, tmp_path):
        (tmp_path / "config.yaml").write_text("sed: 1\n")
        with pytest.raises(ConfigError, match=re.escape("Unknown setting sed. Did you mean 'seed'?")):
            read_config(tmp_path / "config.yaml")

    @pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "recipes/configs").glob("*.yaml")), ids=lambda path: path.stem)
    def test_examples_are_valid_and_say_how_to_launch_them(self, path):
        recipe = re.search(r"recipes/(\w+)\.py --config", path.read_text()).group(1)
        arguments = parse_arguments(["--config", str(path)], recipe=recipe)
        assert arguments.training.output_dir == f"runs/{path.stem}"
        assert f"--config recipes/configs/{path.name}" in path.read_text().split("\ndataset:")[0]
