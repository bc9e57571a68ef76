"""`recipes/push.py` as a process of its own: what it prints, its exit status, and what never appears."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.builders import build_vit_dir
from tests.fake_hub import TOKEN, FakeHub
from tests.finished_run import checksums, write_finished_run

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = write_finished_run(tmp_path / "demo")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    return directory


@pytest.fixture
def server() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        yield fake


def push(home: Path, *arguments: str, endpoint: str = "http://127.0.0.1:9", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe in a machine's environment without any login."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(REPOSITORY), "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, str(REPOSITORY / "recipes" / "push.py"), *arguments]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=60, check=False)


def test_push_refusal_and_second_push(run: Path, server: FakeHub, tmp_path: Path) -> None:
    before = checksums(run)
    server.fail("commit", 500, f"failed for {TOKEN}")

    first = push(tmp_path, str(run), "--hub_model_id", "ann/pets", endpoint=server.url, HF_TOKEN=TOKEN, HF_DEBUG="1")

    assert first.returncode == 3
    assert first.stdout == ""
    # HF_DEBUG makes the client log every request before the one message of the recipe
    assert first.stderr.endswith(
        "error: The push to 'ann/pets' failed. The Hub itself failed with 500 while sending the files. The Hub says: failed for <token> "
        f"Try again later.\nThe run is complete in {str(run)!r}; to push it again:\n"
        f"  python recipes/push.py {run} --hub_model_id ann/pets\n"
    )
    assert "/commit/main" in first.stderr
    assert "Traceback" not in first.stderr
    assert "hf_SECRET" not in first.stdout + first.stderr
    assert checksums(run) == before
    assert server.commits == []

    server.heal()
    second = push(tmp_path, str(run), "--hub_model_id", "ann/pets", endpoint=server.url, HF_TOKEN=TOKEN)

    assert (second.returncode, second.stdout.splitlines()[-1]) == (0, f"{server.url}/ann/pets")
    assert "hf_SECRET" not in second.stdout + second.stderr
    assert "model.safetensors" in server.files["ann/pets"]
    assert checksums(run) == before


def test_the_repository_loads_by_its_name(run: Path, tmp_path: Path) -> None:
    """`pipeline(model="ann/pets")`, in a process that does not have this package, gets the very weights of the run."""
    shutil.rmtree(run / "model")
    build_vit_dir(run / "model")
    Image.new("RGB", (50, 40), (200, 10, 10)).save(tmp_path / "photo.jpg")
    ask = "import sys, transformers as t\nfor m in sys.argv[1:]: print(t.pipeline('image-classification', model=m)('photo.jpg'))"
    with FakeHub(lfs=True) as server:
        # plain large-file storage: its successor needs a server of its own
        pushed = push(tmp_path, str(run), "--hub_model_id", "pets", endpoint=server.url, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1")
        environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
        environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", ask, "ann/pets", str(run / "model")]
        asked = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (pushed.returncode, asked.returncode) == (0, 0), asked.stderr
    from_hub, from_disk = asked.stdout.splitlines()
    assert from_hub == from_disk
    assert "'score'" in from_hub


def test_unreachable_is_one_message_and_status_3(run: Path, tmp_path: Path) -> None:
    result = push(tmp_path, str(run), "--hub_model_id", "ann/pets", HF_TOKEN=TOKEN)

    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr == (
        "error: The push to 'ann/pets' failed. The Hub at http://127.0.0.1:9 cannot be reached. Check the network connection, and "
        f"HF_ENDPOINT if it is set.\nThe run is complete in {str(run)!r}; to push it again:\n"
        f"  python recipes/push.py {run} --hub_model_id ann/pets\n"
    )


def test_an_unfinished_run_is_bad_input(run: Path, tmp_path: Path) -> None:
    (run / "metrics.json").unlink()

    result = push(tmp_path, str(run), "--hub_model_id", "ann/pets", HF_TOKEN=TOKEN)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: {str(run)!r} is not a finished run: metrics.json is missing. Run the training to its end.\n"


USAGE = "Usage: python recipes/push.py DIR --hub_model_id ID [--hub_private_repo]"
FLAGS = "The flags are --hub_model_id, --hub_private_repo, --help."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "2 problems in the configuration:\n  1. Which run? Give the --output_dir of a finished run as DIR.\n"
            f"  2. Where to? Give --hub_model_id namespace/name. {USAGE}",
        ),
        (["runs/demo"], f"Where to? Give --hub_model_id namespace/name. {USAGE}"),
        (["runs/demo", "--hub_model_ids", "a/b"], f"There is no flag --hub_model_ids. Did you mean '--hub_model_id'? {FLAGS} {USAGE}"),
        (
            ["runs/demo", "--hub_model_id", "a/b", "--hub_private"],
            f"There is no flag --hub_private. Did you mean '--hub_private_repo'? {FLAGS} {USAGE}",
        ),
        (
            ["runs/demo", "--hub_model_id", "a/b", f"--hub_token={TOKEN}"],
            f"There is no flag --hub_token: a token is not given on the command line, but with `hf auth login` or in HF_TOKEN. {USAGE}",
        ),
        (
            ["runs/demo", "--hub_model_id", "a/b", "--token", TOKEN],
            f"There is no flag --token: a token is not given on the command line, but with `hf auth login` or in HF_TOKEN. {USAGE}",
        ),
        (["runs/demo", TOKEN, "--hub_model_id", "a/b"], f"One folder is pushed at a time; there are 1 words more than DIR. {USAGE}"),
        (["runs/demo", "--hub_model_id"], f"Argument --hub_model_id: expected one argument. {USAGE}"),
        (
            ["runs/demo", "--hub_model_id", "a b"],
            "--hub_model_id 'a b' is not the name of a repository: give namespace/name or name, at most 96 letters, digits, '-', "
            "'_' and '.', with no '--' or '..', no '-' or '.' at either end, and no '.git' at the end.",
        ),
        (["nowhere", "--hub_model_id", "a/b"], "The run folder 'nowhere' does not exist; give the --output_dir of a finished run."),
    ],
)
def test_bad_command_lines(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_finetune.launch import run_recipe
    from recipes import push as recipe

    monkeypatch.setattr(sys, "argv", ["push.py", *arguments])

    with pytest.raises(SystemExit) as left:
        run_recipe(recipe.main)

    assert left.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.push import parse

    with pytest.raises(SystemExit) as left:
        parse(["--help"])

    assert left.value.code == 0
    assert "--hub_private_repo  the repository must be private" in capsys.readouterr().out
