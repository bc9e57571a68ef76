"""Plots of a run as matplotlib figures, in a light and a dark theme; no pyplot, so no global state and no display is needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from hf_finetune.reporting.finished_run import Curves
from hf_finetune.reporting.intervals import Interval
from hf_finetune.reporting.metrics import FloatArray, IntArray, Reliability, class_scores
from hf_finetune.reporting.wording import one_line


@dataclass(frozen=True)
class Theme:
    """Colours of a plot; the same as those of the page (`report.css`)."""

    paper: str
    ink: str
    muted: str
    grid: str
    hit: str
    miss: str
    quiet: str


LIGHT = Theme(paper="#ffffff", ink="#1d2433", muted="#5d6679", grid="#e4e8f0", hit="#2f6fdb", miss="#d9622b", quiet="#a9b4c8")
DARK = Theme(paper="#171c28", ink="#e7ebf3", muted="#9ba6bb", grid="#2b3344", hit="#6ea4ff", miss="#ff9560", quiet="#5b6780")


def learning_curves(curves: Curves, theme: Theme = LIGHT) -> Figure:
    """Draw loss and validation accuracy against epochs side by side, the best epoch marked."""
    figure, (left, right) = _axes(10, 3.8, theme, columns=2)
    _draw_loss(left, curves, theme)
    _draw_accuracy(right, curves, theme)
    return figure


def loss_curve(curves: Curves, theme: Theme = LIGHT) -> Figure:
    """Draw training and validation loss against epochs."""
    figure, (axes,) = _axes(5.4, 3.6, theme)
    _draw_loss(axes, curves, theme)
    return figure


def accuracy_curve(curves: Curves, theme: Theme = LIGHT) -> Figure:
    """Draw validation accuracy against epochs."""
    figure, (axes,) = _axes(5.4, 3.6, theme)
    _draw_accuracy(axes, curves, theme)
    return figure


def confusion_plot(confusion: IntArray, label_names: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Draw a confusion matrix, readable from 2 to about 100 classes.

    Colour is the share of the row (the true class); hits and mistakes have scales of their own, so that rare mistakes are seen. Counts
    are written into the cells up to 40 classes.

    Args:
        confusion: Counts, shape [C, C], rows are true classes.
        label_names: The C class names.
        theme: Colours.
    """
    classes = len(confusion)
    side = float(np.clip(2.4 + 0.27 * classes, 4.2, 19))
    figure, (axes,) = _axes(side, side, theme)
    share = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    diagonal = np.eye(classes, dtype=bool)
    for shown, colour in ((diagonal, theme.hit), (~diagonal, theme.miss)):
        cells = np.ma.masked_where(~shown | (confusion == 0), share)
        top = float(cells.max()) if cells.count() else 1.0
        axes.imshow(
            cells,
            cmap=LinearSegmentedColormap.from_list("share", [theme.paper, colour]),
            vmin=-0.15 * top,
            vmax=top,
            interpolation="nearest",
        )
    size = 11 if classes <= 12 else 8 if classes <= 50 else 6
    names = [one_line(name, 24) for name in label_names]
    axes.set_xticks(range(classes), names, rotation=45 if classes <= 5 else 90, fontsize=size)
    axes.set_yticks(range(classes), names, fontsize=size)
    if classes <= 40:
        _write_counts(axes, confusion, share, theme, 12 if classes <= 12 else 7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    # two line collections draw much faster than a grid on 200 minor ticks
    borders = np.arange(1, classes) - 0.5
    axes.vlines(borders, -0.5, classes - 0.5, colors=theme.grid, linewidths=0.5)
    axes.hlines(borders, -0.5, classes - 0.5, colors=theme.grid, linewidths=0.5)
    return figure


def reliability_plot(bins: Reliability, theme: Theme = LIGHT) -> Figure:
    """Draw accuracy against confidence in bins, the gap to perfect calibration, and below it how many images each bin holds."""
    figure, (upper, lower) = _axes(5.4, 4.8, theme, rows=2, sharex=True, height_ratios=[3, 1])
    width, centres, filled = 1 / len(bins.count), (bins.edges[:-1] + bins.edges[1:]) / 2, bins.count > 0
    upper.bar(centres[filled], bins.accuracy[filled], width * 0.9, color=theme.hit, label="accuracy")
    # the gap is hatched between the bar and the mean confidence of its bin, above the bar or across it
    gaps = (bins.confidence - bins.accuracy)[filled]
    hatched: dict[str, Any] = {
        "facecolor": "none",
        "edgecolor": theme.miss,
        "hatch": "////",
        "linewidth": 1.2,
        "label": "gap to confidence",
    }
    upper.bar(centres[filled], gaps, width * 0.9, bottom=bins.accuracy[filled], **hatched)
    upper.plot([0, 1], [0, 1], color=theme.ink, linestyle="--", linewidth=1.2, zorder=3, label="perfectly calibrated")
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy")
    lower.bar(centres, bins.count, width * 0.9, color=theme.quiet)
    lower.set_xlim(0, 1)
    lower.set_ylabel("images")
    lower.set_xlabel("confidence")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (upper, lower):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(True, axis="y", color=theme.grid)
    upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _legend(upper, theme, "upper left")
    return figure


def class_accuracy_plot(confusion: IntArray, label_names: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Draw the accuracy (recall) of every class that occurs, lowest on top, with its number of images."""
    scores = class_scores(confusion)
    order = [int(index) for index in np.argsort(-scores.recall, kind="stable") if scores.support[index] > 0]
    figure, (axes,) = _axes(8, max(2.4, 0.24 * len(order) + 1), theme)
    overall = float(np.trace(confusion) / max(1, confusion.sum()))
    colours = [theme.hit if scores.recall[index] >= overall else theme.miss for index in order]
    axes.barh(range(len(order)), scores.recall[order], color=colours, height=0.72)
    axes.axvline(overall, color=theme.ink, linewidth=1.2, linestyle="--", label=f"all images: {100 * overall:.1f} %")
    axes.set_yticks(range(len(order)), [f"{one_line(label_names[index], 28)} ({scores.support[index]})" for index in order], fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("accuracy within the class (images of it)")
    axes.grid(True, axis="x", color=theme.grid)
    _legend(axes, theme, "lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    return figure


def compared_cells(cells: Sequence[tuple[str, float, Interval, Interval | None]], title: str, theme: Theme = LIGHT) -> Figure:
    """Draw the accuracy of every cell of a study with its interval, and beside it the difference from its reference, which is paired.

    Args:
        cells: Name, accuracy in [0, 1] and interval, and the interval of the difference, None for a reference; at least one.
        title: Heads the figure.
        theme: Colours; what is a reference, and what is no different from it, is grey.
    """
    compared = any(difference is not None for *_, difference in cells)
    figure, panels = _axes(9.6 if compared else 7.2, 1.6 + 0.42 * len(cells), theme, columns=1 + compared, sharey=True)
    for row, (_, accuracy, interval, difference) in enumerate(cells):
        _draw_interval(panels[0], row, accuracy, interval, theme.ink if difference is None else theme.hit, theme)
        if difference is not None:
            clear = difference.low > 0 or difference.high < 0
            middle = (difference.low + difference.high) / 2
            _draw_interval(panels[1], row, middle, difference, theme.hit if clear else theme.quiet, theme, dot=False)
    panels[0].set_yticks(range(len(cells)), [one_line(name, 40) for name, *_ in cells])
    panels[0].set_ylim(len(cells) - 0.5, -0.5)
    panels[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    panels[0].set_xlabel("test accuracy, 95 % interval")
    for axes in panels[1:]:
        axes.axvline(0, color=theme.ink, linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.3g}" if abs(value) > 1e-9 else "0"))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], min_n_ticks=2))
        axes.set_xlabel("points above its reference, paired, 95 % interval")
    figure.suptitle(one_line(title, 100), color=theme.ink, fontsize=11)
    return figure


def _draw_interval(axes: Axes, row: int, value: float, interval: Interval, colour: str, theme: Theme, *, dot: bool = True) -> None:
    axes.plot([interval.low, interval.high], [row, row], color=theme.quiet if dot else colour, linewidth=3, solid_capstyle="round")
    if dot:
        axes.plot(value, row, "o", color=colour, markersize=8)


def batch_plot(photos: Sequence[tuple[np.ndarray, str]], theme: Theme = LIGHT) -> Figure:
    """Draw photos of a training batch in rows of up to eight.

    Args:
        photos: Pixels [H, W, 3] uint8 and a caption each; at least one.
        theme: Colours.
    """
    columns = min(8, len(photos))
    rows = -(-len(photos) // columns)
    figure, grid = _axes(1.4 * columns, 1.7 * rows, theme, rows, columns)
    for axes in grid:
        axes.axis("off")
    for axes, (pixels, caption) in zip(grid, photos, strict=False):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title("\n".join(one_line(line, 24) for line in caption.splitlines()), fontsize=6, color=theme.muted)
    return figure


def range_test_plot(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], proposal: float | None, theme: Theme = LIGHT
) -> Figure:
    """Draw the loss of a range test against the learning rate of each step, with the rate that it proposes."""
    figure, (axes,) = _axes(7.2, 4, theme)
    axes.plot(rates, losses, color=theme.quiet, linewidth=1, label="loss of a step")
    axes.plot(rates, smoothed, color=theme.hit, linewidth=2, label="smoothed")
    if proposal is not None:
        axes.axvline(proposal, color=theme.miss, linewidth=1.2, linestyle=":", label=f"proposed: {proposal:.1e}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.0e}"))  # png() draws no formulas, which the default ones are
    top = 1.5 * max(smoothed[0], 1e-9)
    axes.set_ylim(0, max(top, min(max(smoothed), 2 * top)))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(True, axis="y", color=theme.grid)
    _legend(axes, theme, "lower left")
    return figure


def png(figure: Figure, dpi: int = 144) -> bytes:
    """Render a figure as PNG; the same figure gives the same bytes."""
    # class names are data: a $ in them is no formula
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()


def _axes(width: float, height: float, theme: Theme, rows: int = 1, columns: int = 1, **layout: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.paper)
    grid = list(figure.subplots(rows, columns, squeeze=False, **layout).ravel())
    for axes in grid:
        axes.set_facecolor(theme.paper)
        axes.set_axisbelow(True)
        axes.tick_params(colors=theme.muted, labelsize=9, length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(theme.grid)
        for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
            label.set_color(theme.ink)
    return figure, grid


def _draw_loss(axes: Axes, curves: Curves, theme: Theme) -> None:
    if curves.train_loss:
        axes.plot(*zip(*curves.train_loss, strict=True), color=theme.quiet, linewidth=1.5, label="training")
    if curves.validation_loss:
        axes.plot(*zip(*curves.validation_loss, strict=True), color=theme.hit, linewidth=2, marker="o", markersize=4, label="validation")
    axes.set_ylabel("loss")
    _finish_curve(axes, curves, theme, "upper right")


def _draw_accuracy(axes: Axes, curves: Curves, theme: Theme) -> None:
    points = curves.validation_accuracy
    if points:
        axes.plot(*zip(*points, strict=True), color=theme.hit, linewidth=2, marker="o", markersize=4, label="validation")
    for epoch, accuracy in [point for point in points if point[0] == curves.best_epoch]:
        axes.plot([epoch], [accuracy], marker="o", markersize=10, markerfacecolor="none", color=theme.miss, markeredgewidth=2)
        axes.annotate(
            f"{100 * accuracy:.1f} %",
            (epoch, accuracy),
            textcoords="offset points",
            xytext=(0, -18),
            ha="center",
            color=theme.ink,
            fontsize=9,
        )
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _finish_curve(axes, curves, theme, "lower right")


def _finish_curve(axes: Axes, curves: Curves, theme: Theme, legend: str) -> None:
    if curves.best_epoch is not None:
        axes.axvline(curves.best_epoch, color=theme.miss, linewidth=1.2, linestyle=":", label=f"best epoch ({curves.best_epoch:g})")
    axes.set_xlabel("epoch")
    axes.margins(x=0.04, y=0.14)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(True, axis="y", color=theme.grid)
    _legend(axes, theme, legend)


def _legend(axes: Axes, theme: Theme, place: str, **layout: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        look: dict[str, Any] = {"loc": place, "framealpha": 0.85, "facecolor": theme.paper, "edgecolor": "none", "fontsize": 9}
        axes.legend(labelcolor=theme.ink, **look, **layout)


def _write_counts(axes: Axes, confusion: IntArray, share: FloatArray, theme: Theme, size: int) -> None:
    for row, column in np.argwhere(confusion):
        # mistakes are seldom dark, hits usually are
        dark = row == column and share[row, column] > 0.5
        colour = theme.paper if dark else theme.ink
        axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=size)
