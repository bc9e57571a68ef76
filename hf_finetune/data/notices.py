"""The sentences with which a run says what it skipped or replaced."""

from __future__ import annotations

import logging


def note(logger: logging.Logger, notices: list[str] | None, sentence: str) -> None:
    """Log `sentence` as a warning of `logger`, and add it to `notices` where there is such a list."""
    logger.warning(sentence)
    if notices is not None:
        notices.append(sentence)


def counted(count: int, thing: str, plural: str = "") -> str:
    """Return `"1 image"` or `"3 images"`."""
    return f"{count} {thing if count == 1 else plural or thing + 's'}"
