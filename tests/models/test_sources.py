"""Checkpoints of the Hub whose files cannot be had: the Hub's failure and the user's mistake are told apart."""

from pathlib import Path

import pytest
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    Response,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from transformers import AutoConfig, ViTForImageClassification

from hf_finetune.errors import HubError, ModelError
from hf_finetune.models.classifier import load_classifier
from tests.builders import LABELS, build_vit_dir

WAYS_OUT = "use --preset demo (drawn pets and a tiny checkpoint, no network), --dataset PATH or --model PATH"
SUPPORTED = (
    "Supported are ViT, DeiT, DINOv2, Swin, ConvNeXt, ResNet, BEiT and the other image classifiers of transformers, and every timm model."
)


def _http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = get_session().build_request("GET", "https://hub.invalid/a/b")
    return kind("Server error", response=Response(status, request=request))


def _wrapped(cause: Exception) -> OSError:
    """As transformers raises it."""
    error = OSError("We could not load a/b:\nmore lines")
    error.__cause__ = cause
    return error


HUB_FAILURES = {
    "cut off": (HTTPError("peer closed connection"), "peer closed connection"),
    "no connection": (_wrapped(LocalEntryNotFoundError("offline")), "We could not load a/b"),
    "status": (_wrapped(_http_error(HfHubHTTPError, 503)), "We could not load a/b"),
    "time": (TimeoutError("timed out"), "timed out"),
}


@pytest.mark.parametrize("how", HUB_FAILURES)
@pytest.mark.parametrize("what", ["config.json", "weights"])
def test_a_hub_that_fails_on_the_way(what: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure, reason = HUB_FAILURES[how]
    _fail_to_load(what, failure, tmp_path, monkeypatch)
    with pytest.raises(HubError) as error:
        load_classifier("a/b", LABELS)
    assert str(error.value) == f"The {what} of 'a/b' cannot be had from the Hub ({reason}); {WAYS_OUT}."


@pytest.mark.parametrize("kind", [RevisionNotFoundError, RemoteEntryNotFoundError])
def test_what_the_hub_does_not_have_is_no_failure_of_the_hub(
    kind: type[HfHubHTTPError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_to_load("config.json", _wrapped(_http_error(kind, 404)), tmp_path, monkeypatch)
    with pytest.raises(ModelError) as error:
        load_classifier("a/b", LABELS, revision="typo")
    assert str(error.value) == "The config.json of 'a/b' cannot be read (We could not load a/b). " + SUPPORTED


def _fail_to_load(what: str, failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `a/b` be a model of the Hub, of which one file cannot be loaded."""

    def fail(*arguments: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr("hf_finetune.models.sources.require_hub", lambda *arguments, **options: None)
    config = AutoConfig.from_pretrained(build_vit_dir(tmp_path))
    monkeypatch.setattr(AutoConfig, "from_pretrained", fail if what == "config.json" else lambda *arguments, **options: config)
    monkeypatch.setattr(ViTForImageClassification, "from_pretrained", fail)
