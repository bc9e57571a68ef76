"""Where a model comes from: an embedded checkpoint, a directory, or the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError, RevisionNotFoundError

from hf_finetune.errors import HubError, ModelError, did_you_mean, listed
from hf_finetune.hub_access import WAYS_OUT, require_hub

_EMBEDDED = Path(__file__).parent / "embedded"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What the Hub or the way to it fails with, in contrast to a revision or a file that is not there; offline mode is a ConnectionError.
_HUB_FAILURES = (HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)
_ABSENT = (RevisionNotFoundError, RemoteEntryNotFoundError)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class ModelSource:
    """A place that `from_pretrained` reads.

    Args:
        name: What the user typed; error messages say it.
        location: An absolute directory, or a Hub id `ORG/NAME`.
        revision: Branch, tag or commit on the Hub; None for a directory.
    """

    name: str
    location: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine, so that no network is asked."""
        return Path(self.location).is_absolute()


def embedded_names() -> list[str]:
    """Return the names of the checkpoints that come with this package."""
    return sorted(folder.name for folder in _EMBEDDED.iterdir() if (folder / "config.json").is_file()) if _EMBEDDED.is_dir() else []


def resolve_source(name: str, revision: str | None = None) -> ModelSource:
    """Find what `--model NAME` means: an embedded name, else a directory, else a Hub id.

    Args:
        name: Embedded name, path of a directory, or `ORG/NAME`.
        revision: Branch, tag or commit; only for the Hub.

    Raises:
        ModelError: If the name is none of the three, or the directory holds no model.
        HubError: If the Hub cannot be reached and the model is not cached.
    """
    if name in embedded_names():
        return _local(name, _EMBEDDED / name, revision)
    path = Path(name).expanduser()
    if path.is_dir():
        return _local(name, path.resolve(), revision)
    if path.is_file():
        raise ModelError(f"The model {name!r} is a file; give the directory that holds config.json and model.safetensors.")
    if _HUB_ID.fullmatch(name):
        require_hub(name, "model", hint=f"There is no directory {name!r} either.")
        return ModelSource(name, name, revision)
    if "/" in name or name.startswith((".", "~")):
        raise ModelError(f"The model directory {name!r} does not exist.")
    raise ModelError(
        f"The model {name!r} is neither an embedded name ({listed(embedded_names())}), nor a directory, nor a Hub id such as "
        f"google/vit-base-patch16-224-in21k.{did_you_mean(name, embedded_names())}"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop, to be quoted in another sentence."""
    return str(error).strip().splitlines()[0].rstrip(".:") if str(error).strip() else type(error).__name__


def raise_for_hub(source: ModelSource, what: str, error: BaseException) -> None:
    """Raise a `HubError` where a file of `source` could not be loaded because the Hub failed, and return where the file is at fault.

    Args:
        source: Where the file was to come from.
        what: The file, for the message.
        error: What `from_pretrained` raised; transformers keeps the failure of the Hub as its cause.

    Raises:
        HubError: It names the file and the ways to do without it.
    """
    link: BaseException | None = None if source.is_local else error
    while link is not None and not isinstance(link, _ABSENT):
        if isinstance(link, _HUB_FAILURES):
            raise HubError(f"The {what} of {source.name!r} cannot be had from the Hub ({first_line(error)}); {WAYS_OUT}.") from None
        link = link.__cause__ or link.__context__


def _local(name: str, directory: Path, revision: str | None) -> ModelSource:
    if revision is not None:
        raise ModelError(f"The revision {revision!r} has no meaning for {name!r}, which is not on the Hub; leave out model_revision.")
    if not (directory / "config.json").is_file():
        raise ModelError(f"The model directory {name!r} holds no config.json.{_config_hint(name, directory)}")
    if not any((directory / file).is_file() for file in _WEIGHTS):
        raise ModelError(f"The model directory {name!r} holds a config.json but no weights; expected one of {', '.join(_WEIGHTS)}.")
    return ModelSource(name, str(directory))


def _config_hint(name: str, directory: Path) -> str:
    if (directory / "model" / "config.json").is_file():
        return f" Did you mean {str(Path(name) / 'model')!r}?"
    if (directory / "adapter_config.json").is_file():
        return " It holds a PEFT adapter; give the merged model beside it, or the adapter's base model."
    return " A model directory holds config.json, model.safetensors and, unless it is a timm model, preprocessor_config.json."
