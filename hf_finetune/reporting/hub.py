"""Pushes a finished run to the Hub in one commit, and says what to do when that fails. Nothing on disk is changed or lost by a push.

A token is sent in a header and is never part of a message, a log line or a file: errors are raised anew, without the error that caused
them (which holds the request), and every text that the Hub sent is searched for the token first.
"""

from __future__ import annotations

import http
import json
import logging
import re
import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import DeviceCodeError, HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, OIDCError
from huggingface_hub.utils import validate_repo_id

from hf_finetune.errors import ConfigError, HubError
from hf_finetune.hub_access import can_connect, endpoint
from hf_finetune.reporting.finished_run import run_folder
from hf_finetune.reporting.hub_files import TEXT_SUFFIXES, commit_operations, published_files
from hf_finetune.reporting.hub_session import GaveUp, brief_session
from hf_finetune.reporting.model_card import REPOSITORY, write_card
from hf_finetune.reporting.wording import one_line

logger = logging.getLogger(__name__)

_REACH_SECONDS = 4.0
_QUOTED_LETTERS = 300  # of what the Hub says
_OFFLINE = "This process works offline (HF_HUB_OFFLINE is set, or the Hub could not be reached at its start), so nothing was sent."
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)."
# what a push can end in: refusals, broken connections (HTTPError, OSError), answers that are no JSON or lack a field, failed uploads
_FAILURES = (GaveUp, HTTPError, OSError, ValueError, KeyError, RuntimeError)


def push_run(directory: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Push a finished run to a model repository of the Hub, which is created when it does not exist.

    One commit holds the checkpoint (at the root, so that `pipeline(model=repo_id)` loads it), `adapter/`, the model card, the report
    with its plots, `metrics.json` and `config.yaml`. The endpoint is `HF_ENDPOINT` where that is set.

    Args:
        directory: The `--output_dir` of a finished run. A missing model card is written first.
        repo_id: `namespace/name`, or `name` in the namespace of the token's owner.
        private: Whether the repository must be private; a public one that exists already is an error then.
        token: A token with write access; by default the one of `hf auth login` or `HF_TOKEN`.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: `repo_id` is malformed; nothing was sent.
        DataError: `directory` is no finished run; nothing was sent.
        HubError: No token, no connection, or the Hub refused or failed. The message ends in the command that tries again.
    """
    check_repo_id(repo_id)
    folder = run_folder(directory)
    if not (folder / "README.md").is_file():
        write_card(folder)
    files = published_files(folder)
    retry = retry_command(folder, repo_id, private)
    push = _Push(repo_id, private, f"The run is complete in {str(folder)!r}; to push it again:\n  {retry}")
    push.connect(token)
    push.check_no_token(files)
    return push.send(files)


def check_repo_id(repo_id: str) -> None:
    """Check the form of a repository's name, without asking the Hub.

    Raises:
        ConfigError: It is not `namespace/name` or `name` of letters, digits, `-`, `_` and `.`; or it is a token, which is not repeated.
    """
    if re.search(r"hf_[A-Za-z0-9]{30,}", repo_id):
        raise ConfigError(
            "--hub_model_id holds a token where the name of a repository belongs; give namespace/name, and the token in HF_TOKEN."
        )
    try:
        validate_repo_id(repo_id)
        if repo_id.startswith(("models/", "datasets/", "spaces/")):
            raise HFValidationError
    except HFValidationError:
        raise ConfigError(
            f"--hub_model_id {repo_id!r} is not the name of a repository: give namespace/name or name, at most 96 letters, digits, '-', "
            "'_' and '.', with no '--' or '..', no '-' or '.' at either end, and no '.git' at the end."
        ) from None


def retry_command(directory: str | Path, repo_id: str, private: bool = False) -> str:
    """Return the command that pushes the run in `directory` again; it holds no token."""
    flags = ["--hub_private_repo"] if private else []
    return shlex.join(["python", "recipes/push.py", str(directory), "--hub_model_id", repo_id, *flags])


class _Push:
    """One push: where to, with which token, and what to say when it fails.

    Args:
        repo_id: The repository as the user named it.
        private: Whether it must be private.
        advice: What to do after a failure; stands at the end of every HubError.
    """

    def __init__(self, repo_id: str, private: bool, advice: str) -> None:
        self.repo_id, self.private, self.advice = repo_id, private, advice
        self.endpoint = endpoint()
        self.token = ""

    def connect(self, token: str | None) -> None:
        """Find the token and see that the Hub can be reached, in seconds.

        Raises:
            HubError: No usable token, offline mode, no address of a Hub, or no connection.
        """
        if constants.is_offline_mode():
            raise self.failed(_OFFLINE)
        self.token = self.find_token(token)
        trouble = f"The Hub at {self.endpoint} cannot be reached. Check the network connection, and HF_ENDPOINT if it is set."
        try:
            if can_connect(self.endpoint, _REACH_SECONDS):
                return
        except HubError as error:
            trouble = str(error)
        raise self.failed(trouble)

    def find_token(self, token: str | None) -> str:
        """Return the token that was given, or that of this machine.

        Raises:
            HubError: There is none, or it cannot be one.
        """
        trouble = ""
        try:
            token = (token or get_token() or "").strip()
        except (OIDCError, DeviceCodeError, HTTPError, OSError) as error:
            # stored logins of some kinds are renewed over the network
            trouble = type(error).__name__
        if trouble:
            raise self.failed(f"The stored login could not be renewed ({trouble}). {_LOG_IN}")
        if not token:
            raise self.failed(f"There is no token for the Hub. {_LOG_IN}")
        # an HTTP client would repeat such a header in its error
        if not re.fullmatch(r"[!-~]+", token):
            raise self.failed(f"The token for the Hub has blanks or letters that no token has. {_LOG_IN}")
        return token

    def check_no_token(self, files: dict[str, Path | bytes]) -> None:
        """See that no text to be published holds the token, by whatever way it came there.

        Raises:
            HubError: A file holds it.
        """
        for name, content in files.items():
            if Path(name).suffix not in TEXT_SUFFIXES:
                continue
            if self.token.encode() in (content if isinstance(content, bytes) else content.read_bytes()):
                raise self.failed(f"{name} holds your token for the Hub. Nothing was sent; take it out of the file first.")

    def send(self, files: dict[str, Path | bytes]) -> str:
        """Create the repository if need be and make the one commit.

        Raises:
            HubError: The Hub refused or failed, or the connection broke.
        """
        step = "creating the repository"
        try:
            with brief_session():
                api = HfApi(endpoint=self.endpoint, token=self.token)
                created = api.create_repo(self.repo_id, private=self.private or None, exist_ok=True)
                name = self.repo_id if "/" in self.repo_id else created.repo_id
                step = "reading the repository"
                info = api.model_info(name)
                is_public = self.private and not info.private
                if not is_public:
                    step = "sending the files"
                    there = [sibling.rfilename for sibling in info.siblings or []]
                    api.create_commit(name, commit_operations(_with_name(files, name), there), commit_message="Push a run of hf-finetune")
        except _FAILURES as error:
            reason = self.explain(error, step)
        else:
            if is_public:
                raise self.failed(
                    f"{name!r} exists and is public, but --hub_private_repo was given. Nothing was sent; name another repository."
                )
            logger.info("Pushed %d files to %s/%s", len(files), self.endpoint, name)
            return f"{self.endpoint}/{name}"
        # outside the handler, so that the error with the request in it is not kept as the context of this one
        raise self.failed(reason)

    def failed(self, reason: str) -> HubError:
        """Make the error for the user; the token cannot be in it."""
        text = f"The push to {self.repo_id!r} failed. {reason}\n{self.advice}"
        return HubError(text.replace(self.token, "<token>") if self.token else text)

    def explain(self, error: BaseException, step: str) -> str:
        """Say in a sentence or two what went wrong and what to do."""
        while isinstance(error, RuntimeError) and error.__cause__ is not None:
            # the client wraps what went wrong with one of several uploads
            error = error.__cause__
        if isinstance(error, HfHubHTTPError):
            return self.explain_status(error.response.status_code, step, error.server_message or "")
        if isinstance(error, GaveUp) and error.status is not None:
            return f"{self.explain_status(error.status, step, '')} ({error})"
        if isinstance(error, OfflineModeIsEnabled):
            return _OFFLINE
        if isinstance(error, json.JSONDecodeError | KeyError):
            return f"What answers at {self.endpoint} while {step} is not the Hub, perhaps a login page. Check HF_ENDPOINT and the network."
        if isinstance(error, ValueError):
            return f"The Hub refused the contents while {step}: {one_line(error, _QUOTED_LETTERS)}"
        if isinstance(error, OSError) and error.filename:
            return f"{error.filename} cannot be read ({error.strerror})."
        how = error if isinstance(error, GaveUp) else type(error).__name__
        return f"The connection to {self.endpoint} broke while {step} ({how}). Try again."

    def explain_status(self, status: int, step: str, message: str) -> str:
        """Say what an HTTP status means for a push."""
        said = f" The Hub says: {one_line(message, _QUOTED_LETTERS)}" if message.strip() else ""
        meaning = {
            401: f"The Hub did not accept the token while {step} (401).{said} {_LOG_IN}",
            403: f"The token may not write to {self.repo_id!r} (403 while {step}).{said} Use another token or name.",
            404: f"The Hub knows no {self.repo_id!r} that this token may see (404 while {step}).{said} Check the name and the token.",
            409: f"Somebody else changed {self.repo_id!r} at the same time (409 while {step}).{said} Try again.",
            429: f"The Hub has had too many requests (429 while {step}).{said} Wait a few minutes.",
        }
        if status in meaning:
            return meaning[status]
        if status >= 500:
            return f"The Hub itself failed with {status} while {step}.{said} Try again later."
        known = http.HTTPStatus(status).phrase if status in {code.value for code in http.HTTPStatus} else "unknown"
        return f"The Hub refused with {status} ({known}) while {step}.{said}"


def _with_name(files: dict[str, Path | bytes], name: str) -> dict[str, Path | bytes]:
    """Fill the repository's name into the snippets of the card; the card on disk stays as it is."""
    card = files["README.md"]
    text = (card if isinstance(card, bytes) else card.read_bytes()).decode("utf-8")
    return {**files, "README.md": text.replace(REPOSITORY, name).encode()}
