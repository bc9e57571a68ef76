"""The report of a run: `report.html`, which a person opens, `report.md`, which a code host shows, and `plots/*.png`."""

from __future__ import annotations

import logging
from pathlib import Path

from hf_finetune.reporting import plots
from hf_finetune.reporting.findings import Findings, find
from hf_finetune.reporting.finished_run import FinishedRun, read_run
from hf_finetune.reporting.report_markdown import render_markdown
from hf_finetune.reporting.report_page import render_page
from hf_finetune.reporting.story import tell
from hf_finetune.reporting.thumbnails import ImageSource, Thumbnails
from hf_finetune.reporting.wording import write_atomically

logger = logging.getLogger(__name__)


def build_report(directory: str | Path, images: ImageSource | None = None) -> Path:
    """Write the report of a finished run beside its files.

    Reads `metrics.json` and `predictions.parquet`, and `config.yaml` and `trainer_state.json` where they exist. The same files give the
    same report, byte for byte.

    Args:
        directory: The `--output_dir` of a finished run.
        images: Maps (split, image id) to the image, for the thumbnails of `report.html`; without it the page has none and says so. An
            image that cannot be read is left out and named in the page.

    Returns:
        Path of `report.html`, one file that needs neither network nor the other files.

    Raises:
        DataError: `directory` is no finished run: a file is missing, cannot be read, or does not fit the others.
    """
    run = read_run(directory)
    findings = find(run.predictions)
    story = tell(run, findings)
    names = _write_plots(run, findings)
    write_atomically(run.directory / "report.md", render_markdown(run, findings, story, names))
    thumbnails = Thumbnails(images, run.predictions.split)
    path = run.directory / "report.html"
    write_atomically(path, render_page(run, findings, story, thumbnails))
    for notice in thumbnails.notices:
        logger.warning(notice)
    return path


def _write_plots(run: FinishedRun, findings: Findings) -> list[str]:
    figures = {
        "confusion_matrix.png": plots.confusion_plot(findings.confusion, run.label_names),
        "class_accuracy.png": plots.class_accuracy_plot(findings.confusion, run.label_names),
        "reliability.png": plots.reliability_plot(findings.reliability),
    }
    if run.curves:
        figures["learning_curves.png"] = plots.learning_curves(run.curves)
    folder = run.directory / "plots"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        write_atomically(folder / name, plots.png(figure))
    made_in_training = [name for name in ("batch.png",) if (folder / name).is_file()]
    return [*figures, *made_in_training]
