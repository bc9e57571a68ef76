"""YAML files of settings, read by the rules of YAML 1.2 and written so that they read back as the same values."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_finetune.argument_parsing.sources import Problems
from hf_finetune.errors import did_you_mean


def read_yaml(path: str, problems: Problems) -> dict[Any, Any]:
    """Read a flat YAML mapping by the YAML 1.2 rules for plain words: `1e-3` is a number, `no` is a word.

    Args:
        path: File to read.
        problems: Receives a sentence where it cannot be read, naming the line.

    Returns:
        Key → value; empty after a problem.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        loaded = yaml.load(text, Loader=_StrictLoader)
    except FileNotFoundError:
        problems.add(f"--config {path}: there is no such file.{_near(path)}")
    except IsADirectoryError:
        problems.add(f"--config {path}: this is a folder; name a YAML file in it.")
    except UnicodeDecodeError:
        problems.add(f"--config {path}: this is not a text file in UTF-8.")
    except OSError as error:
        problems.add(f"--config {path}: cannot be read: {error.strerror}.")
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problems.add(f"{path}{line}: not valid YAML: {error.problem}.")
    except yaml.YAMLError as error:
        problems.add(f"{path}: not valid YAML: {str(error).splitlines()[0]}.")
    else:
        if isinstance(loaded, dict):
            return loaded
        what = "empty" if loaded is None else f"a {_YAML_WORDS.get(type(loaded), 'single value')}"
        problems.add(f"{path}: the file is {what}; it must hold lines of the form `name: value`.")
    return {}


_YAML_WORDS: dict[type, str] = {list: "list", str: "piece of text"}


def _near(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return ""
    names = [name for name in os.listdir(folder) if name.endswith((".yaml", ".yml"))]
    return did_you_mean(os.path.basename(path), names)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML with the plain scalars of YAML 1.2 and an error for a key that is given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own layout

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """Read `010` as ten; YAML 1.1 reads eight."""
        return int(self.construct_scalar(node))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_decimal)


class _StrictDumper(yaml.SafeDumper):
    """Writes what `_StrictLoader` reads back as the same values."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own layout

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that occurs twice in full both times."""
        return True


# the core schema, https://yaml.org/spec/1.2.2/#103-core-schema; YAML 1.1 makes `1e-3` a word and `no` false
_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
}
for _class in (_StrictLoader, _StrictDumper):
    for _name, (_pattern, _first) in _CORE_SCHEMA.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def yaml_text(values: Mapping[str, Any]) -> str:
    """Return settings as YAML that `read_yaml` reads back as equal values, in the given order."""
    return yaml.dump(dict(values), Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, width=120)
