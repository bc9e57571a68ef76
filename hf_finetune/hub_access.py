"""Whether the Hub can be asked, found out in seconds instead of minutes of retries.

An unreachable Hub costs the Hugging Face libraries most of a minute of retries for each file, and ends in a long traceback. `require_hub`
runs first.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import build_hf_headers, get_session

from hf_finetune.errors import HubError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 2.5  # seconds, for the name look-up and the connection together
_ANSWER_TIMEOUT = 5.0  # seconds, for the Hub's word on one repository
WAYS_OUT = "use --preset demo (drawn pets and a tiny checkpoint, no network), --dataset PATH or --model PATH"


def require_hub(repo_id: str, kind: str, hint: str = "") -> None:
    """Make sure that `repo_id` can be loaded, from the Hub or from the local cache, before a library tries for minutes.

    Where the Hub cannot be reached or fails, but a copy is in the local cache, this process is switched to the offline mode of the Hugging
    Face libraries, so that the copy is used without retries.

    Args:
        repo_id: `ORG/NAME`.
        kind: `"model"` or `"dataset"`.
        hint: A further sentence for the message of the error.

    Raises:
        HubError: If the Hub cannot be reached or fails (no usable answer, too many requests, a status of 500 and above) and nothing is
            cached, if it knows no such repository, or if the repository is gated and the account has no access. One line, after at most
            5 seconds where the Hub cannot be reached.
    """
    offline = constants.is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    address, status, body = endpoint(), 0, dict[str, Any]()
    if offline:
        trouble = "HF_HUB_OFFLINE is set"
    elif not can_connect(address):
        trouble = f"The Hub ({address}) cannot be reached"
    else:
        status, body = _ask(f"{address}/api/{kind}s/{repo_id}")
        trouble = _trouble(address, status)
    cached = is_cached(repo_id, kind)
    if not trouble:
        if not cached:
            _require_access(address, repo_id, kind, hint, status, body)
        return
    if not cached:
        raise HubError(_with_hint(f"{trouble} and the {kind} '{repo_id}' is not in the local cache; {WAYS_OUT}.", hint))
    if not offline:
        logger.warning("%s; the cached copy of the %s '%s' is used.", trouble, kind, repo_id)
    work_offline()


def endpoint() -> str:
    """Return the address of the Hub, as the environment and the Hub's client have it now."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def can_connect(address: str, timeout: float = CONNECT_TIMEOUT) -> bool:
    """Return whether the host of `address`, or the proxy on the way to it, accepts a connection within `timeout` seconds.

    Raises:
        HubError: If `address`, which comes from `HF_ENDPOINT`, or that of the proxy is none.
    """
    way, scheme = _host_and_port(address), address.partition("://")[0].lower()
    if way is None or scheme not in ("http", "https"):
        raise HubError(f"HF_ENDPOINT is {address!r}; it must be an address such as https://huggingface.co.")
    proxy = urllib.request.getproxies().get(scheme)
    if proxy and not urllib.request.proxy_bypass(way[0]):
        way = _host_and_port(proxy if "://" in proxy else f"http://{proxy}")
    if way is None:
        # not repeated, since it may hold a password
        raise HubError(f"The proxy in {scheme}_proxy has no usable address; it must be one such as http://proxy.example:8080.")
    host_and_port = way
    connected = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection(host_and_port, timeout=timeout):
                connected.set()
        except OSError:
            pass

    # in a thread, since no timeout bounds the look-up of a name
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return connected.is_set()


def _host_and_port(address: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        # a port that is no number or too large, or a bracket that is left open
        return None
    usual = {"http": 80, "https": 443, "socks4": 1080, "socks5": 1080, "socks5h": 1080}
    if parts.scheme not in usual or not parts.hostname or port == 0:
        return None
    return parts.hostname, port or usual[parts.scheme]


def is_cached(repo_id: str, kind: str) -> bool:
    """Return whether the local cache holds a copy of the model or the data set that loads without the Hub."""
    if kind == "model":
        snapshots = Path(constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}", "snapshots")
        return any(
            (snapshot / "config.json").exists() and (any(snapshot.glob("*.safetensors")) or any(snapshot.glob("*.bin")))
            for snapshot in snapshots.glob("*")
        )
    import datasets  # only here: it takes a second to import, and models do not need it
    from datasets.naming import camelcase_to_snakecase

    organisation, name = repo_id.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE, f"{organisation}___{camelcase_to_snakecase(name)}")
    return any(path.is_dir() for path in folder.glob("*/*/*"))


def work_offline() -> None:
    """Switch the Hugging Face libraries of this process, and of processes that it starts, to their offline mode."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    config: Any = sys.modules.get("datasets.config")
    if config is not None:  # imported later, it reads the variable itself
        config.HF_HUB_OFFLINE = config.HF_DATASETS_OFFLINE = True


def _trouble(address: str, status: int) -> str:
    """Return how a Hub fails whose answer about a repository has this status, or an empty string where it does not."""
    if status == 0:
        return f"The Hub ({address}) gives no usable answer"
    return f"The Hub ({address}) answers with status {status}" if status in (408, 429) or status >= 500 else ""


def _require_access(address: str, repo_id: str, kind: str, hint: str, status: int, body: dict[str, Any]) -> None:
    gated = status == 403
    if status == 200 and body.get("gated"):
        gated = _ask(f"{address}/api/{kind}s/{repo_id}/auth-check")[0] in (401, 403)
    if gated:
        page = f"{address}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        sentence = f"The {kind} '{repo_id}' is gated; ask for access at {page} and log in with `hf auth login`, or {WAYS_OUT}."
        raise HubError(_with_hint(sentence, hint))
    if status in (401, 404):
        sentence = (
            f"The Hub ({address}) has no {kind} '{repo_id}', or it is private; check the name, log in with `hf auth login`, or {WAYS_OUT}."
        )
        raise HubError(_with_hint(sentence, hint))


def _ask(url: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON object at `url`; status 0 where there is no answer in time, or one that is no JSON.

    Asked through the Hub's own client, whose proxies and certificates are those of the download that follows.
    """
    try:
        answer = get_session().get(url, headers=build_hf_headers(), timeout=_ANSWER_TIMEOUT)
        body = answer.json() if answer.status_code == 200 else {}
    except (HTTPError, OSError, ValueError) as error:
        logger.info("%s gave no usable answer (%s).", url, error)
        return 0, {}
    return answer.status_code, body if isinstance(body, dict) else {}


def _with_hint(sentence: str, hint: str) -> str:
    return f"{sentence} {hint}" if hint else sentence
