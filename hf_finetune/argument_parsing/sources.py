"""Settings as flags, files, presets and Python give them; each source is read to its end, so that every problem is found."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hf_finetune.argument_parsing.checks import range_problem, renamed
from hf_finetune.argument_parsing.fields import FieldSpec, Mismatch, shown
from hf_finetune.errors import did_you_mean

RESERVED = ("config", "preset", "help")


class Rank(enum.IntEnum):
    """Order of the sources; the later one wins."""

    DEFAULT = 0
    RECIPE = 1
    PRESET = 2
    FILE = 3
    GIVEN = 4


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a value was given, and how a message names it there.

    Attributes:
        rank: Place in the order of sources.
        label: File, preset or recipe; empty for flags and Python values.
        python: Whether the reader writes Python, not flags.
    """

    rank: Rank
    label: str = ""
    python: bool = False

    def name(self, field: str) -> str:
        """Return the setting as its author wrote it: `--lora_rank`, `my.yaml: lora_rank` or `lora_rank`."""
        if self.rank in (Rank.RECIPE, Rank.PRESET, Rank.FILE):
            return f"{self.label}: {field}"
        return field if self.python else f"--{field}"

    def say(self, field: str, value: Any) -> str:
        """Return the setting with its value and, where it was not typed by the reader, its origin."""
        text = say(field, value, python=self.python)
        origin = {Rank.DEFAULT: " (the default)", Rank.GIVEN: ""}.get(self.rank, f" ({self.label})")
        return text + origin


def say(field: str, value: Any, *, python: bool) -> str:
    """Return a setting as a reader would write it, as a flag or as a Python keyword."""
    if python:
        return f"{field}={value!r}"
    if isinstance(value, bool):
        return f"--{field}" if value else f"--no_{field}"
    return f"--{field} {value}"


@dataclasses.dataclass
class Problems:
    """All that is wrong so far.

    Attributes:
        sentences: One sentence a problem.
        rejected: Settings whose value could not be used, of which no contradiction can be told.
    """

    sentences: list[str] = dataclasses.field(default_factory=list)
    rejected: set[str] = dataclasses.field(default_factory=set)

    def add(self, sentence: str, rejected: str | None = None) -> None:
        """Note a problem and, where it lies in one setting's value, which."""
        self.sentences.append(sentence)
        if rejected is not None:
            self.rejected.add(rejected)


@dataclasses.dataclass(frozen=True)
class Flags:
    """What a command line says.

    Attributes:
        values: Settings with their converted values.
        config: Path behind `--config`.
        preset: Name behind `--preset`.
    """

    values: dict[str, Any]
    config: str | None = None
    preset: str | None = None


def read_flags(
    argv: Sequence[str],
    specs: Mapping[str, FieldSpec],
    problems: Problems,
    others: Mapping[str, Callable[[list[str]], None]] | None = None,
) -> Flags:
    """Read `--name value`, `--name=value`, `--switch` and `--no_switch`; dashes inside names work like underscores.

    Args:
        argv: Command line without the program.
        specs: Known settings.
        problems: Receives what is wrong.
        others: Flags that are no settings, each with what takes the words behind it.
    """
    others = others or {}
    values: dict[str, Any] = {}
    words: dict[str, str] = {}
    seen: set[str] = set()
    for flag, texts in _chunks(argv, problems):
        name, negated = _resolve(flag.replace("-", "_"), specs, [*RESERVED, *others])
        if name is None:
            problems.add(unknown(flag.replace("-", "_"), specs, "--", others))
            continue
        if name in seen:
            problems.add(f"--{name} is given twice; give it once.", name)
            continue
        seen.add(name)
        try:
            if name in RESERVED:
                words[name] = _only(name, texts)
            elif name in others:
                others[name](texts)
            else:
                values[name] = _converted(specs[name], texts, negated)
        except Mismatch as error:
            problems.add(f"--{name} {error}", name)
    return Flags(values, words.get("config"), words.get("preset"))


def _chunks(argv: Sequence[str], problems: Problems) -> list[tuple[str, list[str]]]:
    """Cut a command line into flags, each with the words that follow it."""
    chunks: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word[2:].partition("=")
            chunks.append((flag, [value] if equals else []))
        elif chunks:
            chunks[-1][1].append(word)
        else:
            problems.add(f"Unexpected {shown('', word)} before the first flag; settings are written --name value.")
    return chunks


def _resolve(name: str, specs: Mapping[str, FieldSpec], others: Sequence[str]) -> tuple[str | None, bool]:
    """Return the setting that a flag means and whether the flag turns it off."""
    if name in specs or name in others:
        return name, False
    positive = name.removeprefix("no_")
    if positive != name and positive in specs and bool in specs[positive].kinds:
        return positive, True
    return None, False


def _only(name: str, texts: list[str]) -> str:
    if len(texts) == 1 and texts[0]:
        return texts[0]
    if len(texts) < 2:
        raise Mismatch("needs a value.")
    raise Mismatch(f"takes one value, not {len(texts)}: {', '.join(shown(name, text) for text in texts)}.")


def _converted(spec: FieldSpec, texts: list[str], negated: bool) -> Any:
    """Return the value of one flag, of the field's type and in its range; `Mismatch` completes "--NAME ..."."""
    if not spec.kinds:
        raise Mismatch(_NOT_AS_TEXT)
    if negated:
        if texts:
            raise Mismatch(f"as --no_{spec.name} takes no value; write --{spec.name} {texts[0]}, or --no_{spec.name} alone.")
        return False
    if not texts and spec.bare is not None:
        value = spec.bare
    elif texts and list in spec.kinds and str not in spec.kinds:
        value = texts
    else:
        value = spec.from_text(_only(spec.name, texts))
    return _in_range(spec.name, value)


def _in_range(name: str, value: Any) -> Any:
    problem = range_problem(name, value)
    if problem:
        raise Mismatch(problem)
    return value


_NOT_AS_TEXT = "cannot be given as text; pass the object to FinetuneArguments in Python."


def unknown(name: str, specs: Mapping[str, FieldSpec], prefix: str = "", others: Iterable[str] = ()) -> str:
    """Return the sentence about a setting that does not exist, with today's or the nearest name.

    Args:
        name: What was written, without dashes.
        specs: Known settings.
        prefix: `"--"` for flags.
        others: Flags that are no settings.
    """
    kind = "flag" if prefix else "setting"
    today = renamed(name, prefix)
    if today:
        return f"Unknown {kind} {prefix}{name}: {today}"
    names = [*specs, *(RESERVED if prefix else ()), *others]
    hint = did_you_mean(prefix + name, [prefix + known for known in names])
    return f"Unknown {kind} {prefix}{name}.{hint or ' --help lists every one.'}"


def check_values(values: Mapping[Any, Any], specs: Mapping[str, FieldSpec], source: Source, problems: Problems) -> dict[str, Any]:
    """Check settings that are already values, as YAML, presets and Python give them.

    Args:
        values: Name → value.
        specs: Known settings.
        source: Where they were given.
        problems: Receives what is wrong.

    Returns:
        The settings that can be used, of the type of their field.
    """
    good: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(name, str) or name not in specs:
            where = f"{source.label}: " if source.label else ""
            problems.add(where + _unknown_key(name, specs, source))
            continue
        try:
            if not specs[name].kinds and not source.python:
                raise Mismatch(_NOT_AS_TEXT)
            good[name] = _in_range(name, specs[name].from_value(value))
        except Mismatch as error:
            problems.add(f"{source.name(name)} {error}", name)
    return good


def _unknown_key(name: Any, specs: Mapping[str, FieldSpec], source: Source) -> str:
    if name in RESERVED and not source.python:
        return f"{name} belongs on the command line, as --{name}."
    return unknown(str(name), specs)
