"""What a report says in words and figures, free of any markup; the Markdown and the HTML report are two renderings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_finetune.reporting.findings import Findings
from hf_finetune.reporting.finished_run import FinishedRun
from hf_finetune.reporting.headlines import MAIN_SETTINGS, headlines
from hf_finetune.reporting.intervals import Interval
from hf_finetune.reporting.local_paths import is_credential, published_name
from hf_finetune.reporting.metrics import class_scores
from hf_finetune.reporting.wording import amount, duration, number, one_line, percent, setting, size


@dataclass(frozen=True)
class Figure:
    """A headline figure: a fraction in [0, 1] with its 95 % interval, and the same on validation where it was measured."""

    key: str
    name: str
    meaning: str
    value: float
    interval: Interval
    validation: float | None


@dataclass(frozen=True)
class ClassRow:
    """One class of the per-class table; `taken_for` is what it is mistaken for most often, with how many times."""

    name: str
    support: int
    recall: float
    precision: float
    f1: float
    taken_for: str
    times: int


@dataclass(frozen=True)
class Story:
    """A report before it is laid out; every text is plain and may hold any character a class name can hold."""

    title: str
    name: str
    summary: str
    figures: list[Figure]
    costs: list[tuple[str, str, str]]
    stages: list[tuple[str, str, str]]
    observations: list[str]
    classes: list[ClassRow]
    settings: list[tuple[str, str]]
    other_settings: list[tuple[str, str]]
    environment: list[tuple[str, str]]
    notices: list[str]


def tell(run: FinishedRun, findings: Findings) -> Story:
    """Put a run into words."""
    metrics = run.metrics[run.predictions.split]
    images = f"{number(len(run.predictions.labels))} {run.predictions.split} images"
    main, other = _settings(run.config)
    return Story(
        title=f"{percent(metrics['accuracy'])} of {images} named correctly",
        name=one_line(run.directory.resolve().name),
        summary=_summary(run),
        figures=_figures(run, findings),
        costs=_costs(run.metrics["train"]),
        stages=_stages(run.metrics["train"]),
        observations=_observations(run, findings),
        classes=_class_rows(run, findings),
        settings=main,
        other_settings=other,
        environment=_environment(run.metrics),
        notices=[one_line(notice) for notice in run.metrics["notices"]],
    )


def _figures(run: FinishedRun, findings: Findings) -> list[Figure]:
    split = run.predictions.split
    metrics, validation = run.metrics[split], (run.metrics.get("validation") or {}) if split == "test" else {}
    return [
        Figure(line.key, line.name, line.meaning, metrics[line.key], findings.intervals[line.key], validation.get(line.key))
        for line in headlines(metrics, len(run.label_names))
    ]


def _summary(run: FinishedRun) -> str:
    model, data, train = (run.metrics[key] for key in ("model", "dataset", "train"))
    name, splits = one_line(model.get("base_model") or published_name(model, "base_model")), data.get("splits") or {}
    classes = f"{one_line(published_name(data, 'hub_id'))} ({len(run.label_names)} classes)"
    split, once = run.predictions.split, "once " if run.predictions.split == "test" else ""
    scored = f"scored {once}on {number(len(run.predictions.labels))} {split} images"
    if not train.get("epochs") or not run.curves:
        return f"{name} was {scored} of {classes}; nothing was trained in this run."
    epochs = f"{number(train['epochs'])} epoch{'' if train['epochs'] == 1 else 's'}"
    images = f" on {number(splits['train'])} images" if splits.get("train") else ""
    chosen = f"; the best epoch was chosen on {number(splits['validation'])} validation images" if splits.get("validation") else ""
    return f"{_what_trained(run, model.get('adapter'), name)} for {epochs}{images} of {classes}{chosen}, and {scored}."


def _what_trained(run: FinishedRun, adapter: dict[str, Any] | None, name: str) -> str:
    if adapter:
        kind = "DoRA" if adapter.get("dora") else "rsLoRA" if adapter.get("rslora") else "LoRA"
        rank = f" of rank {adapter['rank']}" if adapter.get("rank") else ""
        targets = f" on {one_line(setting(adapter['targets']), 60)}" if adapter.get("targets") else ""
        return f"A {kind} adapter{rank}{targets} and a new head were trained on {name}"
    if run.config.get("freeze") == "head":
        return f"A new head was trained on the frozen {name}"
    if run.config.get("freeze", "none") != "none":
        return f"A new head and a part of {name} (--freeze {one_line(str(run.config['freeze']), 60)}) were trained"
    return f"{name} was trained in full"


def _costs(train: dict[str, Any]) -> list[tuple[str, str, str]]:
    costs = []
    if train.get("runtime_s") is not None:
        speed = train.get("samples_per_second")
        costs.append(("Training time", duration(train["runtime_s"]), f"{number(speed)} images a second" if speed else ""))
    if train.get("peak_memory_bytes") is not None:
        costs.append(("Peak memory", size(train["peak_memory_bytes"]), "while training"))
    if train.get("trainable_parameters") is not None:
        total = train.get("total_parameters")
        share = f"{percent(train['trainable_parameters'] / total)} of {amount(total)}" if total else ""
        costs.append(("Trained parameters", amount(train["trainable_parameters"]), share))
    return costs


def _stages(train: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return epochs, layer groups and parameters of every stage of a freezing schedule; none where the same trained all along."""
    stages = train.get("stages") or []
    if len(stages) < 2:
        return []
    ends = [str(stage["epoch"]) for stage in stages[1:]] + ["end"]
    return [
        (f"{stage['epoch']} to {end}", one_line(", ".join(stage["groups"]), 400), amount(stage["trainable_parameters"]))
        for stage, end in zip(stages, ends, strict=True)
    ]


def _observations(run: FinishedRun, findings: Findings) -> list[str]:
    scores, names = class_scores(findings.confusion), [one_line(name) for name in run.label_names]
    present = np.flatnonzero(scores.support)
    hardest = int(present[np.argmin(scores.recall[present])])
    good = int((scores.recall[present] >= 0.9).sum())
    said = [
        f"Hardest class: {names[hardest]}, {percent(scores.recall[hardest])} of {scores.support[hardest]} right; "
        f"{good} of {len(present)} classes reach 90 %."
    ]
    if findings.pairs:
        pair = findings.pairs[0]
        said.append(f"Most confused: {names[pair.label]} taken for {names[pair.taken_for]}, {pair.count} times out of {pair.support}.")
    else:
        said.append("No mistakes at all: nothing to learn about where it fails.")
    said.append(_calibration(findings, float(np.trace(findings.confusion) / findings.confusion.sum())))
    absent = len(names) - len(present)
    if absent:
        said.append(f"{absent} of {len(names)} classes do not occur in the {run.predictions.split} split, so nothing is known about them.")
    return said


def _calibration(findings: Findings, accuracy: float) -> str:
    figures = f"{percent(findings.mean_confidence)} sure on average, {percent(accuracy)} right"
    gap = findings.mean_confidence - accuracy
    if abs(gap) < 0.02:
        return f"Its confidence can be taken at its word: {figures}."
    return f"It is {'over' if gap > 0 else 'under'}-confident: {figures}."


def _class_rows(run: FinishedRun, findings: Findings) -> list[ClassRow]:
    scores = class_scores(findings.confusion)
    names = [one_line(name) for name in run.label_names]
    mistakes = findings.confusion * (1 - np.eye(len(names), dtype=np.int64))
    order = sorted(range(len(names)), key=lambda index: (scores.support[index] == 0, scores.recall[index], index))
    rows = []
    for index in order:
        rival, times = int(mistakes[index].argmax()), int(mistakes[index].max())
        recall, precision, f1 = (float(values[index]) for values in (scores.recall, scores.precision, scores.f1))
        rows.append(ClassRow(names[index], int(scores.support[index]), recall, precision, f1, names[rival] if times else "", times))
    return rows


def _settings(config: dict[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    # a report is made to be passed on, so that no credential may reach it whatever the config holds
    shown = {key: one_line(setting(value)) for key, value in config.items() if not is_credential(key)}
    main = [(key, shown.pop(key)) for key in MAIN_SETTINGS if key in shown]
    return main, sorted(shown.items())


def _environment(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(key, one_line(setting(value))) for key, value in metrics["environment"].items()]
    for kind, hub_key in (("dataset", "hub_id"), ("model", "base_model")):
        about = metrics[kind]
        source = about.get(hub_key) or published_name(about, hub_key)
        rows.append((kind, one_line(f"{source}, license: {about.get('license') or 'not known'}")))
    return rows
