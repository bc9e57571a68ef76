"""Where on this machine a run read and wrote, and with which credentials, is nobody's business once it is published.

Only the last part of a path (`oxford-iiit-pet` of `/home/ann/data/oxford-iiit-pet`) helps a reader; the rest names a person or a machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import escape

from hf_finetune.reporting.markdown import markdown_text
from hf_finetune.reporting.wording import one_line

_WHOLE_PATH = re.compile(r"/|~[^/\s]*/|\.{1,2}/|[A-Za-z]:[\\/]|\\\\")
# an absolute path inside a sentence: after a blank, a quote or a bracket, so that URLs and fractions such as `and/or` are left alone
_PATH_IN_TEXT = re.compile(r"""(?<![\w./:+=~-])(?:~?/[^\s/'"`<>|,;()]+/|~/|[A-Za-z]:[\\/])[^\s'"`<>|,;()]*""")
# settings that hold a path even where it looks like a Hub id (`runs/demo`)
_PATH_SETTINGS = ("output_dir", "run_name", "config", "resume_from_checkpoint", "logging_dir")


def is_credential(setting: str) -> bool:
    """Tell by its name whether a setting may hold a credential, such as `hub_token`."""
    return str(setting).endswith(("token", "password", "secret"))


def is_local_path(value: str) -> bool:
    """Tell whether `value` can only be a path on this machine: absolute, from home, or starting with `./` or `../`."""
    return bool(_WHOLE_PATH.match(value))


def last_part(path: str) -> str:
    """Return the name of the file or folder that `path` ends in, `"folder"` where it has none (`/`, `..`)."""
    parts = [part for part in re.split(r"[/\\]+", path) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else "folder"


def published_name(section: Mapping[str, Any], hub_key: str) -> str:
    """Return how a reader may know the data set or checkpoint of `metrics.json`: its Hub id or name, of a path the last part.

    Args:
        section: `metrics["dataset"]` or `metrics["model"]`; `"name"` is what the user gave.
        hub_key: The key that holds the Hub id, or None where it came from elsewhere (`"hub_id"`, `"base_model"`).
    """
    name = str(section.get("name") or section.get(hub_key) or "unknown")
    return last_part(name) if is_local_path(name) or ("/" in name and not section.get(hub_key)) else name


def known_paths(config: Mapping[str, Any], metrics: Mapping[str, Any], others: Iterable[str] = ()) -> list[str]:
    """Collect the local paths that the files of a run are known to mention.

    Args:
        config: The settings of the run (`config.yaml`).
        metrics: The contents of `metrics.json`; absolute paths inside its notices are found too.
        others: Further candidates, such as `base_model_name_or_path` of an adapter; what is no path is left out.

    Returns:
        The paths, longest first, so that a file is replaced before the folder that holds it.
    """
    found = {text for text in (*config.values(), *others) if isinstance(text, str) and is_local_path(text)}
    found |= {str(config[key]) for key in _PATH_SETTINGS if isinstance(config.get(key), str)}
    for notice in metrics.get("notices", ()):
        found |= {match.rstrip(".:") for match in _PATH_IN_TEXT.findall(notice)}
    for section, hub_key in ((metrics.get("dataset", {}), "hub_id"), (metrics.get("model", {}), "base_model")):
        name = section.get("name")
        if isinstance(name, str) and "/" in name and last_part(name) == published_name(section, hub_key):
            found.add(name)
    found = {path.rstrip("/\\") for path in found}
    return sorted((path for path in found if re.search(r"[/\\]", path) and last_part(path) != "folder"), key=lambda p: (-len(p), p))


def without_local_paths(text: str, paths: Iterable[str] = ()) -> str:
    """Replace each of `paths` in `text` by its last part, and this user's home folder by `~`.

    Each path is looked for in every spelling that the files of a run use: as it stands, on one line, in JSON, in the HTML of a template
    and in Markdown; what replaces it is spelled likewise.
    """
    for path in paths:
        # not inside a longer path or a word; what follows a folder (`/cat/1.jpg`) stays
        text = _replaced(text, path, last_part(path), r"(?![\w-])")
    home = str(Path.home())
    return _replaced(text, home, "~", r"(?=[/\\]|[^\w-]|$)") if len(home) > 1 else text


def _replaced(text: str, path: str, name: str, end: str) -> str:
    for pattern, replacement in {spell(path): spell(name) for spell in reversed(_SPELLINGS)}.items():
        text = re.sub(rf"(?<![\w./+=~-]){re.escape(pattern)}{end}", replacement.replace("\\", r"\\"), text)
    return text


def _in_json(text: str, ensure_ascii: bool) -> str:
    return json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]


def _in_html(text: str) -> str:
    return str(escape(one_line(text)))


# the one that changes least comes last, and wins where two spell a path alike
_SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    one_line,
    partial(_in_json, ensure_ascii=False),
    partial(_in_json, ensure_ascii=True),
    _in_html,
    markdown_text,
)
