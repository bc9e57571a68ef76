"""The recipe as a process: exit status, one clear message, no traceback, nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

RECIPE = str(REPOSITORY / "recipes" / "vit_lora.py")


def start(*flags: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, RECIPE, *flags],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "0", **environment},
    )


def test_help_does_not_wait_for_peft(tmp_path: Path) -> None:
    watched = "import runpy, sys, atexit; sys.argv = ['x', '--help']; atexit.register(lambda: print('peft' in sys.modules))"
    program = f"{watched}; runpy.run_path({RECIPE!r}, run_name='__main__')"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "--lora_rank" in finished.stdout
    assert finished.stdout.endswith("\nFalse\n")


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--lora_rnak", "4"], 2, "error: Unknown flag --lora_rnak. Did you mean '--lora_rank'?\n"),
        (
            ["--dataset", "drawn_pest"],
            2,
            "error: The dataset 'drawn_pest' is not known, and no folder of that name exists; --dataset takes a name (oxford_pets, "
            "flowers102, drawn_pets, drawn_flowers, digits), a Hub id (ORG/NAME) or a folder. Did you mean 'drawn_pets'?\n",
        ),
        (
            [],
            3,
            "error: The Hub (http://127.0.0.1:9) cannot be reached and the dataset 'timm/oxford-iiit-pet' is not in the local cache; use "
            "--preset demo (drawn pets and a tiny checkpoint, no network), --dataset PATH or --model PATH.\n",
        ),
    ],
    ids=["misspelt flag", "misspelt data set", "no network"],
)
def test_bad_input_ends_with_one_message(flags: list[str], status: int, message: str, tmp_path: Path):
    # a port that nobody listens on, in place of the Hub
    finished = start(*flags, folder=tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "cache"))
    assert (finished.returncode, finished.stderr) == (status, message)
    assert not (tmp_path / "runs").exists()
