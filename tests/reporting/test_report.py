"""build_report: files, words, bad input, hostile names, determinism."""

import json
import logging
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from hf_finetune.errors import DataError
from hf_finetune.reporting import plots, wording
from hf_finetune.reporting.findings import find
from hf_finetune.reporting.finished_run import read_run
from hf_finetune.reporting.markdown import markdown_text
from hf_finetune.reporting.report import build_report
from tests.finished_run import draw_image, make_predictions, write_predictions

CUT_OFF = "The run was cut off or the file was edited; run it again."
HOSTILE = [
    "<script>alert(1)</script>",
    "quote\"s and 's",
    "pipe|pipe",
    "two\nlines",
    "*bold* _it_ `code` [a](b)",
    "&amp; & {{ 7*7 }} {% x %}",
]


class Page(HTMLParser):
    """Collects text, tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).replace("\u00a0", " ").split())


def page_of(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def blank_plots(monkeypatch):
    """Drawing is tested in test_plots.py and costs most of the time of a report."""
    monkeypatch.setattr(plots, "png", lambda figure: b"PNG")


def test_page_tells_the_run(run_directory):
    metrics = json.loads((run_directory / "metrics.json").read_text())
    page = page_of(build_report(run_directory, draw_image))
    classes = len(metrics["dataset"]["label_names"])
    assert f"{100 * metrics['test']['accuracy']:.1f} % of 400 test images named correctly" in page.words
    assert (
        "A LoRA adapter of rank 8 on attention and a new head were trained on google/vit-base-patch16-224-in21k "
        f"for 5 epochs on 2,944 images of oxford_pets ({classes} classes); "
        "the best epoch was chosen on 200 validation images, and scored once on 400 test images."
    ) in page.words
    assert "12 min 24 s" in page.words
    assert "304 k" in page.words
    assert ("Top-5 accuracy" in page.words) == (classes > 5)


def test_page_has_a_row_a_class_and_real_thumbnails(run_directory):
    page = page_of(build_report(run_directory, draw_image))
    classes = len(json.loads((run_directory / "metrics.json").read_text())["dataset"]["label_names"])
    assert sum("data-value" in attributes and attributes.get("class") == "recall" for _, attributes in page.tags) == classes
    photos = [attributes for tag, attributes in page.tags if tag == "img" and attributes["src"].startswith("data:image/jpeg")]
    assert len(photos) >= 12
    assert all(photo["alt"] for photo in photos)


def test_page_is_self_contained(run_directory):
    page = page_of(build_report(run_directory, draw_image))
    addresses = [attributes[key] for _, attributes in page.tags for key in ("src", "href", "srcset") if key in attributes]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in (run_directory / "report.html").read_text()


def test_inner_links_lead_somewhere(run_directory):
    page = page_of(build_report(run_directory))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"} <= targets


def test_without_images_the_page_says_why(make_run):
    page = page_of(build_report(make_run(["a", "b", "c"])))
    assert not [tag for tag, attributes in page.tags if tag == "img" and attributes["src"].startswith("data:image/jpeg")]
    assert (
        "No thumbnails: this report was made without access to the images. "
        "Make it again where the data set is, with build_report(directory, images=...)."
    ) in page.words


def test_unreadable_images_are_named(make_run, caplog):
    run = make_run([f"breed {index}" for index in range(5)])
    refused = []

    def images(split: str, image_id: str) -> Image.Image:
        if not refused or refused[0] == image_id:
            refused[:] = [image_id]
            raise OSError("cannot identify image file")
        return draw_image(split, image_id)

    with caplog.at_level(logging.WARNING, logger="hf_finetune"):
        page = page_of(build_report(run, images))
    notice = f"1 thumbnail could not be made, since the image cannot be read: {refused[0]}."
    assert notice in page.words
    assert caplog.messages == [notice]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_any_kind_of_image_becomes_a_thumbnail(make_run, mode):
    page = page_of(build_report(make_run(["a", "b"]), lambda split, image_id: Image.new(mode, (300, 7))))
    assert "could not be made" not in page.words


def test_evaluation_only_run(make_run):
    run = make_run(["a", "b", "c"], trained=False, train=None)
    page = page_of(build_report(run))
    assert (
        "google/vit-base-patch16-224-in21k was scored once on 400 test images of oxford_pets (3 classes); nothing was trained" in page.words
    )
    assert "There are no learning curves: this run only evaluated." in page.words
    assert not (run / "plots" / "learning_curves.png").exists()
    assert "learning_curves.png" not in (run / "report.md").read_text()


def test_validation_stands_in_for_an_unscored_test_split(make_run):
    run = make_run(["a", "b", "c"], test=None)
    assert "of 200 validation images named correctly" in page_of(build_report(run)).words


@pytest.mark.parametrize(
    ("changes", "config", "sentence"),
    [
        ({"model": {"name": "tiny_vit", "adapter": None}}, {"freeze": "head"}, "A new head was trained on the frozen tiny_vit for"),
        ({"model": {"name": "tiny_vit", "adapter": None}}, {}, "tiny_vit was trained in full for"),
        ({"model": {"name": "tiny_vit", "adapter": {"type": "lora", "dora": True}}}, {}, "A DoRA adapter and a new head were trained"),
        ({"model": {"name": "../models/some_vit", "adapter": None}}, {}, "some_vit was trained in full for"),
    ],
)
def test_summary_says_what_was_trained(make_run, changes, config, sentence):
    run = make_run(["a", "b"], **changes)
    (run / "config.yaml").write_text(json.dumps(config))
    assert sentence in page_of(build_report(run)).words


def test_perfect_run(make_run):
    run = make_run(["a", "b"])
    labels = np.arange(20) % 2
    certain = np.eye(2, dtype=np.float32)[labels]
    write_predictions(run, {"test": (certain, labels), "validation": (certain, labels)})
    page = page_of(build_report(run, draw_image))
    assert page.words.count("There are none: every image was named correctly.") == 2


def test_hostile_names_stay_text(make_run):
    run = make_run(HOSTILE, notices=["<img src=x onerror=alert(1)> left out"])
    page = page_of(build_report(run, draw_image))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    for name in HOSTILE:
        assert " ".join(name.split()) in page.words


def test_hostile_names_do_not_break_markdown(make_run):
    run = make_run(HOSTILE)
    build_report(run)
    text = (run / "report.md").read_text()
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    page = Page(rendered)
    assert "script" not in [tag for tag, _ in page.tags]
    assert not [tag for tag, _ in page.tags if tag in ("em", "strong", "code", "a")]
    for name in HOSTILE:
        assert " ".join(name.split()) in page.words
    rows = re.findall(r"<tr>(.*?)</tr>", rendered, re.S)
    assert {len(re.findall("<t[hd]", row)) for row in rows} == {2, 4, 6}


def test_no_credential_reaches_the_report(make_run):
    run = make_run(["a", "b"])
    (run / "config.yaml").write_text("hub_token: hf_secret123\npush_to_hub_token: hf_secret123\nseed: 42\n")
    path = build_report(run)
    assert "hf_secret123" not in path.read_text() + (run / "report.md").read_text()


def test_best_epoch_is_the_one_that_was_kept(make_run):
    run = make_run(["a", "b"])
    assert read_run(run).curves.best_epoch == 4.0
    state = json.loads((run / "trainer_state.json").read_text())
    state["best_global_step"] = 24
    (run / "trainer_state.json").write_text(json.dumps(state))
    assert read_run(run).curves.best_epoch == 2.0
    state["best_global_step"] = None
    (run / "trainer_state.json").write_text(json.dumps(state))
    assert read_run(run).curves.best_epoch == 4.0


def test_diverged_losses_are_left_out_of_the_curves(make_run):
    run = make_run(["a", "b"])
    log = [{"loss": float("nan"), "epoch": 1.0, "step": 1}, {"loss": 2.0, "epoch": 2.0, "step": 2}]
    (run / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert read_run(run).curves.train_loss == [(2.0, 2.0)]
    assert build_report(run)


def test_findings_rank_pairs_and_mistakes(make_run):
    predictions = read_run(make_run([f"c{index}" for index in range(8)])).predictions
    findings = find(predictions)
    counts = [pair.count for pair in findings.pairs]
    assert counts == sorted(counts, reverse=True)
    assert all(pair.label != pair.taken_for for pair in findings.pairs)
    sure = predictions.confidence[findings.worst]
    assert (np.diff(sure) <= 0).all()
    assert (predictions.labels[findings.worst] != predictions.predicted[findings.worst]).all()
    for index, row in findings.examples.items():
        assert predictions.labels[row] == predictions.predicted[row] == index


def test_headline_figures_lie_inside_their_intervals(run_directory):
    run = read_run(run_directory)
    for key, interval in find(run.predictions).intervals.items():
        assert interval.low <= run.metrics["test"][key] <= interval.high


def without(directory, name):
    (directory / name).unlink()


def with_text(name, text):
    return lambda directory: (directory / name).write_text(text)


def with_other_classes(directory):
    write_predictions(directory, {"test": make_predictions(5, 20, 0)})


def with_other_columns(directory):
    pq.write_table(pa.table({"image_id": ["a"], "split": ["test"]}), directory / "predictions.parquet")


def without_split(directory):
    write_predictions(directory, {"validation": make_predictions(3, 20, 0)})


AGAIN = "The run was cut off or the file was edited; run it again."


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda directory: without(directory, "metrics.json"), "{run} is not a finished run: metrics.json is missing. {end}"),
        (lambda directory: without(directory, "predictions.parquet"), "{run} is not a finished run: predictions.parquet is missing. {end}"),
        (
            with_text("metrics.json", '{"test": '),
            "metrics.json in {run} is damaged: it is not valid JSON (Expecting value: line 1 column 10 (char 9)). {again}",
        ),
        (with_text("metrics.json", "[]"), "metrics.json in {run} is damaged: it must hold names and values. {again}"),
        (with_text("metrics.json", "{}"), "{run} is not a finished run: metrics.json has no test or validation figures. {end}"),
        (with_text("metrics.json", '{"test": [1]}'), "{run} is not a finished run: metrics.json has no test or validation figures. {end}"),
        (
            with_text("metrics.json", '{"test": {"accuracy": 1}, "train": 3}'),
            "metrics.json in {run} is damaged: train must hold names and values. {again}",
        ),
        (
            with_text("metrics.json", '{"test": {"accuracy": 1}, "dataset": null}'),
            "{run} is not a finished run: metrics.json has no dataset.label_names. {end}",
        ),
        (with_text("config.yaml", "just words"), "config.yaml in {run} is damaged: it must hold names and values. {again}"),
        (
            with_other_classes,
            "predictions.parquet in {run} is damaged: it has probabilities of 5 classes, but metrics.json names 3 classes. {again}",
        ),
        (
            with_other_columns,
            "predictions.parquet in {run} is damaged: it lacks the columns label, prediction, probabilities. {again}",
        ),
        (without_split, "predictions.parquet in {run} is damaged: it has no predictions of the test split. {again}"),
    ],
)
def test_bad_run_directories_are_explained(make_run, damage, message):
    run = make_run(["a", "b", "c"])
    damage(run)
    with pytest.raises(DataError) as caught:
        build_report(run)
    words = {"run": repr(str(run)), "end": "Run the training to its end.", "again": AGAIN}
    assert str(caught.value) == re.sub(r"\{(\w+)\}", lambda found: words[found[1]], message)


def test_no_folder(tmp_path):
    with pytest.raises(DataError) as caught:
        build_report(tmp_path / "none")
    assert str(caught.value) == f"The run folder {str(tmp_path / 'none')!r} does not exist; give the --output_dir of a finished run."


def test_a_damaged_parquet_file_is_explained(make_run):
    run = make_run(["a", "b", "c"])
    (run / "predictions.parquet").write_bytes(b"not parquet")
    with pytest.raises(pa.ArrowInvalid) as quoted:
        pq.read_table(run / "predictions.parquet")
    with pytest.raises(DataError) as caught:
        build_report(run)
    assert str(caught.value) == f"predictions.parquet in '{run}' is damaged: it is not valid Parquet ({quoted.value}). {CUT_OFF}"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.percent(0.93149), "93.1 %"),
        (wording.percent(None), "–"),
        (wording.percent(float("nan")), "–"),
        (wording.duration(8.44), "8.4 s"),
        (wording.duration(59.99), "60.0 s"),
        (wording.duration(744.2), "12 min 24 s"),
        (wording.duration(7500), "2 h 05 min"),
        (wording.size(2_130_000_000), "2.1 GB"),
        (wording.size(512_000_000), "512 MB"),
        (wording.amount(85_798_656), "85.8 M"),
        (wording.amount(304_165), "304 k"),
        (wording.amount(2_306), "2,306"),
        (wording.number(3669), "3,669"),
        (wording.number(19.84), "19.8"),
        (wording.setting(None), "none"),
        (wording.setting(1e-3), "0.001"),
        (wording.setting(0.0), "0"),
        (wording.setting(0.123456789), "0.123456789"),
        (wording.setting([1, "a"]), "1, a"),
        (wording.one_line("a\n\tb\x00c\u2028d\u202ee\udc80f"), "a b c d e f"),
        (wording.one_line("می\u200cخواهم"), "می\u200cخواهم"),
        (wording.one_line("abcdef", 4), "abc…"),
        (markdown_text("scottish_terrier"), "scottish_terrier"),
        (markdown_text("_a_ | <b>&amp;"), r"\_a\_ \| &lt;b&gt;&amp;amp;"),
        (markdown_text("a*b`c $d$ ~e~ [f]"), r"a\*b\`c \$d\$ \~e\~ \[f\]"),
    ],
)
def test_wording(written, expected):
    assert written == expected


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    wording.write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        wording.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]
