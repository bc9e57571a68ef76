"""Markdown that says what it is given, whatever that holds."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hf_finetune.reporting.wording import one_line


def markdown_text(text: Any) -> str:
    """Escape `text` so that it stands literally in a line or table cell: no markup, formula or HTML, no cell border, one line."""
    escaped = re.sub(r"([\\`*\[\]|~$])", r"\\\1", html.escape(one_line(text), quote=False))
    # an underscore inside a word is no emphasis; those of scottish_terrier stay readable in the source
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> list[str]:
    """Return the lines of a table, or none where there are no rows.

    Args:
        header: The names of the columns.
        rows: Cells in Markdown; text has gone through `markdown_text`.
        align: A letter a column, `l` or `r`; left where it is short.
    """
    rows = list(rows)
    rule = ["---:" if side == "r" else "---" for side in align.ljust(len(header), "l")]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)] if rows else []
