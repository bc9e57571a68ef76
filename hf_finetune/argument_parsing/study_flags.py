"""The flags of a recipe that can run its whole comparison: `--study`, `--seeds 0 1 2`, `--cells 0-3`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from hf_finetune.argument_parsing.fields import Mismatch, shown

STUDY_HELP = {
    "--study": "Run the whole comparison of this recipe, one run after the other, in place of a single run.",
    "--seeds SEED ...": "Seeds of the comparison, each a run of every cell. (default: 0 1 2; with --preset demo one or two of them)",
    "--cells FIRST-LAST": "Make these cells alone, counted from 0, such as 0-3 or 2; machines can share a study so. (default: all)",
}


@dataclasses.dataclass
class StudyFlags:
    """What a command line says of a study.

    Attributes:
        study: Whether the comparison was asked for.
        seeds: Of its runs; None for those of the recipe.
        cells: Which of its cells are made here; None for all.
        preset: What `--preset` names, or None.
    """

    study: bool = False
    seeds: tuple[int, ...] | None = None
    cells: slice | None = None
    preset: str | None = None

    def readers(self) -> dict[str, Callable[[list[str]], None]]:
        """Return flag → what takes the words behind it; it raises `Mismatch` where it cannot."""
        return {"study": self._take_study, "seeds": self._take_seeds, "cells": self._take_cells}

    def _take_study(self, texts: list[str]) -> None:
        if texts:
            raise Mismatch(f"takes no value, not {shown('', texts[0])}.")
        self.study = True

    def _take_seeds(self, texts: list[str]) -> None:
        words = [word for text in texts for word in text.split(",") if word]
        if not words or not all(re.fullmatch(r"\d{1,9}", word) for word in words) or len(set(words)) < len(words):
            raise Mismatch(f"must be different whole numbers, such as 0 1 2, not {shown('', ' '.join(texts))}.")
        self.seeds = tuple(map(int, words))

    def _take_cells(self, texts: list[str]) -> None:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", " ".join(texts))
        if match is None or (match[2] and int(match[1]) > int(match[2])):
            raise Mismatch(f"must be numbers of cells, such as 0-3 or 2, not {shown('', ' '.join(texts))}.")
        self.cells = slice(int(match[1]), int(match[2] or match[1]) + 1)
