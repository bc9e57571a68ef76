"""How figures and names are written for people: percentages, durations, sizes, settings, and text on one line."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

MISSING = "–"


def percent(fraction: float | None, digits: int = 1) -> str:
    """Write a fraction in [0, 1] as `"93.1 %"`; a dash for None and NaN."""
    return MISSING if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f} %"


def number(value: float | None) -> str:
    """Write a count or a figure with thousands separators: `"3,669"`, `"12.5"`; a dash for None."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Write seconds as `"8.4 s"`, `"12 min 24 s"` or `"2 h 05 min"`; a dash for None."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float | None) -> str:
    """Write bytes as `"512 MB"` or `"2.1 GB"` (powers of 1000); a dash for None."""
    if count is None:
        return MISSING
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def amount(value: float | None) -> str:
    """Write a large count as `"85.8 M"` or `"304 k"`; a dash for None."""
    if value is None:
        return MISSING
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k" if value >= 1e4 else f"{value:,.0f}"


def setting(value: Any) -> str:
    """Write the value of a flag as a person would type it: `none`, `true`, `0.001`, `a, b`."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value))
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def one_line(text: Any, limit: int | None = None) -> str:
    """Return `text` on one line, cut to `limit` characters with an ellipsis; what cannot be printed becomes a blank."""
    # the two joiners are invisible, but belong to the spelling of Persian and of emojis
    line = " ".join("".join(c if c.isprintable() or c in "\u200c\u200d" else " " for c in str(text)).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: into a temporary file beside it, then renamed over it.

    Raises:
        OSError: When the folder cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes files that only their owner can read
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
