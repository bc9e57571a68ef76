"""The one family of errors that a user of this toolkit sees.

Every message says what is wrong, the value, what is allowed, the nearest valid name, and what to do. Recipes print the message and
exit with status 2; library code raises and never exits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FinetuneError(Exception):
    """Base of every error that is raised for the person at the keyboard; its text is complete without a traceback."""


class ConfigError(FinetuneError):
    """Arguments that cannot be used, all of them at once.

    Args:
        problems: One complete sentence a problem, in the order in which a reader would mend them.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        lines = [f"{len(self.problems)} problems in the configuration:"]
        return "\n".join(lines + [f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1)])


class DataError(FinetuneError):
    """A data set, a split, a label column or an image that cannot be used."""


class ModelError(FinetuneError):
    """A checkpoint, an adapter target or an image processor that cannot be used."""


class HubError(FinetuneError):
    """The Hub refused, failed, or cannot be reached; whatever was made is on disk."""


class Interrupted(FinetuneError):
    """Ctrl-C or SIGTERM: a checkpoint was saved, and the message says how to go on."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` with the nearest of `allowed`, or an empty string where nothing is near.

    The leading space lets the hint be appended to a finished sentence.
    """
    nearest = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Return `names` as `"a, b, c"`, cut after `limit` names with a count of what was left out."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
