"""Keeps one conversation with the Hub short and quiet.

As huggingface_hub behaves by itself, a request may wait forever for an answer, a failing one is sent six times over 23 seconds, an
hour-long `Retry-After` is slept through, a "conflicting operation" answer is asked again without end, and at debug level the headers of
every answer reach the log. `brief_session` puts an end to each of these for as long as it is open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import close_session, set_client_factory
from huggingface_hub.utils import _http as hub_http

# seconds: to connect, to wait for an answer, to wait while sending a piece; a large commit may be worked on for a while
CONNECT_SECONDS, ANSWER_SECONDS, SEND_SECONDS = 5.0, 120.0, 60.0
# one request is sent at most so often, and not again after so many seconds since its first failure
MAX_TRIES, RETRY_SECONDS = 3, 10.0


class GaveUp(Exception):
    """The Hub kept failing, or asked to wait for longer than a person would.

    Args:
        reason: What happened, as the end of a sentence.
        status: The last HTTP status, None where there was no answer.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class _Patience:
    """Counts how often each request failed in a row; the hooks of an HTTP client."""

    def __init__(self) -> None:
        self._failing: dict[tuple[str, str], tuple[int, float, int | None]] = {}

    def before(self, request: Any) -> None:
        key = (request.method, str(request.url.copy_with(query=None)))
        tries, first, status = self._failing.get(key, (0, time.monotonic(), None))
        if tries >= MAX_TRIES or (tries and time.monotonic() - first > RETRY_SECONDS):
            raise GaveUp(f"{request.method} {request.url.path} failed {tries} times in a row", status)
        # taken back by a good answer; a request that gets none stays counted
        self._failing[key] = (tries + 1, first, status)

    def after(self, answer: Any) -> None:
        key = (answer.request.method, str(answer.request.url.copy_with(query=None)))
        if answer.status_code < 400:
            self._failing.pop(key, None)
            return
        tries, first, _ = self._failing.get(key, (1, time.monotonic(), None))
        self._failing[key] = (tries, first, answer.status_code)
        wait = answer.headers.get("retry-after", "")
        if tries >= MAX_TRIES:
            raise GaveUp(f"{answer.request.method} {answer.request.url.path} failed {tries} times in a row", answer.status_code)
        if answer.status_code == 429 or (wait.isdigit() and int(wait) > RETRY_SECONDS):
            raise GaveUp(f"it asks to wait {wait} s" if wait.isdigit() else "it asks to wait", answer.status_code)


@contextmanager
def brief_session() -> Iterator[None]:
    """Give huggingface_hub a client with time limits and few retries, and take it back at the end; one at a time in a process.

    Raises:
        GaveUp: From the call that made the last request.
    """
    # there is no public way to ask for the factory that is set, which may be the user's own, with a proxy
    before = getattr(hub_http, "_GLOBAL_CLIENT_FACTORY", hub_http.default_client_factory)
    patience = _Patience()

    def impatient() -> Any:
        client = before()
        client.timeout = (CONNECT_SECONDS, ANSWER_SECONDS, SEND_SECONDS, None)
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", []), patience.before],
            "response": [*hooks.get("response", []), patience.after],
        }
        return client

    wires = {name: logging.getLogger(name) for name in ("httpcore", "httpcore2")}
    levels = {name: logger.level for name, logger in wires.items()}
    set_client_factory(impatient)
    try:
        for logger in wires.values():
            logger.setLevel(max(logging.INFO, logger.level))
        yield
    finally:
        for name, logger in wires.items():
            logger.setLevel(levels[name])
        set_client_factory(before)
        close_session()
