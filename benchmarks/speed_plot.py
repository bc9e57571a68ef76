"""The plot of the speed benchmark: training time against the number of photos, measured and extrapolated told apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from speed_rows import PLOT_PHOTOS, ROWS

COLORS = {"stock": "tab:gray", "ours": "tab:blue"}
LABELS = {"stock": "stock Trainer", "ours": "this project"}
MARKERS = {"head_resnet18": "o", "last2_resnet18": "s"}
Points = dict[int, float]


def measured_points(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Points]:
    """Return (row, side) → photos → seconds."""
    points: dict[tuple[str, str], Points] = {}
    for record in sorted(records, key=lambda record: record["photos"]):
        points.setdefault((record["row"], record["side"]), {})[record["photos"]] = record["seconds"]
    return points


def extrapolated_points(measured: Points) -> Points:
    """Return the points of `PLOT_PHOTOS` beyond the last measured one, on the straight line through the measured ones."""
    if len(measured) < 2:
        return {}
    slope, start = np.polyfit(list(measured), list(measured.values()), 1)
    return {photos: float(start + slope * photos) for photos in PLOT_PHOTOS if photos > max(measured)}


def draw(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw one line for each row and side: filled marks where measured, hollow marks on a broken line where extrapolated."""
    figure, axes = plt.subplots(figsize=(8, 6))
    for (row, side), measured in measured_points(records).items():
        style = {"color": COLORS[side], "marker": MARKERS[row]}
        axes.plot(list(measured), list(measured.values()), **style, label=f"{LABELS[side]}: {ROWS[row].what}")
        if beyond := extrapolated_points(measured):
            last = max(measured)
            line = {last: measured[last], **beyond}
            hollow = {**style, "linestyle": "--", "fillstyle": "none", "markevery": slice(1, None)}
            axes.plot(list(line), list(line.values()), **hollow, label=f"{LABELS[side]}: the same, extrapolated")
    axes.set(xscale="log", yscale="log", xlabel="photos", ylabel="training time in s, first pass included")
    axes.set_xticks(PLOT_PHOTOS, [str(photos) for photos in PLOT_PHOTOS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
