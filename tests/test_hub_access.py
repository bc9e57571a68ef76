import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import datasets
import pytest
from huggingface_hub import constants

from hf_finetune import hub_access
from hf_finetune.errors import HubError
from hf_finetune.hub_access import can_connect, is_cached, require_hub

WAYS_OUT = "use --preset demo (drawn pets and a tiny checkpoint, no network), --dataset PATH or --model PATH"
DATASETS_CONFIG = sys.modules["datasets.config"]


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and the libraries as they are where nobody asked for offline mode; everything is undone afterwards."""
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(DATASETS_CONFIG, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(DATASETS_CONFIG, "HF_DATASETS_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a Hub at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    return address


class _Answers(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, tuple[int, dict[str, object] | str]]] = {
        "/api/models/org/open": (200, {}),
        "/api/datasets/org/open": (200, {"gated": False}),
        "/api/models/org/private": (401, {}),
        "/api/datasets/org/missing": (404, {}),
        "/api/models/org/gated": (200, {"gated": "manual"}),
        "/api/models/org/gated/auth-check": (403, {}),
        "/api/datasets/org/granted": (200, {"gated": "auto"}),
        "/api/datasets/org/granted/auth-check": (200, {}),
        "/api/datasets/org/forbidden": (403, {}),
        "/api/models/org/ill": (500, {}),
        "/api/datasets/org/busy": (429, {}),
        "/api/datasets/org/page": (200, "<html>log in to this network</html>"),
    }

    def do_GET(self) -> None:
        status, body = self.answers[self.path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Hub that answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    yield address
    server.shutdown()
    server.server_close()


def cache_model(tmp_path: Path, name: str = "open") -> None:
    snapshot = tmp_path / "hub" / f"models--org--{name}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_text("")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_an_unreachable_hub_is_one_line(closed: str, kind: str) -> None:
    with pytest.raises(HubError) as error:
        require_hub("org/open", kind)
    assert str(error.value) == f"The Hub ({closed}) cannot be reached and the {kind} 'org/open' is not in the local cache; {WAYS_OUT}."


def test_the_hint_follows(closed: str) -> None:
    with pytest.raises(HubError) as error:
        require_hub("org/open", "model", "Or wait.")
    assert str(error.value) == (
        f"The Hub ({closed}) cannot be reached and the model 'org/open' is not in the local cache; {WAYS_OUT}. Or wait."
    )


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub_access, "can_connect", lambda address: pytest.fail("the Hub was asked"))
    with pytest.raises(HubError) as error:
        require_hub("org/open", "dataset")
    assert str(error.value) == f"HF_HUB_OFFLINE is set and the dataset 'org/open' is not in the local cache; {WAYS_OUT}."


def test_a_cached_model_is_used_without_the_hub(closed: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache_model(tmp_path)
    require_hub("org/open", "model")
    assert constants.is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert caplog.messages == [f"The Hub ({closed}) cannot be reached; the cached copy of the model 'org/open' is used."]


def test_a_cached_data_set_is_used_without_the_hub(closed: str, tmp_path: Path) -> None:
    (tmp_path / "datasets" / "org___my_pets" / "default" / "0.0.0" / "abc").mkdir(parents=True)
    require_hub("org/MyPets", "dataset")
    assert constants.is_offline_mode()


def test_the_configuration_alone_is_no_cached_model(tmp_path: Path) -> None:
    assert not is_cached("org/open", "model")
    cache_model(tmp_path)
    assert is_cached("org/open", "model")
    (tmp_path / "hub" / "models--org--open" / "snapshots" / "abc" / "model.safetensors").unlink()
    assert not is_cached("org/open", "model")


@pytest.mark.parametrize(("repo_id", "kind"), [("org/open", "model"), ("org/open", "dataset"), ("org/granted", "dataset")])
def test_a_hub_that_answers(hub: str, repo_id: str, kind: str) -> None:
    require_hub(repo_id, kind)
    assert not constants.is_offline_mode()


FAILING = [
    ("org/ill", "model", "answers with status 500"),
    ("org/busy", "dataset", "answers with status 429"),
    ("org/page", "dataset", "gives no usable answer"),
]


@pytest.mark.parametrize(("repo_id", "kind", "trouble"), FAILING)
def test_a_hub_that_fails_is_one_line(hub: str, repo_id: str, kind: str, trouble: str) -> None:
    with pytest.raises(HubError) as error:
        require_hub(repo_id, kind)
    assert str(error.value) == f"The Hub ({hub}) {trouble} and the {kind} '{repo_id}' is not in the local cache; {WAYS_OUT}."


def test_a_hub_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_access, "_ANSWER_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(HubError) as error:
            require_hub("org/open", "model")
    assert str(error.value) == f"The Hub ({address}) gives no usable answer and the model 'org/open' is not in the local cache; {WAYS_OUT}."


def test_a_cached_model_is_used_where_the_hub_fails(hub: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache_model(tmp_path, "ill")
    require_hub("org/ill", "model")
    assert constants.is_offline_mode()
    assert caplog.messages == [f"The Hub ({hub}) answers with status 500; the cached copy of the model 'org/ill' is used."]


@pytest.mark.parametrize(("repo_id", "kind"), [("org/private", "model"), ("org/missing", "dataset")])
def test_a_repository_that_does_not_exist(hub: str, repo_id: str, kind: str) -> None:
    with pytest.raises(HubError) as error:
        require_hub(repo_id, kind)
    assert str(error.value) == (
        f"The Hub ({hub}) has no {kind} '{repo_id}', or it is private; check the name, log in with `hf auth login`, or {WAYS_OUT}."
    )


@pytest.mark.parametrize(
    ("repo_id", "kind", "page"), [("org/gated", "model", "org/gated"), ("org/forbidden", "dataset", "datasets/org/forbidden")]
)
def test_a_gated_repository(hub: str, repo_id: str, kind: str, page: str) -> None:
    with pytest.raises(HubError) as error:
        require_hub(repo_id, kind)
    assert str(error.value) == (
        f"The {kind} '{repo_id}' is gated; ask for access at {hub}/{page} and log in with `hf auth login`, or {WAYS_OUT}."
    )


def test_a_proxy_is_the_way_to_the_hub(hub: str, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", hub)
    assert can_connect("https://no-such-host.invalid")
    monkeypatch.setenv("https_proxy", hub.replace("http:", "socks5:"))
    assert can_connect("https://no-such-host.invalid")
    monkeypatch.setenv("https_proxy", closed)
    assert not can_connect("https://no-such-host.invalid")


@pytest.mark.parametrize(
    "address", ["http://h:port", "http://hub:99999", "http://hub:0", "huggingface.co", "ftp://huggingface.co", "http:", "http://[::1"]
)
def test_an_endpoint_that_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    for kind in ("model", "dataset"):
        with pytest.raises(HubError) as error:
            require_hub("org/open", kind)
        assert str(error.value) == f"HF_ENDPOINT is {address!r}; it must be an address such as https://huggingface.co."


@pytest.mark.parametrize("address", ["http://ann:secret@proxy:port", "ann:secret@proxy:99999", "socks5://ann:secret@:1080"])
def test_a_proxy_that_is_no_address_is_not_repeated(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", address)
    with pytest.raises(HubError) as error:
        can_connect("https://no-such-host.invalid")
    assert str(error.value) == "The proxy in https_proxy has no usable address; it must be one such as http://proxy.example:8080."


def test_a_name_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*arguments: object, **options: object) -> None:
        release.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    assert not can_connect("https://huggingface.co", timeout=0.05)
    release.set()
