"""What the README says is true: its commands parse, its files exist, its notebook example runs."""

import re
import shlex
from pathlib import Path

import pytest

from hf_finetune.arguments import PRESETS, parse_arguments
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RECIPE_COMMANDS = [
    line.split("#")[0].strip()
    for text in (README, *(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "recipes").glob("*.py"))))
    for line in text.splitlines()
    if re.search(r"accelerate launch .*recipes/vit_lora\.py", line) and "…" not in line and "|" not in line
]


@pytest.mark.parametrize("command", RECIPE_COMMANDS)
def test_a_command_of_the_readme_is_understood(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(command)
    arguments = parse_arguments(words[words.index("recipes/vit_lora.py") + 1 :], recipe="vit_lora", defaults={"adapter": "lora"})
    assert arguments.model.adapter == "lora"


def test_the_commands_were_found():
    assert len(RECIPE_COMMANDS) >= 6


def test_every_path_that_the_readme_names_is_there():
    for name in set(re.findall(r"(?:recipes|accelerate_configs|docs|benchmarks)/[\w./-]+\.\w+", README)):
        assert (REPOSITORY / name).is_file(), name


def test_every_recipe_stands_in_the_readme():
    for recipe in (REPOSITORY / "recipes").glob("*.py"):
        assert f"`recipes/{recipe.name}`" in README


def test_the_notebook_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 13
    monkeypatch.chdir(tmp_path)
    # a short course: the example is about its pieces, and the demo measures what they reach
    exec(compile(code.replace("num_train_epochs=2", "max_steps=20"), "README.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out.split()[-1]) <= 1


def test_the_study_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    code = README.partition("## What was measured")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    for long, short in {
        '"num_train_epochs": 4': '"max_steps": 2, "max_train_samples": 40, "max_eval_samples": 20',
        "drawn_pets": "digits",
        "[0, 1, 2]": "[0]",
    }.items():
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, "README.md", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "Interval(" in line] == ["head", "last", "gradual"]
    assert {"study.md", "study.csv", "study.png"} <= {path.name for path in (tmp_path / "runs" / "study").iterdir()}


def test_the_demo_preset_is_a_run_without_network():
    assert PRESETS["demo"]["dataset"] == "drawn_pets"
    assert PRESETS["demo"]["model"] == "tiny_vit"
