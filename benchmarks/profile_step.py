"""Where the time of a step goes, operator by operator: what bounds the rows of the speed benchmark on this machine.

    python benchmarks/profile_step.py [--rows full_resnet18 evaluation] [--dataset DIR --efficientnet DIR --vit DIR]

Each row runs through the project's own trainer, as `benchmarks/run.py` measures it, with torch's profiler on. Writes `speed_profile.md`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from speed_inputs import build_inputs
from speed_ours import prepare, settings
from speed_report import machine, version
from speed_rows import ROWS, Row
from torch.profiler import ProfilerActivity, profile, record_function

from hf_finetune.comparison import published_command
from hf_finetune.reporting.markdown import markdown_table
from hf_finetune.training.features import Rows
from hf_finetune.training.trainer import FinetuneTrainer

LOADING = "reading photos"
PHOTOS = 96
OPERATORS = 8


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--dataset", default="drawn_pets", help="a folder in Hub layout, or any name that the recipes take")
    parser.add_argument("--efficientnet", metavar="DIR_OR_NAME", help="checkpoint of an EfficientNet-Lite0; random weights by default")
    parser.add_argument("--vit", metavar="DIR_OR_NAME", help="checkpoint of a ViT-S; random weights by default")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"), help="where the page goes")
    return parser.parse_args(argv)


def work(trainer: FinetuneTrainer, dataset: Any, row: Row) -> None:
    """Do what the row times, once."""
    trainer.predict_split(dataset["test"]) if row.evaluation else trainer.train()


def profiled(row: Row, inputs: Path, output_dir: Path) -> tuple[float, list[tuple[str, float]]]:
    """Return the seconds of the work after one warm-up, and operator → seconds of its own, the largest first.

    Where the benchmark times a whole training, so does this, its caches empty: the warm-up is one step without them.
    """
    few = {"max_steps": max(PHOTOS // 32, 1)}
    warm_up = {} if row.evaluation else {"max_steps": 1, "feature_cache_gb": 0} if row.whole else few
    measured = {} if row.evaluation else {"num_train_epochs": row.epochs} if row.whole else few
    read = Rows.__getitems__

    def recorded(self: Rows, rows: list[int]) -> list[Any]:
        with record_function(LOADING):
            return read(self, rows)

    Rows.__getitems__ = recorded  # type: ignore[method-assign]
    try:
        for more in (warm_up, measured):
            trainer, dataset = prepare(settings(row, PHOTOS, inputs, output_dir, **more))
            with profile(activities=[ProfilerActivity.CPU]) as record:
                started = time.perf_counter()
                work(trainer, dataset, row)
                seconds = time.perf_counter() - started
    finally:
        Rows.__getitems__ = read  # type: ignore[method-assign]
    events = record.key_averages()
    own = {event.key: (event.cpu_time_total if event.key == LOADING else event.self_cpu_time_total) / 1e6 for event in events}
    return seconds, sorted(own.items(), key=lambda item: -item[1])


def section(name: str, seconds: float, operators: list[tuple[str, float]]) -> str:
    """Return the part of the page about one row."""
    top = operators[:OPERATORS]
    rows = [(f"`{key}`" if key != LOADING else key, f"{own:.2f}", f"{100 * own / seconds:.1f} %") for key, own in top]
    rest = seconds - sum(own for _, own in top)
    rows.append(("everything else", f"{rest:.2f}", f"{100 * rest / seconds:.1f} %"))
    table = "\n".join(markdown_table(("operator", "seconds of its own", "share"), rows, "lrr"))
    return f"## `{name}`\n\n{_sentence_case(ROWS[name].what)}, {PHOTOS} photos, {seconds:.1f} s.\n\n{table}"


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def main() -> None:
    """Profile every row and write the page."""
    argv = sys.argv[1:]
    options = parse(argv)
    parts = []
    for name in options.rows:
        row = ROWS[name]
        with tempfile.TemporaryDirectory(prefix="profile_") as folder:
            datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"  # the user's own caches would take work away, or grow
            build_inputs(Path(folder) / "inputs", options.dataset, [(row, PHOTOS)], {row.model: getattr(options, row.model, None)})
            parts.append(section(name, *profiled(row, Path(folder) / "inputs", Path(folder) / "run")))
        print(parts[-1], flush=True)
    command = published_command("benchmarks/profile_step.py", argv)
    head = [
        "# Where the time of a step goes",
        f"Generated on {time.strftime('%Y-%m-%d')} by `{command}`.",
        f"Machine: {machine()}. {version('torch')}, {torch.get_num_threads()} threads.",
        "Seconds of its own are those that the thread of the training spends in an operator and not in one that it calls, with torch's "
        f"profiler on, after one warm-up. *{LOADING.capitalize()}* is decoding, cropping and normalising, which nothing overlaps on a CPU.",
    ]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "speed_profile.md").write_text("\n\n".join([*head, *parts]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
