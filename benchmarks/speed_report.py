"""The report of the speed benchmark: one table, a sentence on each row, the raw figures."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from speed_rows import AIMS, ROWS, SIDES, absence

Record = dict[str, Any]
HEADER = ("row", "side", "images/s", "wall s", "peak MiB", "x stock", "of raw limit")
SIDE_NAMES = {"stock": "stock Trainer", "ours": "this project", "bf16": "its --bf16", "raw": "raw step", "fastai": "fastai"}
PACKAGES = ("torch", "transformers", "timm", "peft", "fastai")
METHOD = """\
Each side of each row runs in a process of its own, in turn, round by round.

- *stock Trainer*: `transformers.Trainer` as its public image-classification example sets it up (fp32, transforms of torchvision in the
  training process), with `peft` for LoRA.
- *its --bf16*: this project with `--bf16`, where the processor has bfloat16 and float32 is the default all the same.
- *raw step*: forward, cross-entropy, backward and AdamW (for `evaluation`, forward alone) on one whole batch that is ready, with the
  precision, memory layout and trainable parameters of this project. Loading photos can only take away from it; features that are computed
  once can beat it, and so can BatchNorm that is folded into convolutions. Its wall time is that of all images at its rate.
- *fastai*: `vision_learner`, which keeps BatchNorm trainable where it freezes.

Wall time is that of the training call, reading photos included; loading the model and checking the data set are not in it. What a
Trainer does before it begins and its first step are left out as a warm-up, except in the rows that train for several epochs without
augmentation: there everything counts, filling the feature cache, which is empty at first, too. The rows with random views read every
photo once, so no decoded photo is read again in them. Evaluation warms up on one batch of other photos. Memory is the peak resident
memory of the measuring process; processes that load photos come on top, the largest that had ended is in `speed.csv`."""


class Results:
    """The records of a benchmark, by row and side.

    Args:
        records: One a measurement, those of the plot left out.
        failed: Sides of rows that could not be measured, with the reason.
    """

    def __init__(self, records: Iterable[Record], failed: dict[tuple[str, str], str]) -> None:
        self.failed = failed
        self.by_round: dict[tuple[str, str], dict[int, Record]] = {}
        for record in records:
            self.by_round.setdefault((record["row"], record["side"]), {})[record["round"]] = record

    def rows(self) -> list[str]:
        """Return the rows that were measured, in the order of `ROWS`."""
        return [row for row in ROWS if any(measured == row for measured, _ in self.by_round)]

    def all(self, row: str, side: str) -> list[Record]:
        """Return the records of one side of a row, by round."""
        return [record for _, record in sorted(self.by_round.get((row, side), {}).items())]

    def any_record(self, row: str) -> Record:
        """Return one record of a row."""
        return next(record for side in SIDES for record in self.all(row, side))

    def median(self, row: str, side: str, of: str) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(figure(record, of) for record in self.all(row, side))

    def ratios(self, row: str, side: str, other: str, of: str) -> list[float]:
        """Return side / other of a figure, for each round that has both."""
        sides, others = (self.by_round.get((row, name), {}) for name in (side, other))
        return [figure(sides[number], of) / figure(others[number], of) for number in sorted(sides.keys() & others.keys())]


def figure(record: Record, name: str) -> float:
    """Return a figure of a record; `rate` is images a second, `wall` the seconds that all images of the row take."""
    rate = record["images"] / record["seconds"]
    if name == "rate":
        return rate
    if name == "wall":
        return record["photos"] * ROWS[record["row"]].epochs / rate if record["side"] == "raw" else record["seconds"]
    return record[name]


def table(results: Results) -> str:
    """Return the table, as plain text that is Markdown too."""
    lines = [cells(results, row, side) for row in results.rows() for side in SIDES if side != "bf16" or results.all(row, side)]
    widths = [max(len(line[column]) for line in (HEADER, *lines)) for column in range(len(HEADER))]
    texts = [
        "| " + " | ".join(align(cell, width, column) for column, (cell, width) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in (HEADER, *lines)
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if column < 2 else ":") for column, width in enumerate(widths)) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


def align(cell: str, width: int, column: int) -> str:
    """Return a cell of the table: names to the left, figures to the right."""
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def cells(results: Results, row: str, side: str) -> tuple[str, ...]:
    """Return one line of the table."""
    if not results.all(row, side):
        reason = absence(ROWS[row], side) or results.failed.get((row, side), "not measured")
        return (row, SIDE_NAMES[side], reason, *[""] * (len(HEADER) - 3))
    figures = [f"{results.median(row, side, 'rate'):.1f}", f"{results.median(row, side, 'wall'):.1f}"]
    figures += [f"{results.median(row, side, 'peak_mib'):.0f}"]
    figures += [
        f"{statistics.median(ratios):.2f}" if (ratios := results.ratios(row, side, other, "rate")) else "" for other in ("stock", "raw")
    ]
    return (row, SIDE_NAMES[side], *figures)


def sentence(results: Results, row: str) -> str:
    """Return what is to be said of this project in a row, with the aims beside it."""
    aims, photos = AIMS.get(row, {}), results.any_record(row)["photos"]
    parts = [
        judged("times the stock rate", results.ratios(row, "ours", "stock", "rate"), aims.get("stock")),
        judged("of the raw limit", results.ratios(row, "ours", "raw", "rate"), aims.get("raw")),
        judged("times the stock memory", results.ratios(row, "ours", "stock", "peak_mib"), aims.get("memory"), at_most=True),
        judged("times its own rate with --bf16", results.ratios(row, "bf16", "ours", "rate"), None),
    ]
    raw = results.all(row, "raw")
    computed = [f"{raw[0]['precision']}, {raw[0]['layout']}"] if raw else []
    rounds = len(results.all(row, "ours"))
    photos = f"{photos} photos, {rounds} {'round' if rounds == 1 else 'rounds'}"
    return f"- `{row}`, {ROWS[row].what}, {photos}: {'; '.join([part for part in parts if part] + computed)}."


def judged(what: str, ratios: Sequence[float], aim: float | None, *, at_most: bool = False) -> str:
    """Return a ratio with its spread over the rounds, and whether it meets its aim."""
    if not ratios:
        return ""
    middle = statistics.median(ratios)
    text = f"{middle:.2f} {what} [{min(ratios):.2f}, {max(ratios):.2f}]"
    if aim is None:
        return text
    met = middle <= aim if at_most else middle >= aim
    return f"{text}, aim {aim:g} or {'less' if at_most else 'more'}: {'met' if met else 'not met'}"


def machine() -> str:
    """Return processor, cores, and which instructions for bfloat16 it has."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = set(text.split())
    units = {"AMX-BF16": "amx_bf16", "AVX512-BF16": "avx512_bf16"}
    has = ", ".join(f"{'with' if flag in flags else 'without'} {unit}" for unit, flag in units.items())
    return f"{name[1] if name else platform.processor() or platform.machine()}, {os.cpu_count()} cores, {has}"


def version(package: str) -> str:
    """Return a package with its version."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def write_markdown(results: Results, path: Path, command: str, notes: Sequence[str], *, plot: bool) -> None:
    """Write the report, `notes` on these measurements with it."""
    device = results.any_record(results.rows()[0])["device"]
    lines = [
        "# Speed",
        f"Generated on {time.strftime('%Y-%m-%d')} by `{command}`.",
        f"Machine: {machine()}{'' if device == 'cpu' else f', {device}'}. Versions: Python {platform.python_version()}, "
        f"{', '.join(map(version, PACKAGES))}.",
        "A figure is the median of its rounds; a ratio is the median of the ratios within a round, not the quotient of two figures.",
        table(results),
        "This project in each row; in brackets the least and the greatest of the rounds:",
        "\n".join(sentence(results, row) for row in results.rows()),
        *(["\n".join(f"- {note}" for note in notes)] if notes else []),
        *(["![Training time against the number of photos](speed.png)"] if plot else []),
        "## Method",
        METHOD,
    ]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Write every measurement, those of the plot too."""
    columns = list(dict.fromkeys(key for record in records for key in record if key not in ("dataset", "model")))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
