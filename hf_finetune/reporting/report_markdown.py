"""`report.md`: the report as Markdown, with the plots beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hf_finetune.reporting.findings import Findings
from hf_finetune.reporting.finished_run import FinishedRun
from hf_finetune.reporting.markdown import markdown_table, markdown_text
from hf_finetune.reporting.story import Story
from hf_finetune.reporting.wording import MISSING, percent


def render_markdown(run: FinishedRun, findings: Findings, story: Story, plots: Sequence[str]) -> str:
    """Return the text of `report.md`.

    Args:
        run: The run.
        findings: What its predictions show.
        story: What there is to say.
        plots: Names of the files in `plots/`.
    """
    sections = [
        [f"# {markdown_text(story.title)}", markdown_text(story.summary), _figures(story)],
        [_bullets(story.observations)],
        _notices(story),
        _plot("Learning curves", "learning_curves.png", plots),
        _stages(story),
        _plot("Training photos as the model saw them", "batch.png", plots),
        ["## Most confused pairs", _pairs(run, findings)],
        _plot("Confusion matrix", "confusion_matrix.png", plots),
        ["## Worst mistakes", "Wrong predictions, the most confident first.", _worst(run, findings)],
        ["## Classes", "The hardest first.", _classes(story)],
        _plot("", "class_accuracy.png", plots),
        _plot("Calibration", "reliability.png", plots),
        ["## Settings", _table(("setting", "value"), story.settings + story.other_settings)],
        ["## Environment", _table(("what", "value"), story.environment)],
    ]
    return "\n\n".join(block for section in sections for block in section if block) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return "\n".join(markdown_table(header, [[markdown_text(cell) for cell in row] for row in rows]))


def _figures(story: Story) -> str:
    rows: list[tuple[str, str, str, str]] = [
        (
            figure.name,
            percent(figure.value),
            f"{percent(figure.interval.low)} to {percent(figure.interval.high)}",
            percent(figure.validation),
        )
        for figure in story.figures
    ]
    rows += [(name, value, MISSING, MISSING) for name, value, _ in story.costs]
    return _table(("figure", "value", "95 % interval", "validation"), rows)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


def _notices(story: Story) -> list[str]:
    return ["## Notices", _bullets(story.notices)] if story.notices else []


def _stages(story: Story) -> list[str]:
    return ["## What trained when", _table(("epochs", "layer groups", "parameters"), story.stages)] if story.stages else []


def _plot(heading: str, name: str, plots: Sequence[str]) -> list[str]:
    if name not in plots:
        return []
    return [f"## {heading}" if heading else "", f"![{(heading or 'Accuracy of every class').lower()}](plots/{name})"]


def _pairs(run: FinishedRun, findings: Findings) -> str:
    rows = [
        (
            run.label_names[pair.label],
            run.label_names[pair.taken_for],
            f"{pair.count} of {pair.support}",
            percent(pair.count / pair.support),
        )
        for pair in findings.pairs
    ]
    return _table(("true class", "taken for", "times", "share"), rows) or "There are none."


def _worst(run: FinishedRun, findings: Findings) -> str:
    predictions = run.predictions
    rows = [
        (
            predictions.image_ids[row],
            run.label_names[predictions.labels[row]],
            run.label_names[predictions.predicted[row]],
            percent(float(predictions.confidence[row])),
        )
        for row in findings.worst
    ]
    return _table(("image", "true class", "taken for", "confidence"), rows) or "There are none."


def _classes(story: Story) -> str:
    rows = [
        (
            row.name,
            row.support,
            percent(row.recall if row.support else None),
            percent(row.precision),
            percent(row.f1),
            f"{row.taken_for} ({row.times})" if row.times else MISSING,
        )
        for row in story.classes
    ]
    return _table(("class", "images", "recall", "precision", "F1", "most often taken for"), rows)
