"""What one setting may hold, read once from its dataclass field, and the conversion of text and values to it.

Everything comes from the type hint, `metadata["choices"]` and the enumeration of a field, so a field is described in one place.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import numbers
import os
import re
import types
import typing
from typing import Any

from hf_finetune.errors import did_you_mean, listed

# fields that hold a secret, and what a Hub token looks like wherever else it was typed by mistake
SECRET_FIELDS = frozenset({"hub_token"})
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")

_TRUE = ("true", "yes", "1")
_FALSE = ("false", "no", "0")


class Mismatch(ValueError):
    """A value that a field cannot hold; its text completes the sentence "NAME ..."."""


@dataclasses.dataclass(frozen=True)
class FieldSpec:
    """What one setting may hold.

    Attributes:
        name: Name of the field, the flag and the YAML key.
        kinds: Any of bool, int, float, str, list, dict; empty for an object that only Python can pass.
        choices: Allowed texts, or None where any text is.
        optional: Whether None is allowed.
        default: The dataclass default.
        bare: What a flag without a value means, or None where it needs one.
    """

    name: str
    kinds: frozenset[type]
    choices: tuple[str, ...] | None
    optional: bool
    default: Any
    bare: Any = None

    def from_text(self, text: str) -> Any:
        """Convert the text of a flag.

        Raises:
            Mismatch: The text is not of the field's type or choices.
        """
        if self.optional and str not in self.kinds and text.lower() in ("none", "null"):
            return None
        if dict in self.kinds and (text.lstrip().startswith("{") or str not in self.kinds):
            return self._json(text)
        if list in self.kinds and str not in self.kinds:
            return [text]
        if str not in self.kinds or (bool in self.kinds and text.lower() in ("true", "false")):
            return self._scalar(text)
        return self._chosen(text)

    def _scalar(self, text: str) -> Any:
        if bool in self.kinds and text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        for kind in (int, float):
            if kind in self.kinds:
                try:
                    return kind(text)
                except ValueError:
                    break
        raise Mismatch(self._expected(shown(self.name, text)))

    def _json(self, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise Mismatch(f"must be a JSON object such as '{{\"key\": 1}}', not {shown(self.name, text)}: {error}.") from None
        if not isinstance(value, dict):
            raise Mismatch(f"must be a JSON object such as '{{\"key\": 1}}', not {shown(self.name, text)}.")
        return value

    def from_value(self, value: Any) -> Any:
        """Check a YAML or Python value; paths become text, NumPy numbers become Python's.

        Raises:
            Mismatch: The value is not of the field's type or choices.
        """
        if value is None and self.optional:
            return None
        if not self.kinds:
            return value
        plain = _plain(value)
        if isinstance(plain, bool):
            fits = bool in self.kinds
        elif isinstance(plain, int) and float in self.kinds and int not in self.kinds:
            return float(plain)
        else:
            fits = any(isinstance(plain, kind) for kind in self.kinds - {bool})
        if not fits:
            raise Mismatch(self._expected(shown(self.name, value)) + self._quotes_hint(plain))
        return self._chosen(plain) if isinstance(plain, str) else plain

    def _quotes_hint(self, value: Any) -> str:
        """Return the advice for a YAML value that only lacks quotes, or has them to no purpose."""
        if isinstance(value, str) and not self.kinds & {str, list, dict}:
            try:
                self._scalar(value)
            except Mismatch:
                return ""
            return " Remove the quotes."
        if isinstance(value, int | float) and not isinstance(value, bool) and str in self.kinds:
            return " Put it in quotes."
        return ""

    def _chosen(self, text: str) -> str:
        if self.choices is None or text in self.choices:
            return text
        hint = did_you_mean(text, self.choices)
        raise Mismatch(f"must be one of {listed(self.choices, 20)}, not {shown(self.name, text)}.{hint}")

    def _expected(self, given: str) -> str:
        if self.choices is not None:
            return f"must be one of {listed(self.choices, 20)}, not {given}."
        return f"must be {self.kind_text()}, not {given}."

    def kind_text(self) -> str:
        """Return the type in words, such as `"an integer or none"`."""
        words = [_KIND_WORDS[kind] for kind in _KIND_WORDS if kind in self.kinds]
        if float in self.kinds and int in self.kinds:
            words.remove(_KIND_WORDS[int])
        return " or ".join(words + (["none"] if self.optional else []))


_KIND_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def field_specs(*classes: type) -> dict[str, FieldSpec]:
    """Read the settings of dataclasses.

    Args:
        classes: Dataclasses; fields with `init=False` are left out.

    Returns:
        Name → spec, in the order of declaration.
    """
    specs: dict[str, FieldSpec] = {}
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.init:
                specs[field.name] = _spec(field, hints[field.name])
    return specs


def _spec(field: dataclasses.Field[Any], hint: Any) -> FieldSpec:
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds: set[type] = set()
    choices = tuple(field.metadata["choices"]) if "choices" in field.metadata else None
    bare = field.metadata.get("const", True if bool in members else None)
    for member in members:
        base = typing.get_origin(member) or member
        if base is typing.Literal:
            kinds.update(type(value) for value in typing.get_args(member))
        elif isinstance(base, type) and issubclass(base, enum.Enum):
            choices = choices or tuple(item.value for item in base)
            kinds.add(str)
        elif base in _KIND_WORDS:
            kinds.add(base)
    return FieldSpec(
        name=field.name,
        kinds=frozenset(kinds),
        choices=choices,
        optional=type(None) in members,
        default=default_of(field),
        bare=bare,
    )


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a dataclass field, made by its factory where it has one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def shown(name: str, value: Any) -> str:
    """Return a value as a message may show it: YAML's true, false and null, long ones cut, never a token.

    Args:
        name: Field, flag or key that the value was given for.
        value: The value itself.
    """
    if name in SECRET_FIELDS:
        return "***"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = redacted(repr(_plain(value)))
    return text if len(text) <= 80 else text[:77] + "..."


def redacted(text: str, secret: str | None = None) -> str:
    """Return `text` without Hub tokens: anything that looks like one, and `secret` itself."""
    if secret:
        text = text.replace(secret, "***")
    return _TOKEN.sub("***", text)
