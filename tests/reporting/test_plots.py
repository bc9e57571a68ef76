"""The plots: what is drawn, at every size, in both themes, with any class name; and the files of a whole report."""

import io
import stat

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_finetune.reporting import plots
from hf_finetune.reporting.finished_run import Curves
from hf_finetune.reporting.metrics import reliability
from hf_finetune.reporting.report import build_report
from tests.finished_run import draw_image

CURVES = Curves([(0.5, 2.0), (1.0, 1.5)], [(1.0, 1.4), (2.0, 1.2)], [(1.0, 0.6), (2.0, 0.7)], 2.0)
HOSTILE = ["$\\frac{$ and $", "a|b", "<script>", "two\nlines", "x" * 200, "$x_1$", ""]


def confusion_of(classes: int) -> np.ndarray:
    confusion = np.eye(classes, dtype=np.int64) * 40
    confusion[0, 1] = 7
    return confusion


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.convert("RGB")


@pytest.mark.parametrize("classes", [2, 37, 102])
def test_confusion_matrix_grows_with_the_classes(classes):
    names = [f"a_rather_long_breed_name_{index}" for index in range(classes)]
    figure = plots.confusion_plot(confusion_of(classes), names)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [plots.one_line(name, 24) for name in names]
    counts = [text.get_text() for text in axes.texts]
    assert counts == (["40", "7", *["40"] * (classes - 1)] if classes <= 40 else [])
    image = opened(plots.png(figure))
    # a label needs about ten pixels
    assert image.height > 10 * classes
    assert image.width < 3000


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("draw", [plots.learning_curves, plots.loss_curve, plots.accuracy_curve])
def test_learning_curves_mark_the_best_epoch(draw, theme):
    figure = draw(CURVES, theme)
    labels = [text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()]
    assert "best epoch (2)" in labels
    assert opened(plots.png(figure)).getpixel((1, 1)) == tuple(int(theme.paper[at : at + 2], 16) for at in (1, 3, 5))


@pytest.mark.parametrize(
    "curves", [Curves([], [], [], None), Curves([(1.0, 2.0)], [], [], None), Curves([], [(1.0, 0.4)], [(1.0, 0.4)], 1.0)]
)
def test_learning_curves_do_with_what_was_logged(curves):
    assert opened(plots.png(plots.learning_curves(curves)))


def test_reliability_plot_shows_counts():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    figure = plots.reliability_plot(reliability(probabilities, np.array([0, 1, 0])))
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert sum(heights) == 3
    assert opened(plots.png(figure))


def test_class_plot_leaves_out_absent_classes_and_puts_the_hardest_on_top():
    confusion = np.array([[5, 0, 0], [2, 2, 0], [0, 0, 0]])
    axes = plots.class_accuracy_plot(confusion, ["easy", "hard", "absent"]).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["easy (5)", "hard (4)"]


def test_hostile_names_are_drawn_as_they_are():
    classes = len(HOSTILE)
    for figure in (plots.confusion_plot(confusion_of(classes), HOSTILE), plots.class_accuracy_plot(confusion_of(classes), HOSTILE)):
        assert opened(plots.png(figure))


def test_same_plot_same_bytes_and_no_global_state():
    before = dict(matplotlib.rcParams)
    first, second = (plots.png(plots.confusion_plot(confusion_of(5), list("abcde"))) for _ in range(2))
    assert first == second
    assert dict(matplotlib.rcParams) == before


def test_report_files_are_complete_small_and_the_same_each_time(run_directory):
    names = ["class_accuracy.png", "confusion_matrix.png", "learning_curves.png", "reliability.png"]
    files = [run_directory / "report.html", run_directory / "report.md", *(run_directory / "plots" / name for name in names)]
    assert build_report(run_directory, draw_image) == files[0]
    assert sorted(file.name for file in (run_directory / "plots").iterdir()) == names
    assert files[0].stat().st_size < 3_000_000
    assert not list(run_directory.glob(".*")), "no temporary file is left"
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o644, "others may read it"
    first = [file.read_bytes() for file in files]
    build_report(run_directory, draw_image)
    assert [file.read_bytes() for file in files] == first


def test_the_range_test_marks_its_proposal_and_labels_rates_as_plain_numbers():
    figure = plots.range_test_plot([1e-4, 1e-3, 1e-2, 1e-1], [2.0, 1.5, 1.0, 3.0], [2.0, 1.8, 1.4, 2.0], 1e-3)
    opened(plots.png(figure))
    axes = figure.axes[0]
    assert {"1e-04", "1e-02"} <= {text.get_text() for text in axes.get_xticklabels()}
    assert "proposed: 1.0e-03" in [text.get_text() for text in axes.get_legend().get_texts()]
    without = plots.range_test_plot([1e-4, 1e-3], [2.0, 2.1], [2.0, 2.1], None)
    assert len(without.axes[0].get_legend().get_texts()) == 2


@pytest.mark.parametrize("count", [1, 8, 11])
def test_a_batch_is_drawn_with_a_caption_for_each_photo(count):
    photos = [(np.full((8, 8, 3), 20 * row, np.uint8), f"0.{row} cat\n0.1 {'dog' * 20}") for row in range(count)]
    figure = plots.batch_plot(photos)
    opened(plots.png(figure))
    captions = [axes.get_title() for axes in figure.axes if axes.images]
    assert len(captions) == count
    assert captions[0].startswith("0.0 cat\n0.1 dogdog")
    assert all(len(line) <= 24 for caption in captions for line in caption.splitlines())
