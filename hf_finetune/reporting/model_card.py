"""The model card (`README.md`) of a run, made from its own files alone: no network, no guesses, nothing the run did not record.

What is unknown is left out: a licence or a base model is named only where the run knows it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_finetune.reporting.finished_run import read_config, read_metrics, run_folder
from hf_finetune.reporting.headlines import MAIN_SETTINGS, headlines
from hf_finetune.reporting.intervals import wilson_interval
from hf_finetune.reporting.local_paths import known_paths, published_name, without_local_paths
from hf_finetune.reporting.markdown import markdown_table, markdown_text
from hf_finetune.reporting.wording import one_line, setting, write_atomically

# stands in the snippets until a push knows the repository
REPOSITORY = "USER/REPOSITORY"
# classes shown in full; of more, the best and worst halves
MAX_CLASSES = 40

# values that say "not used": a table of them would bury the settings that matter
_UNUSED: Mapping[str, tuple[Any, ...]] = {"max_steps": (-1,), "label_smoothing_factor": (0,), "gradient_accumulation_steps": (1,)}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def build_card(directory: str | Path) -> ModelCard:
    """Make the model card of a finished run from its `metrics.json` and `config.yaml`.

    Args:
        directory: The run's `--output_dir`.

    Returns:
        The card; `str(card)` is the text of `README.md`. The snippets name the repository `REPOSITORY`, which `push_run` fills in.

    Raises:
        DataError: The folder is no finished run; the message names the file.
    """
    folder = run_folder(directory)
    metrics, config = read_metrics(folder), read_config(folder)
    metadata = f"---\n{_metadata(metrics).to_yaml()}\n---\n"
    paths = known_paths(config, metrics)
    metrics["notices"] = [without_local_paths(notice, paths) for notice in metrics["notices"]]
    config = {key: without_local_paths(value, paths) if isinstance(value, str) else value for key, value in config.items()}
    return ModelCard("\n".join([metadata, *_body(metrics, config)]))


def write_card(directory: str | Path) -> Path:
    """Write the model card of a finished run to its `README.md`, whole or not at all, and return that path.

    Raises:
        DataError: As in `build_card`.
    """
    target = run_folder(directory) / "README.md"
    write_atomically(target, str(build_card(directory)))
    return target


# ---------------------------------------------------------------------------------------------------------------- metadata


def _metadata(metrics: dict[str, Any]) -> ModelCardData:
    model, dataset = metrics["model"], metrics["dataset"]
    dataset_name, hub_id = one_line(published_name(dataset, "hub_id")), _hub_id(dataset.get("hub_id"))
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=hub_id or re.sub(r"[^\w.-]+", "-", dataset_name),
            dataset_name=dataset_name,
            dataset_split="test",
            metric_type=identifier,
            metric_name=name,
            metric_value=value,
            metric_args={"average": "macro"} if identifier == "f1" else None,
        )
        for name, identifier, value in _figures(metrics)
    ]
    license_id, license_name = _license(model.get("license"))
    return ModelCardData(
        license=license_id,
        license_name=license_name,
        base_model=_hub_id(model.get("base_model")),
        datasets=[hub_id] if hub_id else None,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=_tags(model),
        metrics=[identifier for _, identifier, _ in _figures(metrics) if identifier in ("accuracy", "f1")] or None,
        model_name=_title(metrics),
        eval_results=results or None,
    )


def _license(stated: Any) -> tuple[str | None, str | None]:
    """Return `license` and `license_name`; the Hub refuses a card whose `license` is not of the form of its ids."""
    if not stated or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", str(stated)):
        return stated or None, None
    return "other", re.sub(r"[^a-z0-9]+", "-", str(stated).lower()).strip("-")


def _hub_id(value: Any) -> str | None:
    return value if isinstance(value, str) and _HUB_ID.fullmatch(value) else None


def _tags(model: Mapping[str, Any]) -> list[str]:
    tags = ["image-classification", "vision", "hf-finetune"]
    if str(model.get("base_model") or model.get("name")).startswith("timm/"):
        tags.append("timm")
    if model.get("adapter"):
        tags += ["peft", one_line(model["adapter"].get("type", "lora"))]
    return list(dict.fromkeys(tags))


def _figures(metrics: dict[str, Any]) -> list[tuple[str, str, float]]:
    """List (name, metric id, value) of the test figures that are numbers."""
    test = metrics["test"]
    shown = headlines(test, len(test.get("per_class", {})))
    return [(line.name, line.metric_id, float(test[line.key])) for line in shown if math.isfinite(test[line.key])]


# -------------------------------------------------------------------------------------------------------------------- body


def _title(metrics: dict[str, Any]) -> str:
    base = one_line(published_name(metrics["model"], "base_model")).rpartition("/")[2]
    return f"{base} fine-tuned on {one_line(published_name(metrics['dataset'], 'hub_id'))}"


def _body(metrics: dict[str, Any], config: dict[str, Any]) -> list[str]:
    sections = [
        [f"# {markdown_text(_title(metrics))}", "", _summary(metrics)],
        ["## Results", "", *_headline(metrics)],
        ["## How to use", "", *_usage(metrics)],
        ["## Results by class", "", *_per_class(metrics["test"].get("per_class", {}))],
        ["## Training", "", *_training(metrics, config)],
        ["## Versions", "", *_versions(metrics)],
        ["## Notices", "", *(f"- {markdown_text(notice)}" for notice in metrics["notices"])],
        ["## Limits", "", _limits(metrics)],
    ]
    return [line for lines in sections if len(lines) > 2 for line in (*lines, "")]


def _summary(metrics: dict[str, Any]) -> str:
    model, dataset = metrics["model"], metrics["dataset"]
    how = (
        f", with a {markdown_text(model['adapter'].get('type', 'lora'))} adapter that is merged into these weights"
        if model.get("adapter")
        else ""
    )
    classes = len(dataset.get("label_names") or metrics["test"].get("per_class", {}))
    return (
        f"An image classifier with {classes} classes: {_linked(published_name(model, 'base_model'), model.get('base_model'), '')}, "
        f"fine-tuned on {_linked(published_name(dataset, 'hub_id'), dataset.get('hub_id'), 'datasets/')}{how}."
    )


def _linked(name: str, hub_id: Any, prefix: str) -> str:
    known = _hub_id(hub_id)
    return f"[{markdown_text(name)}](https://huggingface.co/{prefix}{known})" if known else markdown_text(name)


def _headline(metrics: dict[str, Any]) -> list[str]:
    images = _test_images(metrics)
    rows = []
    for name, identifier, value in _figures(metrics):
        interval = ""
        if identifier in ("accuracy", "top_5_accuracy") and images:
            low, high = wilson_interval(round(value * images), images)
            interval = f"{low:.4f} to {high:.4f}"
        rows.append((name, f"{value:.4f}", interval))
    split = (
        f"On the test split ({images} images), which was scored once, after the choice of the checkpoint on validation." if images else ""
    )
    return [split, "", *markdown_table(("Metric", "Value", "95 % interval (Wilson)"), rows, align="lrr")]


def _test_images(metrics: dict[str, Any]) -> int:
    """Count the images behind the figures: the class supports, which heed --max_eval_samples, or else the size of the split."""
    counted = sum(scores.get("support", 0) for scores in metrics["test"].get("per_class", {}).values())
    return int(counted or metrics["dataset"].get("splits", {}).get("test", 0))


def _usage(metrics: dict[str, Any]) -> list[str]:
    lines = ["```python", "from transformers import pipeline", ""]
    lines += [f'classifier = pipeline("image-classification", model="{REPOSITORY}")', 'print(classifier("photo.jpg", top_k=5))', "```"]
    model = metrics["model"]
    if not model.get("adapter"):
        return lines
    base, classes = _hub_id(model.get("base_model")), len(metrics["dataset"].get("label_names", ()))
    if base is None:
        name = markdown_text(published_name(model, "base_model"))
        note = f"The folder `adapter` holds the adapter alone, for PEFT on top of the checkpoint {name}, which is not on the Hub."
        return [*lines, "", note]
    return [
        *(*lines, "", "The adapter alone, on top of the base model:", ""),
        *("```python", "from peft import PeftModel", "from transformers import AutoModelForImageClassification", ""),
        f'base = AutoModelForImageClassification.from_pretrained("{base}", num_labels={classes}, ignore_mismatched_sizes=True)',
        *(f'model = PeftModel.from_pretrained(base, "{REPOSITORY}", subfolder="adapter")', "```"),
    ]


def _per_class(per_class: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        (markdown_text(name), *(f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")), str(int(scores["support"])))
        for name, scores in per_class.items()
    ]
    lead = []
    if len(rows) > MAX_CLASSES:
        half = MAX_CLASSES // 2
        rows.sort(key=lambda row: (-float(row[3]), row[0]))
        lead = [f"The {half} best and the {half} worst of {len(rows)} classes by F1; all of them are in `metrics.json`.", ""]
        rows = rows[:half] + rows[-half:]
    return [*lead, *markdown_table(("Class", "Precision", "Recall", "F1", "Images"), rows, align="lrrrr")]


def _training(metrics: dict[str, Any], config: dict[str, Any]) -> list[str]:
    train, splits = metrics["train"], metrics["dataset"].get("splits", {})
    lines = []
    if splits:
        lines += [f"Images: {', '.join(f'{int(count)} {one_line(split)}' for split, count in splits.items())}.", ""]
    if "trainable_parameters" in train and "total_parameters" in train:
        trained, total = int(train["trainable_parameters"]), int(train["total_parameters"])
        lines += [f"Trained parameters: {trained:,} of {total:,} ({trained / max(1, total):.2%}).", ""]
    if isinstance(train.get("runtime_s"), int | float):
        lines += [f"Training time: {train['runtime_s']:.0f} s.", ""]
    names = {
        "dataset": published_name(metrics["dataset"], "hub_id"),
        "model": published_name(metrics["model"], "base_model"),
    }
    rows = [(f"`{key}`", markdown_text(setting(names.get(key, config[key])))) for key in _shown_settings(config)]
    return [*lines, *markdown_table(("Setting", "Value"), rows)]


def _shown_settings(config: Mapping[str, Any]) -> list[str]:
    adapted = config.get("adapter") not in (None, "none")
    return [key for key in MAIN_SETTINGS if (adapted or not key.startswith("lora_")) and _is_used(key, config.get(key))]


def _is_used(key: str, value: Any) -> bool:
    # `is False`, since a weight decay of 0 equals False and must be shown
    return value is not None and value is not False and value != "" and value not in _UNUSED.get(key, ())


def _versions(metrics: dict[str, Any]) -> list[str]:
    rows = [(markdown_text(key), markdown_text(value)) for key, value in metrics["environment"].items() if value is not None]
    return markdown_table(("Name", "Value"), rows)


def _limits(metrics: dict[str, Any]) -> str:
    seed = metrics["environment"].get("seed")
    run = "one run" if seed is None else f"one run with seed {int(seed)}"
    return (
        f"The figures come from {run} and hold for photos like those of the test split; the interval covers the choice of test images, "
        "not of the seed. The model knows its classes only: it gives every picture one of them, also a picture that shows none."
    )
