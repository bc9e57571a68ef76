"""A whole run, as a user makes it: files, figures, pipeline, bad input, and nothing lost."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageClassification, pipeline

from hf_finetune.arguments import make_arguments, parse_arguments
from hf_finetune.errors import ConfigError, FinetuneError, HubError, Interrupted
from hf_finetune.models.classifier import load_classifier
from hf_finetune.run import Run, finetune, without_push
from hf_finetune.run_directory import check_directory, claim_directory, last_checkpoint, resume_checkpoint
from hf_finetune.training.callbacks import ReadableLog
from hf_finetune.training.trainer import FinetuneTrainer
from tests.coloured import NAMES

SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "adapter": "lora",
    "lora_rank": 2,
    "use_cpu": True,
}


@pytest.fixture(scope="module", params=["vit", "timm_vit"])
def run(request, photo_folder, checkpoint_of, tmp_path_factory) -> Run:
    directory = tmp_path_factory.mktemp("runs") / request.param
    settings = {**SETTINGS, "dataset": str(photo_folder), "model": str(checkpoint_of(request.param)), "output_dir": str(directory)}
    return finetune(make_arguments(**settings))


def test_every_promised_file_is_there(run: Run):
    written = {path.name for path in run.directory.iterdir()}
    promised = {"config.yaml", "metrics.json", "predictions.parquet", "trainer_state.json", "report.md", "report.html", "README.md"}
    assert promised | {"plots", "model", "adapter"} <= written
    assert len(list(run.directory.glob("checkpoint-*"))) == 2
    assert not list(run.directory.rglob("*.bin.partial"))


def test_metrics_have_the_promised_shape(run: Run):
    metrics = json.loads((run.directory / "metrics.json").read_text())
    assert metrics == run.metrics
    for split, count in (("test", 15), ("validation", 15)):
        scores = metrics[split]
        assert {"accuracy", "top5_accuracy", "macro_f1", "balanced_accuracy", "ece", "per_class"} <= scores.keys()
        assert sum(entry["support"] for entry in scores["per_class"].values()) == count
        assert all(0 <= scores[name] <= 1 for name in scores if name != "per_class")
    training = metrics["train"]
    assert training["epochs"] == 2
    assert training["steps"] == 10
    assert 0 < training["trainable_parameters"] < training["total_parameters"]
    assert training["peak_memory_bytes"] > 1e8
    assert metrics["environment"]["seed"] == 42
    assert (metrics["environment"]["dtype"], metrics["environment"]["memory_layout"]) == ("float32", "contiguous")
    assert metrics["dataset"]["label_names"] == sorted(NAMES)
    assert metrics["dataset"]["splits"] == {"train": 40, "validation": 15, "test": 15}


def test_predictions_are_those_of_pipeline_in_a_process_without_this_package(run: Run, photo_folder, tmp_path):
    rows = [row for row in pq.read_table(run.directory / "predictions.parquet").to_pylist() if row["split"] == "test"]
    files = {path.stem: str(path) for path in (photo_folder / "test").rglob("*.png")}
    names = sorted(NAMES)
    script = (
        "import json, sys\n"
        "from transformers import pipeline\n"
        "classify = pipeline('image-classification', model=sys.argv[1], top_k=5)\n"
        "found = [{s['label']: s['score'] for s in classify(path)} for path in json.loads(sys.argv[2])]\n"
        "assert not any(name.startswith('hf_finetune') for name in sys.modules)\n"
        "print(json.dumps(found))\n"
    )
    paths = [next(path for stem, path in files.items() if stem in row["image_id"]) for row in rows]
    command = [sys.executable, "-c", script, str(run.directory / "model"), json.dumps(paths)]
    output = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    for row, scores in zip(rows, json.loads(output.splitlines()[-1]), strict=True):
        assert max(scores, key=scores.__getitem__) == names[row["prediction"]]
        assert [scores[name] for name in names] == pytest.approx(row["probabilities"], abs=1e-5)


def test_the_written_config_gives_the_same_run_again(run: Run, tmp_path):
    again = finetune(parse_arguments(["--config", str(run.directory / "config.yaml"), "--output_dir", str(tmp_path / "again")]))
    assert again.metrics["test"] == run.metrics["test"]
    one, other = run.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_in_use_is_not_touched(run: Run):
    before = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")}
    settings = {**SETTINGS, "dataset": "drawn_pets", "model": "tiny_vit", "output_dir": str(run.directory)}
    with pytest.raises(ConfigError) as error:
        finetune(make_arguments(**settings))
    assert str(error.value) == (
        f"--output_dir: {run.directory} is in use (it holds README.md, adapter, checkpoint-10, checkpoint-5 and 8 more). Go on with "
        "--resume_from_checkpoint last, start anew with --overwrite_output_dir, or give another folder."
    )
    assert before == {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")}


def test_other_settings_do_not_resume_a_run(run: Run, photo_folder, checkpoint_of):
    config = parse_arguments(
        ["--config", str(run.directory / "config.yaml"), "--learning_rate", "1e-5", "--resume_from_checkpoint", "last"]
    )
    with pytest.raises(ConfigError, match=re.escape("was run with other settings (learning_rate was 0.003, is 1e-05)")):
        finetune(config)


def test_other_settings_do_not_go_on_from_a_checkpoint_of_another_folder(run: Run, tmp_path: Path):
    checkpoint = str(run.directory / "checkpoint-5")
    command = [
        "--config",
        str(run.directory / "config.yaml"),
        "--output_dir",
        str(tmp_path / "new"),
        "--resume_from_checkpoint",
        checkpoint,
    ]
    with pytest.raises(ConfigError, match=re.escape("was run with other settings (lora_rank was 2, is 4)")):
        finetune(parse_arguments([*command, "--lora_rank", "4"]))
    again = finetune(parse_arguments(command))
    assert again.metrics["test"] == run.metrics["test"]


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_a_checkpoint_that_lacks_a_part_is_refused(missing: str, tmp_path: Path):
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    for name in {"optimizer.pt", "scheduler.pt", "trainer_state.json"} - {missing}:
        (checkpoint / name).write_text("{}")
    with pytest.raises(ConfigError) as error:
        resume_checkpoint(make_arguments(output_dir=str(tmp_path), use_cpu=True, resume_from_checkpoint=str(checkpoint)))
    assert str(error.value) == (
        f"--resume_from_checkpoint: {checkpoint} is not a whole checkpoint (weights, optimizer.pt, scheduler.pt, trainer_state.json). "
        "Give 'last', or a folder checkpoint-STEP."
    )


def test_the_adapter_loads_as_the_readme_says(run: Run, checkpoint_of: Callable[[str], Path], photos):
    names, checkpoint = run.metrics["dataset"]["label_names"], checkpoint_of(run.directory.name)
    base, processor = load_classifier(str(checkpoint), names)
    adapted = PeftModel.from_pretrained(base, run.directory / "adapter").eval()
    pixels = processor(images=photos["test"][0]["image"], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(adapted(pixel_values=pixels).logits, run.model(pixel_values=pixels).logits, rtol=0, atol=1e-5)
    stock = AutoModelForImageClassification.from_pretrained(checkpoint, num_labels=len(names), ignore_mismatched_sizes=True)
    adapted = PeftModel.from_pretrained(stock.float(), run.directory / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(pixel_values=pixels).logits, run.model(pixel_values=pixels).logits, rtol=0, atol=1e-5)


def test_pipeline_in_this_process_reads_the_checkpoint_by_its_label_names(run: Run, photos):
    scores = pipeline("image-classification", model=str(run.directory / "model"))(photos["test"][0]["image"])
    assert {score["label"] for score in scores} == set(NAMES)


# of 10 steps: in the middle of the second epoch, and so late in the first that its last step is finished
@pytest.mark.parametrize("step_of_signal", [7, 4])
def test_ctrl_c_saves_a_checkpoint_and_the_same_command_goes_on(step_of_signal, photo_folder, checkpoint_of, tmp_path, monkeypatch):
    settings = {**SETTINGS, "dataset": str(photo_folder), "model": str(checkpoint_of("vit"))}
    whole = finetune(make_arguments(**settings, output_dir=str(tmp_path / "whole")))
    original = ReadableLog.on_step_end

    def press(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == step_of_signal:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ReadableLog, "on_step_end", press)
    with pytest.raises(Interrupted) as stopped:
        finetune(make_arguments(**settings, output_dir=str(tmp_path / "cut")))
    step = re.search(r"SIGINT: stopped after step (\d+)", str(stopped.value))[1]
    assert (tmp_path / "cut" / f"checkpoint-{step}").is_dir()
    monkeypatch.undo()
    resumed = finetune(make_arguments(**settings, output_dir=str(tmp_path / "cut"), resume_from_checkpoint="last"))
    one, other = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    logs = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("whole", "cut")]
    scored = [[entry["eval_loss"] for entry in log if "eval_loss" in entry] for log in logs]
    assert scored[0] == scored[1]
    notice = f"Training was resumed at step {step}: the training time counts only what came after it."
    assert notice in resumed.metrics["notices"]


def test_a_failed_push_loses_nothing(photo_folder, checkpoint_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    settings = {**SETTINGS, "dataset": str(photo_folder), "model": str(checkpoint_of("vit")), "output_dir": str(tmp_path / "run")}
    with pytest.raises(HubError) as error:
        finetune(make_arguments(**settings, push_to_hub=True, hub_model_id="me/colours", hub_token="hf_secret_of_mine"))
    assert f"recipes/push.py {tmp_path / 'run'} --hub_model_id me/colours" in str(error.value)
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"hf_secret_of_mine" not in path.read_bytes(), path
    assert (tmp_path / "run" / "report.html").is_file()


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model" / "model.safetensors")


KILLED = """
import os, runpy, signal, sys
from hf_finetune.training.callbacks import ReadableLog
def die(self, args, state, control, **kwargs):
    if state.global_step == int(os.environ["KILLED_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
ReadableLog.on_step_end = die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("vit", ["--adapter", "lora"]),
        ("vit", ["--adapter", "none"]),
        ("dinov2", ["--adapter", "none", "--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps", "--eval_steps", "3"]),
        ("timm_resnet", ["--adapter", "none"]),
    ],
)
def test_killed_in_an_epoch_and_resumed_is_the_uninterrupted_run_bit_for_bit(
    kind: str,
    flags: list[str],
    photo_folder: Path,
    checkpoint_of: Callable[[str], Path],
    tmp_path: Path,
):
    command = ["--dataset", str(photo_folder), "--model", str(checkpoint_of(kind)), "--num_train_epochs", "2", *flags]
    command += ["--per_device_train_batch_size", "8", "--learning_rate", "3e-3", "--augmentation", "medium", "--use_cpu"]
    finetune(parse_arguments([*command, "--output_dir", str(tmp_path / "whole")]))
    kill_and_resume(command, 8, tmp_path / "cut")  # of 10; the second epoch begins after step 5
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")


def kill_and_resume(command: list[str], step: int, folder: Path) -> None:
    """Kill a run after a step, and let it go on to its end."""
    recipe = str(Path(__file__).parent.parent / "recipes" / "vit_lora.py")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, recipe, *command, "--output_dir", str(folder)],
        capture_output=True,
        env={**os.environ, "KILLED_AT": str(step)},
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert not (folder / "metrics.json").exists()
    finetune(parse_arguments([*command, "--output_dir", str(folder), "--resume_from_checkpoint", "last"]))


def assert_same_weights(one: Path, other: Path) -> None:
    resumed, whole = weights(one), weights(other)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_killed_at_ten_random_steps_with_everything_on(photo_folder: Path, checkpoint_of: Callable[[str], Path], tmp_path: Path):
    command = ["--dataset", str(photo_folder), "--model", str(checkpoint_of("timm_resnet")), "--adapter", "none", "--use_cpu"]
    command += ["--freeze", "gradual:start=0,every=1", "--layer_groups", "stage", "--layer_lr_decay", "0.7", "--unfreeze_warmup", "3"]
    command += [
        "--batch_norm",
        "frozen",
        "--mixup_alpha",
        "0.4",
        "--ema_decay",
        "0.9",
        "--augmentation",
        "medium",
        "--random_erasing",
        "0.3",
    ]
    command += ["--num_train_epochs", "4", "--per_device_train_batch_size", "8", "--learning_rate", "3e-3"]
    command += ["--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2"]
    finetune(parse_arguments([*command, "--output_dir", str(tmp_path / "whole")]))
    for step in random.Random(0).sample(range(2, 20), 10):
        kill_and_resume(command, step, tmp_path / f"cut{step}")
        assert_same_weights(tmp_path / f"cut{step}", tmp_path / "whole")


@pytest.mark.parametrize(
    ("what", "in_two"),
    [
        (["--adapter", "lora"], ["--micro_batch_size", "3"]),
        (["--adapter", "none"], []),
        (["--adapter", "none", "--freeze", "gradual:start=0,every=1"], []),
    ],
    ids=["lora", "full", "gradual"],
)
def test_two_processes_are_one(
    what: list[str], in_two: list[str], photo_folder: Path, checkpoint_of: Callable[[str], Path], tmp_path: Path
):
    flags = [
        "--dataset",
        str(photo_folder),
        "--model",
        str(checkpoint_of("vit")),
        *what,
        "--augmentation",
        "none",
        "--use_cpu",
    ]
    flags += ["--num_train_epochs", "2", "--learning_rate", "3e-3"]
    recipe = str(Path(__file__).parent.parent / "recipes" / "vit_lora.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = [*torchrun, recipe, *flags, *in_two, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "two")]
    finished = subprocess.run(two, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    finetune(parse_arguments([*flags, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one")]))
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["environment"]["processes"] == 2
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "wrong", [{"dataset": "drawn_pest"}, {"model": "tiny_vat"}, {"lora_targets": "nothing.like.this"}, {"group_lr": "layer99=1e-3"}]
)
def test_bad_input_leaves_an_earlier_run_and_an_empty_folder_as_they_were(
    wrong: dict[str, str], photo_folder: Path, checkpoint_of: Callable[[str], Path], tmp_path: Path
):
    earlier = tmp_path / "earlier"
    (earlier / "model").mkdir(parents=True)
    (earlier / "config.yaml").write_text("# hf-finetune\n")
    settings = {**SETTINGS, "dataset": str(photo_folder), "model": str(checkpoint_of("vit")), **wrong}
    with pytest.raises(FinetuneError):
        finetune(make_arguments(**settings, output_dir=str(earlier), overwrite_output_dir=True))
    assert sorted(path.name for path in earlier.iterdir()) == ["config.yaml", "model"]
    assert (earlier / "config.yaml").read_text() == "# hf-finetune\n"
    with pytest.raises(FinetuneError):
        finetune(make_arguments(**settings, output_dir=str(tmp_path / "new")))
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path):
    directory = tmp_path / "run"
    (directory / "checkpoint-5").mkdir(parents=True)
    for name in ("config.yaml", "metrics.json", "report.html", "notes.txt"):
        (directory / name).write_text("# hf-finetune")
    arguments = make_arguments(dataset="digits", model="tiny_vit", output_dir=str(directory), overwrite_output_dir=True, use_cpu=True)
    check_directory(arguments)
    claim_directory(arguments)
    assert sorted(path.name for path in directory.iterdir()) == ["config.yaml", "notes.txt"]


@pytest.mark.parametrize("wish", [{"overwrite_output_dir": True}, {"resume_from_checkpoint": "last"}])
def test_a_folder_that_is_no_run_is_neither_overwritten_nor_resumed(wish: dict[str, Any], tmp_path: Path):
    (tmp_path / "README.md").write_text("precious")
    with pytest.raises(ConfigError) as error:
        check_directory(make_arguments(output_dir=str(tmp_path), use_cpu=True, **wish))
    assert str(error.value) == (
        f"--output_dir: {tmp_path} holds README.md, but no run of this toolkit (a config.yaml or a checkpoint-STEP) to go on with or to "
        "overwrite. Give another folder."
    )


def test_an_output_folder_below_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as error:
        check_directory(make_arguments(output_dir=str(tmp_path / "file" / "run"), use_cpu=True))
    assert str(error.value) == f"--output_dir: {tmp_path / 'file'} is a file. Give a folder."


def test_last_is_the_newest_checkpoint_that_was_written_to_its_end(tmp_path: Path):
    for step, state in ((3, "{}"), (12, "{}"), (20, "{ cut sho"), (25, None)):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        for name in ("optimizer.pt", "scheduler.pt"):
            (checkpoint / name).touch()
        if state is not None:
            (checkpoint / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-30").mkdir()
    (tmp_path / "checkpoint-30" / "trainer_state.json").write_text("{}")  # --save_only_model: no optimizer to go on with
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-12"
    assert last_checkpoint(tmp_path / "nothing") is None


def test_the_seed_of_the_splits_does_not_fix_the_order_of_the_photos():
    arguments = make_arguments(dataset="digits", model="tiny_vit", data_seed=3, seed=5, use_cpu=True)
    handed_over = without_push(arguments.training)
    assert (handed_over.data_seed, handed_over.seed) == (None, 5)  # the Trainer shuffles by data_seed where there is one
    assert arguments.training.data_seed == 3


def test_a_batch_that_did_not_fit_is_told_in_the_report(photo_folder, checkpoint_of, tmp_path, monkeypatch):
    step = FinetuneTrainer.training_step

    def too_large(self, model, inputs, *args):
        if len(inputs["labels"]) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return step(self, model, inputs, *args)

    monkeypatch.setattr(FinetuneTrainer, "training_step", too_large)
    settings = {**SETTINGS, "per_device_train_batch_size": 5, "auto_find_batch_size": True, "num_train_epochs": 1}
    folders = {"dataset": str(photo_folder), "model": str(checkpoint_of("vit")), "output_dir": str(tmp_path / "run")}
    notices = finetune(make_arguments(**settings, **folders)).metrics["notices"]
    assert "A batch of 5 photos did not fit in memory: training began again with 4." in notices
