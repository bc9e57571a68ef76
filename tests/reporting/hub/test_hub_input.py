"""What is no input for a push, and that no token is shown whatever happens."""

import io
import logging
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http as hub_http

from hf_finetune.errors import ConfigError, DataError, HubError
from hf_finetune.reporting.hub import check_repo_id, push_run, retry_command
from tests.fake_hub import TOKEN, FakeHub
from tests.finished_run import checksums

Failure = Callable[..., str]
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)."


@pytest.mark.parametrize("failing", [None, "create", "info", "preupload", "lfs-batch", "lfs-put", "commit"])
@pytest.mark.parametrize("by_environment", [True, False])
def test_no_token_at_debug_level(
    online: pytest.MonkeyPatch,
    run: Path,
    no_waiting: list[float],
    capfd: pytest.CaptureFixture[str],
    failing: str | None,
    by_environment: bool,
) -> None:
    online.setattr(constants, "HF_DEBUG", True)
    if by_environment:
        online.setenv("HF_TOKEN", TOKEN)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    loggers = [logging.getLogger(), logging.getLogger("huggingface_hub"), logging.getLogger("httpcore2")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
            logger.addHandler(handler)
        with FakeHub(lfs=True) as server:
            online.setenv("HF_ENDPOINT", server.url)
            if failing is not None:
                server.fail(failing, 500, f"no {TOKEN}", X_Error_Message=f"no {TOKEN}")
            try:
                push_run(run, "ann/pets", token=None if by_environment else TOKEN)
            except HubError:
                log.write(traceback.format_exc())
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            logger.removeHandler(handler)

    assert server.authorizations <= {f"Bearer {TOKEN}", ""}
    assert ("Traceback" in log.getvalue()) == (failing is not None)
    assert "/api/repos/create" in log.getvalue()
    shown = log.getvalue() + "".join(capfd.readouterr())
    assert "hf_SECRET" not in shown
    assert not [name for name in checksums(run) if b"hf_SECRET" in (run / name).read_bytes()]


def test_the_client_of_the_process_is_given_back(server: FakeHub, run: Path, failure: Failure) -> None:
    def mine() -> object:
        return hub_http.default_client_factory()

    huggingface_hub.set_client_factory(mine)
    try:
        push_run(run, "ann/pets", token=TOKEN)
        assert hub_http._GLOBAL_CLIENT_FACTORY is mine
        server.fail("commit", 500)
        failure(run)
        assert hub_http._GLOBAL_CLIENT_FACTORY is mine
    finally:
        huggingface_hub.set_client_factory(hub_http.default_client_factory)


@pytest.mark.parametrize(
    "repo_id",
    ["", "a/b/c", "ann/my pets", "ann/pets.git", "-ann/pets", "ann/pets-", "ann/a--b", "ann/a..b", "x" * 97, "datasets/pets", "ann/päts"],
)
def test_malformed_names(run: Path, repo_id: str) -> None:
    with pytest.raises(ConfigError) as caught:
        push_run(run, repo_id, token=TOKEN)

    assert str(caught.value) == (
        f"--hub_model_id {repo_id!r} is not the name of a repository: give namespace/name or name, at most 96 letters, digits, '-', "
        "'_' and '.', with no '--' or '..', no '-' or '.' at either end, and no '.git' at the end."
    )


@pytest.mark.parametrize("repo_id", ["pets", "ann/pets", "Ann_1/pets.v2-b", "x" * 96, "hf_image_classifier_of_thirty_seven_breeds"])
def test_good_names(repo_id: str) -> None:
    check_repo_id(repo_id)


@pytest.mark.parametrize("repo_id", [TOKEN, f"ann/{TOKEN}"])
def test_a_token_in_the_place_of_the_name_is_not_repeated(run: Path, repo_id: str) -> None:
    with pytest.raises(ConfigError) as caught:
        push_run(run, repo_id)
    assert str(caught.value) == (
        "--hub_model_id holds a token where the name of a repository belongs; give namespace/name, and the token in HF_TOKEN."
    )


@pytest.mark.parametrize("missing", ["metrics.json", "config.yaml", "model/config.json", "model/model.safetensors"])
def test_an_unfinished_run_names_what_is_missing(server: FakeHub, run: Path, missing: str) -> None:
    (run / missing).unlink()

    with pytest.raises(DataError) as caught:
        push_run(run, "ann/pets", token=TOKEN)

    assert str(caught.value) == f"{str(run)!r} is not a finished run: {missing} is missing. Run the training to its end."
    assert server.calls == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "metrics.json",
            '{"test": 1,,}',
            "metrics.json in {run} is damaged: it is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 12 "
            "(char 11)). {cut}",
        ),
        ("metrics.json", "[]", "metrics.json in {run} is damaged: it must hold names and values. {cut}"),
        ("metrics.json", "{}", "{run} is not a finished run: metrics.json has no test figures. Run the training to its end."),
        (
            "config.yaml",
            "a: [",
            "config.yaml in {run} is damaged: it is not valid YAML (while parsing a flow node expected the node content, but found "
            "'<stream end>' in \"<unicode string>\", line 1, column 5: a: [ ^). {cut}",
        ),
        (
            "model/config.json",
            "{",
            "config.json in {run} is damaged: it is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1)). {cut}",
        ),
    ],
)
def test_damaged_files(run: Path, name: str, content: str, said: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(DataError) as caught:
        push_run(run, "ann/pets", token=TOKEN)
    cut = "The run was cut off or the file was edited; run it again."
    assert str(caught.value) == said.replace("{run}", repr(str((run / name).parent))).replace("{cut}", cut)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        push_run(tmp_path / "none", "ann/pets")
    assert str(caught.value) == f"The run folder {str(tmp_path / 'none')!r} does not exist; give the --output_dir of a finished run."


def test_a_push_waits_for_no_heavy_import() -> None:
    heavy = ("torch", "transformers", "datasets", "evaluate", "matplotlib", "pyarrow")
    program = f"import sys, recipes.push; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_missing_report_is_said(server: FakeHub, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "report.html").unlink()
    with caplog.at_level(logging.WARNING, logger="hf_finetune"):
        push_run(run, "ann/pets", token=TOKEN)
    assert f"{run} has no report.html; it is not pushed." in caplog.messages


def test_the_retry_command_can_be_pasted() -> None:
    assert retry_command("runs/my run", "ann/pets", private=True) == (
        "python recipes/push.py 'runs/my run' --hub_model_id ann/pets --hub_private_repo"
    )
