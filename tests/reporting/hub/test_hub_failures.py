"""Every way in which a push fails: what is said, that nothing is lost, and that the next push succeeds."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from hf_finetune import hub_access
from hf_finetune.reporting import hub, hub_session
from hf_finetune.reporting.hub import push_run
from tests.fake_hub import TOKEN, FakeHub

Failure = Callable[..., str]
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)."


REFUSALS = [
    ("create", 401, f"The Hub did not accept the token while creating the repository (401). The Hub says: Sorry <token>. {LOG_IN}"),
    ("info", 401, f"The Hub did not accept the token while reading the repository (401). The Hub says: Sorry <token>. {LOG_IN}"),
    (
        "create",
        403,
        "The token may not write to 'ann/pets' (403 while creating the repository). The Hub says: Sorry <token>. "
        "Use another token or name.",
    ),
    (
        "commit",
        403,
        "The token may not write to 'ann/pets' (403 while sending the files). The Hub says: Sorry <token>. Use another token or name.",
    ),
    (
        "preupload",
        404,
        "The Hub knows no 'ann/pets' that this token may see (404 while sending the files). The Hub says: Sorry <token>. "
        "Check the name and the token.",
    ),
    (
        "commit",
        409,
        "Somebody else changed 'ann/pets' at the same time (409 while sending the files). The Hub says: Sorry <token>. Try again.",
    ),
    ("commit", 413, "The Hub refused with 413 (Request Entity Too Large) while sending the files. The Hub says: Sorry <token>."),
    ("commit", 500, "The Hub itself failed with 500 while sending the files. The Hub says: Sorry <token>. Try again later."),
    ("create", 503, "The Hub itself failed with 503 while creating the repository. The Hub says: Sorry <token>. Try again later."),
]


@pytest.mark.parametrize(("call", "status", "reason"), REFUSALS, ids=[f"{call}-{status}" for call, status, _ in REFUSALS])
def test_a_refusal_loses_nothing_and_the_second_push_succeeds(
    server: FakeHub, run: Path, call: str, status: int, reason: str, failure: Failure
) -> None:
    # a server that repeats the token, as real ones do in "invalid token" messages
    server.fail(call, status, f"Sorry {TOKEN}.")

    text = failure(run)

    assert text == (
        f"The push to 'ann/pets' failed. {reason}\nThe run is complete in {str(run)!r}; to push it again:\n"
        f"  python recipes/push.py {run} --hub_model_id ann/pets"
    )
    assert server.commits == []
    server.heal()
    assert push_run(run, "ann/pets", token=TOKEN) == f"{server.url}/ann/pets"
    assert len(server.commits) == 1


@pytest.mark.parametrize("call", ["create", "preupload", "commit"])
def test_a_connection_that_drops_in_the_middle(server: FakeHub, run: Path, no_waiting: list[float], call: str, failure: Failure) -> None:
    server.fail(call, "drop")

    text = failure(run)

    assert server.commits == []
    if call == "preupload":
        assert "POST /api/models/ann/pets/preupload/main failed 3 times in a row" in text
    else:
        step = {"create": "creating the repository", "commit": "sending the files"}[call]
        assert f"The push to 'ann/pets' failed. The connection to {server.url} broke while {step} (" in text
    server.heal()
    push_run(run, "ann/pets", token=TOKEN)
    assert len(server.commits) == 1


def test_a_failing_call_is_tried_three_times_not_six(server: FakeHub, run: Path, no_waiting: list[float], failure: Failure) -> None:
    server.fail("preupload", 502)

    text = failure(run)

    assert "The Hub itself failed with 502 while sending the files. Try again later." in text
    assert server.calls.count("preupload") == 3
    assert sum(no_waiting) < hub_session.RETRY_SECONDS


def test_a_failure_that_passes_is_not_noticed(server: FakeHub, run: Path, no_waiting: list[float]) -> None:
    server.fail("preupload", 503, times=2)

    push_run(run, "ann/pets", token=TOKEN)

    assert server.calls.count("preupload") == 3
    assert len(server.commits) == 1


def test_the_endless_conflict_of_create_ends(server: FakeHub, run: Path, failure: Failure) -> None:
    server.fail("create", 409, "Cannot create repo: another conflicting operation is in progress")

    assert "Somebody else changed 'ann/pets' at the same time (409 while creating the repository)." in failure(run)
    assert server.calls == ["create"] * 3


@pytest.mark.parametrize(
    ("status", "said"), [(429, "The Hub has had too many requests (429 while sending the files)."), (503, "failed with 503")]
)
def test_an_hour_of_retry_after_is_not_slept_through(
    server: FakeHub, run: Path, no_waiting: list[float], status: int, said: str, failure: Failure
) -> None:
    server.fail("preupload", status, Retry_After="3600")

    text = failure(run)

    assert said in text
    assert "(it asks to wait 3600 s)" in text
    assert no_waiting == []


def test_a_server_that_never_answers_ends_in_time(server: FakeHub, run: Path, online: pytest.MonkeyPatch, failure: Failure) -> None:
    online.setattr(hub_session, "ANSWER_SECONDS", 0.3)
    server.fail("commit", "hang")

    assert f"The connection to {server.url} broke while sending the files (ReadTimeout). Try again." in failure(run)


def test_a_login_page_instead_of_the_hub(server: FakeHub, run: Path, failure: Failure) -> None:
    server.fail("create", 200, html=True)

    assert (
        f"What answers at {server.url} while creating the repository is not the Hub, perhaps a login page. "
        "Check HF_ENDPOINT and the network." in failure(run)
    )


def test_a_card_that_the_hub_refuses(server: FakeHub, run: Path, failure: Failure) -> None:
    server.fail("validate-yaml", 400, "bad license")

    assert "The Hub refused the contents while sending the files: Invalid metadata in README.md." in failure(run)


def test_an_upload_that_fails_among_several(online: pytest.MonkeyPatch, run: Path, failure: Failure) -> None:
    with FakeHub(lfs=True) as server:
        online.setenv("HF_ENDPOINT", server.url)
        server.fail("lfs-put", 403, f"expired for {TOKEN}")
        text = failure(run)

    assert "The token may not write to 'ann/pets' (403 while sending the files). The Hub says: expired for <token>" in text
    assert server.commits == []


def test_a_file_that_goes_away_meanwhile(server: FakeHub, run: Path, online: pytest.MonkeyPatch, failure: Failure) -> None:
    files = hub.published_files(run) | {"plots/gone.png": run / "plots" / "gone.png"}
    online.setattr(hub, "published_files", lambda _: files)

    assert "gone.png" in failure(run)
    assert server.commits == []


def test_refused_connection(run: Path, online: pytest.MonkeyPatch, failure: Failure) -> None:
    with FakeHub() as server:
        url = server.url
    online.setenv("HF_ENDPOINT", url)

    assert failure(run) == (
        f"The push to 'ann/pets' failed. The Hub at {url} cannot be reached. Check the network connection, and HF_ENDPOINT if it is set.\n"
        f"The run is complete in {str(run)!r}; to push it again:\n  python recipes/push.py {run} --hub_model_id ann/pets"
    )


def test_an_address_that_swallows_everything_costs_seconds(run: Path, online: pytest.MonkeyPatch, failure: Failure) -> None:
    def swallow(*_: object, **__: object) -> None:
        # as a name server that does not answer, but with an end
        time.sleep(2)
        raise OSError

    online.setattr(hub_access.socket, "create_connection", swallow)
    online.setattr(hub, "_REACH_SECONDS", 0.2)
    online.setenv("HF_ENDPOINT", "http://hub.example")

    assert "The Hub at http://hub.example cannot be reached." in failure(run)


def test_offline_mode(run: Path, online: pytest.MonkeyPatch, failure: Failure) -> None:
    online.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (
        "This process works offline (HF_HUB_OFFLINE is set, or the Hub could not be reached at its start), so nothing was sent."
        in failure(run)
    )


def test_no_token_is_said_before_anything_is_sent(server: FakeHub, run: Path, failure: Failure) -> None:
    assert f"The push to 'ann/pets' failed. There is no token for the Hub. {LOG_IN}" in failure(run, token=None)
    assert server.calls == []


@pytest.mark.parametrize("token", [f"{TOKEN}\nX-Evil: 1", f"{TOKEN} x", f"{TOKEN}é"])
def test_a_token_that_cannot_be_a_header_is_not_repeated(server: FakeHub, run: Path, token: str, failure: Failure) -> None:
    assert f"The token for the Hub has blanks or letters that no token has. {LOG_IN}" in failure(run, token=token)
    assert server.calls == []


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://huggingface.co", "http://", "http://hub:port", "http://hub:99999"])
def test_an_endpoint_that_is_none(run: Path, online: pytest.MonkeyPatch, endpoint: str, failure: Failure) -> None:
    online.setenv("HF_ENDPOINT", endpoint)
    assert f"HF_ENDPOINT is {endpoint.rstrip('/')!r}; it must be an address such as https://huggingface.co." in failure(run)
