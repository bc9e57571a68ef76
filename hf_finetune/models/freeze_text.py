"""What `--freeze` takes, as text: `none`, `head`, `last:2`, `gradual:start=1,every=2`, `head_then_all:epochs=1`, a regular expression."""

from __future__ import annotations

import re
from typing import NamedTuple

from hf_finetune.errors import ConfigError, did_you_mean, listed

FREEZE_FORMS = (
    "none",
    "head",
    "last:L",
    "gradual:start=S,every=E",
    "gradual:start=S,every=E,stop=T",
    "head_then_all:epochs=N",
    "batch_norm_only",
)
_KINDS = tuple(dict.fromkeys(form.partition(":")[0] for form in FREEZE_FORMS))


class FreezeSettings(NamedTuple):
    """A schedule as it was asked for.

    Attributes:
        kind: `none`, `head`, `last`, `gradual`, `head_then_all`, `batch_norm_only` or `matching`.
        start: Layer groups beside the head that train from the first epoch.
        every: Epochs after which one more group trains; 0 lets all of them train at once.
        stop: Layer groups beside the head that train in the end; None for all.
        pattern: What the names of trained parameters match, for `matching`.
    """

    kind: str
    start: int = 0
    every: int = 1
    stop: int | None = None
    pattern: str = ""


def parse_freeze(text: str) -> FreezeSettings:
    """Read the text of `--freeze`.

    Raises:
        ConfigError: If it is none of the forms and no regular expression; the text completes "NAME must be ...".
    """
    kind, _, rest = text.partition(":")
    if kind in ("none", "head", "batch_norm_only") and not rest:
        return FreezeSettings(kind)
    if kind == "last" and re.fullmatch(r"[1-9]\d*", rest):
        return FreezeSettings("last", start=int(rest))
    if kind == "gradual" and (values := _options(rest, ("start", "every"), ("stop",))) is not None:
        return FreezeSettings("gradual", values["start"] or 0, values["every"] or 0, values.get("stop"))
    if kind == "head_then_all" and (values := _options(rest, ("epochs",))) is not None:
        return FreezeSettings("head_then_all", every=values["epochs"] or 0)
    named = f"{listed(FREEZE_FORMS, 9)} or a regular expression for the names of what trains"
    if kind in _KINDS or (re.fullmatch(r"[\w:=,]+", text) and did_you_mean(kind, _KINDS)):
        hint = "" if kind in _KINDS else did_you_mean(kind, _KINDS)
        raise ConfigError(f"must be one of {named}, not {text!r}.{hint}")
    try:
        re.compile(text)
    except re.error as error:
        raise ConfigError(f"must be one of {named}, not {text!r}: {error}.") from None
    return FreezeSettings("matching", pattern=text)


def _options(text: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, int | None] | None:
    """Return the values of `name=number,...`, None for `all`, or None where the text is not of that form."""
    values: dict[str, int | None] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name in values or name not in needed + optional or not re.fullmatch(r"\d+" if name in needed else r"\d+|all", value):
            return None
        values[name] = None if value == "all" else int(value)
    return values if set(needed) <= set(values) else None
