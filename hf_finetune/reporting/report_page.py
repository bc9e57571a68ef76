"""`report.html`: one self-contained page; jinja2 escapes every name and value that it puts in."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from hf_finetune.reporting import plots, wording
from hf_finetune.reporting.findings import Findings
from hf_finetune.reporting.finished_run import FinishedRun
from hf_finetune.reporting.metrics import IntArray
from hf_finetune.reporting.story import Story
from hf_finetune.reporting.thumbnails import Thumbnails


@dataclass(frozen=True)
class Cell:
    """A filled cell of the drawn confusion matrix: place in pixels, strength of its colour in (0, 1], and what it says."""

    x: float
    y: float
    count: int
    kind: str
    strength: float
    text: str


def render_page(run: FinishedRun, findings: Findings, story: Story, thumbnails: Thumbnails) -> str:
    """Return the text of `report.html`.

    Args:
        run: The run.
        findings: What its predictions show.
        story: What there is to say.
        thumbnails: Where small pictures come from.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_finetune.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(percent=_percent, number=wording.number, one_line=wording.one_line, breakable=_breakable)
    pairs, mistakes = _pairs(run, findings, thumbnails), _mistakes(run, findings, thumbnails)
    return environment.get_template("report.html.jinja").render(
        story=story,
        notices=story.notices + thumbnails.notices,
        split=run.predictions.split,
        pairs=pairs,
        mistakes=mistakes,
        mistake_count=int(findings.confusion.sum() - np.trace(findings.confusion)),
        has_images=thumbnails.available,
        matrix=_matrix(findings.confusion, run.label_names),
        curves=_curves(run),
        reliability=_picture(plots.reliability_plot, findings.reliability),
        batch=_stored_picture(run.directory / "plots" / "batch.png"),
        has_model=(run.directory / "model").is_dir(),
    )


def _percent(fraction: float | None) -> str:
    return wording.percent(fraction).replace(" ", "\u00a0")


def _breakable(text: Any) -> Markup:
    """Let long names break after underscores, and keep a number and its percent sign on one line."""
    kept = re.sub(r"(\d) %", "\\1\u00a0%", str(text))
    return Markup(str(escape(kept)).replace("_", "_<wbr>"))


def _picture(draw: Any, data: Any) -> dict[str, str]:
    return {name: _png_address(draw(data, theme)) for name, theme in (("light", plots.LIGHT), ("dark", plots.DARK))}


def _png_address(figure: Figure) -> str:
    return _address(plots.png(figure))


def _stored_picture(path: Path) -> str | None:
    return _address(path.read_bytes()) if path.is_file() else None


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _curves(run: FinishedRun) -> list[tuple[str, dict[str, str]]]:
    drawn = []
    if run.curves.train_loss or run.curves.validation_loss:
        drawn.append(("Loss against epochs", _picture(plots.loss_curve, run.curves)))
    if run.curves.validation_accuracy:
        drawn.append(("Validation accuracy against epochs", _picture(plots.accuracy_curve, run.curves)))
    return drawn


def _pairs(run: FinishedRun, findings: Findings, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    pairs = []
    for pair in findings.pairs:
        label, taken_for = (wording.one_line(run.label_names[index]) for index in (pair.label, pair.taken_for))
        rows = (findings.examples.get(pair.label), pair.mistaken, findings.examples.get(pair.taken_for))
        sure = wording.percent(float(run.predictions.confidence[pair.mistaken]), 0)
        captions = ("recognised", f"taken for {taken_for}, {sure} sure", "recognised")
        heads = (label, f"{label}, taken for {taken_for}", taken_for)
        pictures = [
            {"address": thumbnails.address(run.predictions.image_ids[row]), "head": head, "caption": caption, "wrong": place == 1}
            for place, (row, head, caption) in enumerate(zip(rows, heads, captions, strict=True))
            if row is not None
        ]
        pairs.append({"label": label, "taken_for": taken_for, "count": pair.count, "support": pair.support, "pictures": pictures})
    return pairs


def _mistakes(run: FinishedRun, findings: Findings, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    predictions = run.predictions
    return [
        {
            "address": thumbnails.address(predictions.image_ids[row]),
            "image_id": predictions.image_ids[row],
            "label": wording.one_line(run.label_names[predictions.labels[row]]),
            "taken_for": wording.one_line(run.label_names[predictions.predicted[row]]),
            "confidence": float(predictions.confidence[row]),
            "truth": float(predictions.probabilities[row, predictions.labels[row]]),
        }
        for row in findings.worst
    ]


def _matrix(confusion: IntArray, label_names: list[str]) -> dict[str, Any]:
    """Lay out the confusion matrix as drawing: only filled cells, so that 102 classes stay small."""
    classes = len(confusion)
    names = [wording.one_line(name, 22) for name in label_names]
    cell = 56 if classes <= 6 else 34 if classes <= 15 else 20 if classes <= 40 else 12
    font = 13 if classes <= 15 else 11 if classes <= 40 else 9
    margin = 14 + 0.6 * font * max(map(len, names))
    support = confusion.sum(axis=1)
    share = confusion / np.maximum(1, support[:, None])
    worst = float(np.where(np.eye(classes, dtype=bool), 0, share).max()) or 1.0
    cells = []
    for row, column in np.argwhere(confusion):
        hit, count = bool(row == column), int(confusion[row, column])
        true, said = (wording.one_line(label_names[index]) for index in (row, column))
        text = f"{true}: {count} of {support[row]} right" if hit else f"{true} taken for {said}: {count} of {support[row]}"
        strength = 0.12 + 0.88 * share[row, column] / (1.0 if hit else worst)
        x, y = (round(margin + cell * int(index), 1) for index in (column, row))
        cells.append(Cell(x, y, count, "hit" if hit else "miss", round(float(strength), 2), text))
    side = round(margin + cell * classes + 2)
    return {"cells": cells, "names": names, "cell": cell, "font": font, "margin": round(margin, 1), "side": side, "counts": cell >= 20}
