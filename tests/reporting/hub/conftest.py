"""A finished run, a machine without any login, and the server that pushes go to."""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http as hub_http

from hf_finetune.errors import HubError
from hf_finetune.reporting.hub import push_run
from tests.fake_hub import TOKEN, FakeHub
from tests.finished_run import checksums, write_finished_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = write_finished_run(tmp_path / "demo", adapter=True)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# Card\n\nmodel=USER/REPOSITORY\n")
    return directory


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Lift offline mode, with no login of this machine and no large-file storage that a fake cannot speak."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    return monkeypatch


@pytest.fixture
def server(online: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        online.setenv("HF_ENDPOINT", fake.url)
        yield fake


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the client's pauses between tries pass at once; their seconds are collected."""
    pauses: list[float] = []
    monkeypatch.setattr(hub_http.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def failure() -> Callable[..., str]:
    """Return a function that pushes, and returns the text of the HubError after looking for the token in all that a traceback prints."""

    def fail(directory: Path, repo_id: str = "ann/pets", **kwargs: object) -> str:
        before = checksums(directory)
        with pytest.raises(HubError) as caught:
            push_run(directory, repo_id, **{"token": TOKEN, **kwargs})  # type: ignore[arg-type]
        assert checksums(directory) == before
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert "hf_SECRET" not in "".join(traceback.format_exception(caught.value))
        return str(caught.value)

    return fail
