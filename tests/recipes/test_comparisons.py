"""The recipes that compare: their cells are runs that can be made, and a study ends in a page that says something."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hf_finetune.argument_parsing.study_flags import StudyFlags
from hf_finetune.arguments import config_values, make_arguments, parse_arguments
from hf_finetune.comparison import Comparison, published_command
from hf_finetune.errors import ConfigError
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freezing import FreezeSchedule
from hf_finetune.reporting.intervals import Interval
from hf_finetune.reporting.study import CellResult
from tests.conftest import REPOSITORY

NAMES = ("cat_vs_dog", "last_layers", "gradual_unfreezing", "learning_rates", "augmentation", "batch_norm")
RECIPES = REPOSITORY / "recipes"


@pytest.fixture(params=NAMES)
def recipe(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"recipes.{request.param}")


def cell(name: str, accuracy: float, validation: float, verdict: Interval | None, reference: str) -> CellResult:
    return CellResult(
        name, (0,), (accuracy,), (validation,), Interval(accuracy - 0.02, accuracy + 0.02), verdict, 10.0, 2.0, 5e8, 99, reference
    )


@pytest.mark.parametrize("preset", [["--preset", "demo"], []])
def test_every_cell_is_a_run_that_can_be_made(recipe: ModuleType, preset: list[str], tmp_path: Path) -> None:
    name = recipe.__name__.removeprefix("recipes.")
    flags = [*preset, "--model", "tiny_resnet", "--output_dir", str(tmp_path)]
    arguments = parse_arguments(flags, recipe=name, defaults=recipe.DEFAULTS, demo=recipe.DEMO, study=StudyFlags())
    cells = recipe.cells(arguments)
    assert len(cells) >= 5
    made = []
    for settings in cells.values():
        one = make_arguments(**{**config_values(arguments), **settings})
        FreezeSchedule.parse(one.model.freeze, one.training.layer_groups)
        made.append(json.dumps(config_values(one), sort_keys=True, default=str))
    assert len(set(made)) == len(made)


def test_the_answer_names_the_cell_that_validation_chose(recipe: ModuleType, tmp_path: Path) -> None:
    flags = ["--preset", "demo", "--output_dir", str(tmp_path)]
    arguments = parse_arguments(flags, recipe="x", defaults=recipe.DEFAULTS, demo=recipe.DEMO)
    first, *others = recipe.cells(arguments)
    reference = getattr(recipe, "reference", lambda name: first)
    results = [cell(first, 0.8, 0.80, None, first)]
    for row, name in enumerate(others):
        verdict = None if name == reference(name) else Interval(-0.01, 0.03)
        results.append(cell(name, 0.8 + 0.01 * row, 0.90 - 0.01 * row, verdict, reference(name)))
    said = "\n".join(recipe.answer(results))
    if recipe.__name__ == "recipes.cat_vs_dog":
        assert said.startswith(
            "Adam at its best rate on validation, 0.001, names 80.0 % of the test photos (95 % interval 78.0 to 82.0 %) correctly. "
            "adam_0.001 against adam_0.003: no difference shown (+0.0 points, 95 % interval -1.0 to +3.0), in about the same time"
        )
    else:
        assert f"Chosen on validation: **{others[0]}**" in said


@pytest.mark.parametrize("epochs", [1, 4, 5, 12, 30])
def test_gradual_cells_end_with_the_layers_of_strategy_1(epochs: int, tmp_path: Path) -> None:
    recipe = importlib.import_module("recipes.gradual_unfreezing")
    flags = ["--preset", "demo", "--num_train_epochs", str(epochs), "--output_dir", str(tmp_path)]
    arguments = parse_arguments(flags, recipe="x", defaults=recipe.DEFAULTS, demo=recipe.DEMO)
    cells = recipe.cells(arguments)
    model, _ = load_classifier("tiny_resnet", ["a", "b"])
    last = {name: FreezeSchedule.parse(cells[name]["freeze"], "stage").trainable(model, epochs - 1) for name in cells}
    assert last["gradual_all"] == last["gradual_all_warmup"] == last["together_all"] == {name for name, _ in model.named_parameters()}
    assert last["gradual_half"] == last["together_half"]
    if epochs >= 4:
        first = FreezeSchedule.parse(cells["gradual_half"]["freeze"], "stage").trainable(model, 0)
        assert first < last["gradual_half"]


def test_the_stopping_rule_waits_for_two_cells_without_an_improvement() -> None:
    last_layers = importlib.import_module("recipes.last_layers")
    scores = [0.80, 0.85, 0.84, 0.86, 0.86, 0.85, 0.99]
    results = [cell(f"last_{row}", 0.5, score, None, "last_0") for row, score in enumerate(scores)]
    assert [last_layers.enough(results[:count]) for count in range(1, 8)] == [False, False, False, False, False, True, False]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--study", "yes"], "--study takes no value, not 'yes'."),
        (["--seeds", "0", "0"], "--seeds must be different whole numbers, such as 0 1 2, not '0 0'."),
        (["--seeds"], "--seeds must be different whole numbers, such as 0 1 2, not ''."),
        (["--cells", "3-1"], "--cells must be numbers of cells, such as 0-3 or 2, not '3-1'."),
        (["--sedes", "1"], "Unknown flag --sedes. Did you mean '--seeds'?"),
    ],
)
def test_flags_of_a_study(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_arguments(flags, study=StudyFlags())
    assert str(error.value) == message


def test_a_recipe_without_a_comparison_knows_no_study() -> None:
    with pytest.raises(ConfigError) as error:
        parse_arguments(["--study"])
    assert str(error.value) == "Unknown flag --study. Did you mean '--seed'?"


def test_flags_of_a_study_are_read() -> None:
    flags = StudyFlags()
    parse_arguments(["--study", "--seeds", "3,4", "5", "--cells", "1-2", "--preset", "demo"], study=flags)
    assert (flags.study, flags.seeds, flags.cells, flags.preset) == (True, (3, 4, 5), slice(1, 3), "demo")


def test_a_study_needs_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError) as error:
        Comparison("x", "X", lambda arguments: {"a": {}}).run(["--study", "--output_dir", str(tmp_path)])
    assert (
        str(error.value) == "--study makes its runs in one process each; start it with python, or with accelerate launch and one process."
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1"], "--seeds has no effect without --study; add it or leave the first out."),
        (["--study", "--seed", "3"], "--seed is of one run and --study makes many; leave one of them out. A study goes on by itself."),
        (["--study", "--lr_finder"], "--lr_finder is of one run and --study makes many; leave one of them out. A study goes on by itself."),
        (
            ["--study", "--overwrite_output_dir"],
            "--overwrite_output_dir is of one run and --study makes many; leave one of them out. A study goes on by itself.",
        ),
    ],
)
def test_flags_that_a_study_cannot_have_or_needs(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        Comparison("x", "X", lambda arguments: {"a": {}}).run([*flags, "--output_dir", str(tmp_path / "new")])
    assert str(error.value) == message


def test_a_published_command_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    command = published_command(
        "recipes/last_layers.py", ["--dataset", str(tmp_path), "--model", "timm/resnet18.a1_in1k", f"--config={tmp_path}/a.yaml"]
    )
    assert command == (
        f"python recipes/last_layers.py --dataset path/to/{tmp_path.name} --model timm/resnet18.a1_in1k --config=path/to/a.yaml"
    )


def study(*flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPES / "last_layers.py"), "--preset", "demo", "--study", "--seeds", "0", *flags]
    small = ["--max_train_samples", "111", "--max_eval_samples", "74", "--num_train_epochs", "1", "--use_cpu"]
    return subprocess.run([*command, *small, "--output_dir", str(folder)], capture_output=True, text=True)


def test_a_study_makes_its_runs_and_knows_them_again(tmp_path: Path) -> None:
    first = study("--cells", "0-1", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head", "last_1", "study.csv", "study.md", "study.png"]
    page = (tmp_path / "study.md").read_text()
    assert page.startswith("# Strategy 1: how many of the last layers to fine-tune\n\nChosen on validation: **")
    assert "| last_1 |" in page
    assert "Seeds 0; " in page
    metrics = [json.loads((tmp_path / name / "seed0" / "metrics.json").read_text()) for name in ("head", "last_1")]
    assert all(one["train"]["peak_memory_bytes"] > 0 for one in metrics)
    assert [len(one["train"]["stages"][0]["groups"]) for one in metrics] == [1, 2]
    assert not (tmp_path / "head" / "seed0" / "report.html").exists()
    assert not list(tmp_path.glob("*/seed0/checkpoint-*"))
    assert (tmp_path / "head" / "seed0" / "model" / "model.safetensors").is_file()
    changed = study("--cells", "0-1", "--learning_rate", "0.5", folder=tmp_path)
    assert changed.returncode == 2
    assert "was made with other settings ({'learning_rate': 0.001})" in changed.stderr
