"""What is refused, and with which words: flags, files, contradictions, what the machine cannot do, and never a token."""

import pickle
import re
from pathlib import Path

import pytest
import torch

import hf_finetune.argument_parsing.checks as checks
from hf_finetune.arguments import (
    FinetuneArguments,
    config_values,
    parse_arguments,
    write_config,
)
from hf_finetune.errors import ConfigError

TOKEN = "hf_" + "aB3dE5gH7jK9mN1pQ3sT"


def problems(argv, **settings) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(argv, **settings)
    return caught.value.problems


def file_problems(tmp_path: Path, text: str, *argv: str) -> list[str]:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return [problem.replace(str(tmp_path) + "/", "") for problem in problems(["--config", str(path), *argv])]


@pytest.fixture
def no_bf16(monkeypatch):
    monkeypatch.setattr(checks, "device_kind", lambda use_cpu=False: "cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)


BAD_FLAGS = {
    "unknown": (["--lora_rnak", "8"], "Unknown flag --lora_rnak. Did you mean '--lora_rank'?"),
    "unknown, nothing near": (["--zzz", "8"], "Unknown flag --zzz. --help lists every one."),
    "abbreviated": (["--num_train_epoch", "8"], "Unknown flag --num_train_epoch. Did you mean '--num_train_epochs'?"),
    "stray word": (["8", "--seed", "1"], "Unexpected '8' before the first flag; settings are written --name value."),
    "no value": (["--lora_rank"], "--lora_rank needs a value."),
    "empty value": (["--model="], "--model needs a value."),
    "two values": (["--seed", "1", "2"], "--seed takes one value, not 2: '1', '2'."),
    "twice": (["--seed", "1", "--seed=2"], "--seed is given twice; give it once."),
    "on and off": (["--skip_bad_images", "--no_skip_bad_images"], "--skip_bad_images is given twice; give it once."),
    "off with a value": (
        ["--no_skip_bad_images", "true"],
        "--skip_bad_images as --no_skip_bad_images takes no value; write --skip_bad_images true, or --no_skip_bad_images alone.",
    ),
    "no_ of a number": (["--no_lora_rank"], "Unknown flag --no_lora_rank. Did you mean '--lora_rank'?"),
    "integer": (["--adapter", "lora", "--lora_rank", "eight"], "--lora_rank must be an integer, not 'eight'."),
    "integer of a fraction": (["--seed", "1.5"], "--seed must be an integer, not '1.5'."),
    "number": (["--learning_rate", "fast"], "--learning_rate must be a number, not 'fast'."),
    "optional integer": (["--max_train_samples", "few"], "--max_train_samples must be an integer or none, not 'few'."),
    "bool": (["--skip_bad_images", "maybe"], "--skip_bad_images must be true or false, not 'maybe'."),
    "choice": (["--adapter", "lroa"], "--adapter must be one of none, lora, not 'lroa'. Did you mean 'lora'?"),
    "enumeration": (
        ["--eval_strategy", "epochs"],
        "--eval_strategy must be one of no, steps, epoch, not 'epochs'. Did you mean 'epoch'?",
    ),
    "json": (
        ["--lr_scheduler_kwargs", "{1"],
        "--lr_scheduler_kwargs must be a JSON object such as '{\"key\": 1}', not '{1': "
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1).",
    ),
    "json list": (["--liger_kernel_config", "[1]"], "--liger_kernel_config must be a JSON object such as '{\"key\": 1}', not '[1]'."),
    "json or file": (
        ["--fsdp", "full_shard", "--fsdp_config", "no.json"],
        "--fsdp_config must be a JSON object or the path of a JSON file; there is no file 'no.json'.",
    ),
    "accelerator key": (
        ["--accelerator_config", '{"even_batch": true}'],
        "--accelerator_config has no setting 'even_batch'; it has split_batches, dispatch_batches, even_batches, use_seedable_sampler, "
        "non_blocking, gradient_accumulation_kwargs, use_configured_state. Did you mean 'even_batches'?",
    ),
    "object": (
        ["--parallelism_config", "{}"],
        "--parallelism_config cannot be given as text; pass the object to FinetuneArguments in Python.",
    ),
    "report_to": (
        ["--report_to", "tensorbord"],
        "--report_to must be one of none, all, azure_ml, comet_ml, mlflow, neptune, tensorboard, trackio, wandb, codecarbon, clearml, "
        "dagshub, flyte, dvclive, swanlab, kubeflow, not 'tensorbord'. Did you mean 'tensorboard'?",
    ),
    "metric": (
        ["--metric_for_best_model", "acuracy"],
        "--metric_for_best_model must be one of accuracy, top5_accuracy, macro_f1, balanced_accuracy, ece, loss, not 'acuracy'. "
        "Did you mean 'accuracy'?",
    ),
    "targets": (
        ["--adapter", "lora", "--lora_targets", "atention"],
        "--lora_targets must be one of attention, attention+mlp, all-linear or a regular expression, not 'atention'. "
        "Did you mean 'attention'?",
    ),
    "targets, bad expression": (
        ["--adapter", "lora", "--lora_targets", "(q_proj"],
        "--lora_targets must be one of attention, attention+mlp, all-linear or a regular expression, not '(q_proj': missing ), "
        "unterminated subpattern at position 0.",
    ),
    "layers": (
        ["--adapter", "lora", "--lora_layers", "first:2"],
        "--lora_layers must be all, last:N, or block numbers such as 6-11 or 0,2,4, not 'first:2'.",
    ),
    "layers, backwards": (
        ["--adapter", "lora", "--lora_layers", "9-6"],
        "--lora_layers must be all, last:N, or block numbers such as 6-11 or 0,2,4, not '9-6'.",
    ),
    "resume": (
        ["--resume_from_checkpoint", "nowhere"],
        "--resume_from_checkpoint must be last or a checkpoint folder; there is no folder 'nowhere'.",
    ),
    "preset": (["--preset", "dmo"], "--preset must be one of demo, not 'dmo'. Did you mean 'demo'?"),
    "config": (["--config", "no.yaml"], "--config no.yaml: there is no such file."),
    "do_train": (["--do_train"], "--do_train has no effect here: a run always trains; leave it out."),
    "columns kept": (
        ["--remove_unused_columns"],
        "--remove_unused_columns must stay false: the image column would be dropped before it becomes pixels; leave it out.",
    ),
    "last batch dropped": (
        ["--dataloader_drop_last"],
        "--dataloader_drop_last would leave photos out of every evaluation too; leave it out.",
    ),
    "loss alone": (
        ["--prediction_loss_only"],
        "--prediction_loss_only would leave nothing to select and score by; leave it out.",
    ),
    "label names": (
        ["--label_names", "breed"],
        "--label_names has no effect here: the class is the column that --label_column names; leave it out.",
    ),
    "push to a branch": (
        ["--hub_revision", "dev"],
        "--hub_revision has no effect here: a run is pushed to the main branch; leave it out.",
    ),
    "batches apart": (
        ["--eval_do_concat_batches", "false"],
        "--eval_do_concat_batches must stay true: the metrics are of a whole split; leave it out.",
    ),
    "half precision weights": (
        ["--bf16_full_eval"],
        "--bf16_full_eval would write the checkpoint in half precision; --bf16 evaluates in bfloat16 too, and keeps the weights.",
    ),
    "push at every save": (
        ["--hub_always_push"],
        "--hub_always_push has no effect here: a run is pushed once, at the end; leave it out.",
    ),
    "metrics by batch": (
        ["--batch_eval_metrics"],
        "--batch_eval_metrics cannot be used: the metrics are of a whole split; leave it out.",
    ),
    "today's name": (["--evaluation_strategy", "epoch"], "Unknown flag --evaluation_strategy: today it is --eval_strategy."),
    "today's name of no_cuda": (["--no_cuda"], "Unknown flag --no_cuda: today it is --use_cpu."),
    "today's name of warmup_ratio": (
        ["--warmup_ratio", "0.1"],
        "Unknown flag --warmup_ratio: today it is --warmup_steps (a value below 1 is a fraction of all steps).",
    ),
    "gone": (
        ["--tokenizer", "x"],
        "Unknown flag --tokenizer: the image processor comes with the checkpoint that --model names; leave it out.",
    ),
    "logging_dir": (
        ["--logging_dir", "x"],
        "Unknown flag --logging_dir: set the environment variable TENSORBOARD_LOGGING_DIR instead.",
    ),
    "stock example's name": (["--model_name_or_path", "x"], "Unknown flag --model_name_or_path: today it is --model."),
}


@pytest.mark.parametrize(("argv", "message"), BAD_FLAGS.values(), ids=BAD_FLAGS.keys())
def test_bad_flag(argv, message):
    assert problems(argv) == [message]


RANGES = {
    "lora_rank": ("0", "at least 1"),
    "lora_alpha": ("0", "at least 1"),
    "lora_dropout": ("1", "at least 0 and below 1"),
    "image_size": ("0", "at least 1"),
    "crop_pct": ("1.1", "above 0 and at most 1"),
    "max_train_samples": ("0", "at least 1"),
    "max_eval_samples": ("-1", "at least 1"),
    "validation_fraction": ("1", "above 0 and below 1"),
    "test_fraction": ("0", "above 0 and below 1"),
    "num_train_epochs": ("0", "above 0"),
    "max_steps": ("0", "at least 1, or -1 for as many as the epochs hold"),
    "per_device_train_batch_size": ("0", "at least 1"),
    "per_device_eval_batch_size": ("-4", "at least 1"),
    "gradient_accumulation_steps": ("0", "at least 1"),
    "learning_rate": ("-0.5", "above 0"),
    "head_lr": ("nan", "above 0"),
    "weight_decay": ("-1", "at least 0"),
    "warmup_steps": ("-1", "at least 0"),
    "label_smoothing_factor": ("1.5", "at least 0 and below 1"),
    "save_total_limit": ("0", "at least 1"),
    "dataloader_num_workers": ("-2", "at least 0, or -1 to choose by the machine"),
    "augmentation_views": ("0", "at least 1"),
    "layer_lr_decay": ("1.5", "above 0 and at most 1"),
    "feature_cache_gb": ("-1", "at least 0"),
    "image_cache_gb": ("nan", "at least 0"),
    "seed": ("-1", "between 0 and 4294967295"),
    "logging_steps": ("inf", "above 0"),
}


@pytest.mark.parametrize("name", RANGES)
def test_out_of_range(name):
    value, allowed = RANGES[name]
    assert problems(["--adapter", "lora", f"--{name}", value]) == [f"--{name} must be {allowed}, not {value}."]


CONTRADICTIONS = {
    "LoRA without an adapter": (
        ["--lora_rank", "4"],
        "--lora_rank 4 has no effect with --adapter none (the default): add --adapter lora or leave it out.",
    ),
    "DoRA with the adapter turned off": (
        ["--lora_dora", "--adapter", "none"],
        "--lora_dora has no effect with --adapter none: add --adapter lora or leave it out.",
    ),
    "frozen with LoRA": (
        ["--freeze", "head", "--preset", "demo"],
        "--freeze head and --adapter lora (preset demo) exclude each other: give --adapter none to train the head alone, "
        "or --freeze none to train with LoRA.",
    ),
    "last layers with LoRA": (
        ["--freeze", "last:2", "--adapter", "lora"],
        "--freeze last:2 and --adapter lora exclude each other: give --adapter none to train a part of the network, "
        "or --freeze none to train with LoRA.",
    ),
    "BatchNorm of nothing frozen": (
        ["--batch_norm", "frozen", "--batch_norm_scope", "frozen"],
        "--batch_norm_scope frozen rules nothing with --freeze none (the default), which freezes nothing; leave it out.",
    ),
    "BatchNorm twice": (
        ["--batch_norm", "frozen", "--freeze", "batch_norm_only"],
        "--batch_norm frozen and --freeze batch_norm_only both say what BatchNorm does; give one of them.",
    ),
    "BatchNorm with LoRA": (
        ["--batch_norm", "frozen", "--adapter", "lora"],
        "--batch_norm frozen and --adapter lora exclude each other: an adapter does not save BatchNorm, so it is frozen; leave "
        "--batch_norm out.",
    ),
    "a scope of nothing": (
        ["--batch_norm_scope", "frozen"],
        "--batch_norm_scope frozen has no effect without --batch_norm frozen; add it or leave the first out.",
    ),
    "a warm-up of nothing": (
        ["--unfreeze_warmup", "4"],
        "--unfreeze_warmup 4 has no effect with --freeze none (the default), which unfreezes nothing after the first epoch; leave it out.",
    ),
    "an average of parts": (
        ["--ema_decay", "0.9", "--fsdp", "full_shard"],
        "--ema_decay 0.9 needs whole weights in every process, not --fsdp full_shard; leave one out.",
    ),
    "a range test resumed": (
        ["--lr_finder", "--resume_from_checkpoint", "last"],
        "--lr_finder and --resume_from_checkpoint last exclude each other: the range test leaves no model behind.",
    ),
    "momentum misspelt": (
        ["--optim", "nag", "--optim_args", "mom=0.5"],
        "--optim_args must be momentum=NUMBER with a number between 0 and 1 for --optim nag, not 'mom=0.5'.",
    ),
    "options of Adam": (
        ["--optim", "adam", "--optim_args", "x=1"],
        "--optim_args x=1 has no effect with --optim adam; give --adam_beta1 and the like.",
    ),
    "early stopping without the best": (
        ["--early_stopping_patience", "2", "--no_load_best_model_at_end"],
        "--early_stopping_patience 2 has no effect without --load_best_model_at_end; add it or leave the first out.",
    ),
    "views of nothing": (
        ["--augmentation", "none", "--augmentation_views", "4"],
        "--augmentation_views 4 has no effect with --augmentation none; leave one of them out.",
    ),
    "one column": (
        ["--label_column", "image"],
        "--image_column image (the default) and --label_column image name the same column.",
    ),
    "steps and epochs": (
        ["--max_steps", "3", "--num_train_epochs", "2"],
        "--max_steps 3 leaves --num_train_epochs 2.0 without effect; give one of the two.",
    ),
    "best of unequal strategies": (
        ["--save_strategy", "steps"],
        "--load_best_model_at_end (the default) needs equal strategies, not --eval_strategy epoch (the default) and --save_strategy steps; "
        "make them equal, or give --no_load_best_model_at_end.",
    ),
    "best without evaluation": (
        ["--eval_strategy", "no"],
        "--load_best_model_at_end (the default) needs evaluations to choose by, not --eval_strategy no; "
        "evaluate, or give --no_load_best_model_at_end.",
    ),
    "overwrite and resume": (
        ["--overwrite_output_dir", "--resume_from_checkpoint", "last"],
        "--overwrite_output_dir and --resume_from_checkpoint last exclude each other: the first deletes the checkpoint that the second "
        "goes on from.",
    ),
    "push without a name": (["--push_to_hub"], "--push_to_hub needs --hub_model_id USER/NAME."),
    "prefetch without workers": (
        ["--dataloader_prefetch_factor", "2"],
        "--dataloader_prefetch_factor 2 has no effect without --dataloader_num_workers 1; add it or leave the first out.",
    ),
}


@pytest.mark.parametrize(("argv", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_contradiction(argv, message):
    assert problems(argv) == [message]


BAD_FILES = {
    "unknown": ("lora_rnak: 8", "my.yaml: Unknown setting lora_rnak. Did you mean 'lora_rank'?"),
    "today's name": ("no_cuda: true", "my.yaml: Unknown setting no_cuda: today it is use_cpu."),
    "integer in quotes": ('max_train_samples: "8"', "my.yaml: max_train_samples must be an integer or none, not '8'. Remove the quotes."),
    "integer as text": ("seed: eight", "my.yaml: seed must be an integer, not 'eight'."),
    "bool for an integer": ("seed: true", "my.yaml: seed must be an integer, not true."),
    "fraction for an integer": ("seed: 8.0", "my.yaml: seed must be an integer, not 8.0."),
    "list for text": ("dataset: [a, b]", "my.yaml: dataset must be text, not ['a', 'b']."),
    "number for text": ("model_revision: 12", "my.yaml: model_revision must be text or none, not 12. Put it in quotes."),
    "word for a bool": ("skip_bad_images: yes", "my.yaml: skip_bad_images must be true or false, not 'yes'. Remove the quotes."),
    "nothing": ("seed:", "my.yaml: seed must be an integer, not null."),
    "choice": ("adapter: lroa", "my.yaml: adapter must be one of none, lora, not 'lroa'. Did you mean 'lora'?"),
    "list for a choice": ("adapter: [lora]", "my.yaml: adapter must be one of none, lora, not ['lora']."),
    "enumeration": (
        "save_strategy: epochs",
        "my.yaml: save_strategy must be one of no, steps, epoch, best, not 'epochs'. Did you mean 'epoch'?",
    ),
    "range": ("num_train_epochs: 0", "my.yaml: num_train_epochs must be above 0, not 0."),
    "contradiction": (
        "lora_rank: 4",
        "--lora_rank 4 (my.yaml) has no effect with --adapter none (the default): add --adapter lora or leave it out.",
    ),
    "twice": ("seed: 1\nseed: 2", "my.yaml, line 2: not valid YAML: seed is given twice."),
    "not YAML": ("seed: 1\nmodel: [", "my.yaml, line 2: not valid YAML: expected the node content, but found '<stream end>'."),
    "list": ("- seed", "my.yaml: the file is a list; it must hold lines of the form `name: value`."),
    "word": ("seed", "my.yaml: the file is a piece of text; it must hold lines of the form `name: value`."),
    "empty": ("# nothing\n", "my.yaml: the file is empty; it must hold lines of the form `name: value`."),
    "preset": ("preset: demo", "my.yaml: preset belongs on the command line, as --preset."),
    "key of another type": ("1: 2", "my.yaml: Unknown setting 1. --help lists every one."),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_file(tmp_path, text, message):
    assert file_problems(tmp_path, text) == [message]


def test_bad_paths_of_files(tmp_path):
    (tmp_path / "flowers.yaml").write_text("seed: 1\n")
    (tmp_path / "photo.yaml").write_bytes(b"\xff\xd8\xff")
    missing = tmp_path / "flower.yaml"
    assert problems(["--config", str(missing)]) == [f"--config {missing}: there is no such file. Did you mean 'flowers.yaml'?"]
    assert problems(["--config", str(tmp_path)]) == [f"--config {tmp_path}: this is a folder; name a YAML file in it."]
    photo = tmp_path / "photo.yaml"
    assert problems(["--config", str(photo)]) == [f"--config {photo}: this is not a text file in UTF-8."]


def test_all_problems_at_once_and_numbered(tmp_path):
    (tmp_path / "my.yaml").write_text("lora_rnak: 8\nseed: x\n")
    with pytest.raises(ConfigError) as caught:
        parse_arguments(["--adapter", "lroa", "--lora_rank", "0", "--epochs", "3", "--config", str(tmp_path / "my.yaml"), "--push_to_hub"])
    assert str(caught.value).replace(str(tmp_path) + "/", "") == (
        "6 problems in the configuration:\n"
        "  1. --adapter must be one of none, lora, not 'lroa'. Did you mean 'lora'?\n"
        "  2. --lora_rank must be at least 1, not 0.\n"
        "  3. Unknown flag --epochs: today it is --num_train_epochs.\n"
        "  4. my.yaml: Unknown setting lora_rnak. Did you mean 'lora_rank'?\n"
        "  5. my.yaml: seed must be an integer, not 'x'.\n"
        "  6. --push_to_hub needs --hub_model_id USER/NAME."
    )


def test_a_wrong_default_of_a_recipe_is_named():
    assert problems([], recipe="mine", defaults={"lora_rnak": 1}) == ["recipe mine: Unknown setting lora_rnak. Did you mean 'lora_rank'?"]


def test_what_training_arguments_refuses_is_a_config_error():
    assert problems(["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "3", "--save_steps", "4"]) == [
        "TrainingArguments refuses these settings: --load_best_model_at_end requires the saving steps to be a round multiple of the "
        "evaluation steps, but found 4, which is not a round multiple of 3."
    ]


class TestPrecision:
    def test_bf16_needs_the_hardware(self, no_bf16):
        reason = "needs native bfloat16, which this machine lacks (its CPU has neither AVX512-BF16 nor AMX); leave it out for float32."
        assert problems(["--bf16"]) == [f"--bf16 {reason}"]
        with pytest.raises(ConfigError, match=re.escape(f"bf16 {reason}")):
            FinetuneArguments(bf16=True)

    def test_bf16_on_an_old_gpu(self, monkeypatch):
        monkeypatch.setattr(checks, "device_kind", lambda use_cpu=False: "cuda")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        assert problems(["--bf16"]) == [
            "--bf16 needs native bfloat16, which this machine lacks (its GPU is older than Ampere); leave it out for float32."
        ]

    def test_bf16_on_a_cpu_that_has_it(self, monkeypatch, no_accelerator):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        training = parse_arguments(["--bf16"]).training
        assert training.bf16
        assert training.use_cpu

    def test_mps_has_bf16(self):
        assert checks.has_native_bf16("mps")

    def test_fp16_needs_a_gpu(self, no_accelerator):
        assert problems(["--fp16"]) == ["--fp16 needs a GPU, and this run is on the CPU; leave it out for float32."]

    def test_one_precision_only(self, monkeypatch):
        monkeypatch.setattr(checks, "device_kind", lambda use_cpu=False: "xpu")
        assert problems(["--fp16", "--bf16"]) == ["--fp16 and --bf16 exclude each other; give one."]


class TestToken:
    @pytest.mark.parametrize(
        "argv",
        [
            ["--hub_token", TOKEN, "--lora_rnak", "1"],
            ["--hub_token", TOKEN, "stray", "--seed", "x"],
            ["--hub_token", TOKEN, "--hub_token", TOKEN],
            ["--hub_tokn", TOKEN],
            [f"--hub_tokn={TOKEN}"],
            ["--token", TOKEN],
            [TOKEN],
            ["--model", TOKEN, TOKEN],
            ["--seed", TOKEN],
            ["--preset", TOKEN],
            ["--hub_token", "my-secret-word", "--lora_layers", "my-secret-word", "--adapter", "lora"],
        ],
    )
    def test_is_in_no_message(self, argv):
        text = "\n".join(problems(argv))
        assert TOKEN not in text
        assert "my-secret-word" not in text

    def test_is_in_no_file(self, tmp_path):
        arguments = parse_arguments(["--hub_token", TOKEN])
        assert arguments.training.hub_token == TOKEN
        write_config(arguments, tmp_path / "config.yaml")
        assert TOKEN not in (tmp_path / "config.yaml").read_text()
        assert "hub_token" not in config_values(arguments)
        assert TOKEN not in repr(arguments)
        # the Trainer pickles its arguments into every checkpoint
        torch.save(arguments.training, tmp_path / "training_args.bin")
        assert TOKEN.encode() not in (tmp_path / "training_args.bin").read_bytes()
        assert pickle.loads(pickle.dumps(arguments.training)).hub_token is None


def test_precision_fp32_excludes_half_precision(monkeypatch):
    monkeypatch.setattr("hf_finetune.argument_parsing.checks.has_native_bf16", lambda device: True)
    assert problems(["--precision", "fp32", "--bf16"]) == ["--precision fp32 and --bf16 exclude each other; give one."]


@pytest.mark.parametrize("value", ["layer4", "layer4=0", "layer4=1e-4,layer4=1e-3", "=1e-3"])
def test_rates_of_layer_groups_need_names_and_positive_numbers(value):
    expected = f"--group_lr must be names of layer groups with rates above 0, such as layer4=1e-4,layer3=3e-5, not {value!r}."
    assert problems(["--group_lr", value]) == [expected]
