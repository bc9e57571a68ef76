"""How fast this project trains and predicts: against the stock Trainer, against the raw step on a batch that is ready, and against fastai.

    pip install -e '.[benchmark]'    # fastai, which is left out where it is not installed
    python benchmarks/run.py [--quick] [--dataset DIR --efficientnet DIR --vit DIR]

Every measurement is a process of its own, and the sides take turns, so that the drift of a machine hits all of them alike. A measurement is
kept in `--work_dir` as soon as it is there; the same command goes on where it was stopped. Writes `speed.md`, `speed.csv` and `speed.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from speed_report import Record, Results, table, write_csv, write_markdown
from speed_rows import PLOT_PHOTOS, PLOT_ROWS, PLOT_SIDES, ROWS, SIDES, Task, absence

# side → module and function that measure it; imported in the worker alone, so that no side carries the memory of another
MEASURES = {
    "stock": ("speed_stock", "measure"),
    "ours": ("speed_ours", "measure"),
    "bf16": ("speed_ours", "measure_bf16"),
    "raw": ("speed_ours", "measure_raw"),
    "fastai": ("speed_fastai", "measure"),
}


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round on fewer photos, no plot")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=positive, default=3, help="measurements of each side of each row")
    parser.add_argument("--photos", type=positive, help="photos of each row, half of them for the ViT; by default each row has its own")
    parser.add_argument("--dataset", default="drawn_pets", help="a folder in Hub layout, or any name that the recipes take")
    parser.add_argument("--efficientnet", metavar="DIR_OR_NAME", help="checkpoint of an EfficientNet-Lite0; random weights by default")
    parser.add_argument("--vit", metavar="DIR_OR_NAME", help="checkpoint of a ViT-S; random weights by default")
    parser.add_argument("--plot_photos", nargs="*", type=positive, help="photos to measure for the plot; none of them, no plot")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"), help="where the report goes")
    parser.add_argument(
        "--work_dir", type=Path, default=Path("runs/benchmark"), help="where measurements are kept; a new folder measures anew"
    )
    parser.add_argument("--note", action="append", default=[], help="a sentence about these measurements for the report; may be repeated")
    parser.add_argument("--report_only", action="store_true", help="write the report of what was measured so far")
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "ROW"), help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 1
    if options.plot_photos is None:
        options.plot_photos = [] if options.quick else list(PLOT_PHOTOS)
    return options


def positive(text: str) -> int:
    """Read a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def photos_of(row: str, options: argparse.Namespace) -> int:
    """Return how many photos a row asks for."""
    if options.photos is not None:
        return max(2, round(options.photos * ROWS[row].share))
    return ROWS[row].quick_photos if options.quick else ROWS[row].photos


def make_task(row: str, side: str, number: int, photos: int, options: argparse.Namespace) -> Task:
    """Return one measurement."""
    return Task(row, side, number, photos, options.dataset, getattr(options, ROWS[row].model, None))


def table_tasks(options: argparse.Namespace) -> list[Task]:
    """Return the measurements of the table in their order: all sides of a round one after the other, also what this machine cannot do."""
    return [
        make_task(row, side, number, photos_of(row, options), options)
        for row in options.rows
        for number in range(1, options.rounds + 1)
        for side in SIDES
    ]


def plot_tasks(options: argparse.Namespace) -> list[Task]:
    """Return the measurements of the plot; one that the table has too is made once."""
    rows = [row for row in PLOT_ROWS if row in options.rows]
    return [make_task(row, side, 1, photos, options) for row in rows for photos in sorted(options.plot_photos) for side in PLOT_SIDES]


class Ledger:
    """The finished measurements, kept in a file that grows by one line each.

    Args:
        path: The file; made where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[Task, Record] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            self._take(json.loads(line))

    def add(self, task: Task, figures: Record) -> Record:
        """Keep a measurement."""
        record = {**dataclasses.asdict(task), **figures}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return self._take(record)

    def _take(self, record: Record) -> Record:
        self.records[Task(*(record[item.name] for item in dataclasses.fields(Task)))] = record
        return record


class WorkerError(Exception):
    """A worker failed; the text is the end of what it wrote to stderr."""


def measure(tasks: list[Task], ledger: Ledger, argv: list[str]) -> dict[tuple[str, str], str]:
    """Make every measurement that the ledger lacks, and return the sides of rows that failed, with the reason."""
    tasks, failed = [task for task in tasks if absence(ROWS[task.row], task.side) is None], {}
    left = [task for task in tasks if task not in ledger.records]
    with tempfile.TemporaryDirectory(prefix="speed_") as inputs:
        if left:
            print(f"{len(tasks) - len(left)} of {len(tasks)} measurements are there; preparing photos and checkpoints.", flush=True)
            run_worker(["inputs", "all"], inputs, argv)
        for task in left:
            if (task.row, task.side) in failed:
                continue
            try:
                output = run_worker([task.side, task.row], inputs, [*argv, "--photos", str(task.photos)])
            except WorkerError as error:
                if task.side != "fastai":
                    raise
                print(f"{task.row}, fastai failed and is left out:\n{error}", file=sys.stderr)
                failed[task.row, task.side] = "failed"
                continue
            record = ledger.add(task, json.loads(output.splitlines()[-1]))
            rate = record["images"] / record["seconds"]
            print(f"{task.row}, {task.photos} photos, round {task.round}, {task.side}: {rate:.1f} images/s", flush=True)
    return failed


def run_worker(work: list[str], inputs: str, argv: list[str]) -> str:
    """Run this script as a worker with an empty cache, and return what it printed."""
    with tempfile.TemporaryDirectory(prefix="speed_cache_") as cache:
        places = {"HF_HOME": cache, "HF_DATASETS_CACHE": f"{cache}/datasets", "XDG_CACHE_HOME": cache}
        command = [sys.executable, __file__, *argv, "--worker", *work, "--inputs", inputs, "--output_dir", f"{cache}/run"]
        done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True)
    if done.returncode:
        raise WorkerError(f"{' '.join(work)}, status {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def work(options: argparse.Namespace) -> None:
    """Do what a worker is for: prepare the inputs, or make one measurement and print it as one line of JSON."""
    side, row = options.worker
    if side == "inputs":
        tasks = table_tasks(options) + plot_tasks(options)
        models = {ROWS[task.row].model: task.model for task in tasks}
        build = importlib.import_module("speed_inputs").build_inputs
        return build(options.inputs, options.dataset, [(ROWS[task.row], task.photos) for task in tasks], models)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported, below
    module, function = MEASURES[side]
    figures: dict[str, Any] = getattr(importlib.import_module(module), function)(
        ROWS[row], options.photos, options.inputs, options.output_dir
    )
    print(json.dumps(figures))


def published(argv: list[str]) -> str:
    """Return the command for the report."""
    from hf_finetune.comparison import published_command  # here: a worker that measures another side need not carry it

    said = [word for before, word in zip(["", *argv], argv, strict=False) if "--note" not in (before, word) and word != "--report_only"]
    return published_command("benchmarks/run.py", said)


def main() -> None:
    """Measure what is left to measure, print the table and write the report."""
    argv = sys.argv[1:]
    options = parse(argv)
    if options.worker:
        return work(options)
    tasks, points = table_tasks(options), plot_tasks(options)
    ledger = Ledger(options.work_dir / "results.jsonl")
    try:
        failed = {} if options.report_only else measure(list(dict.fromkeys(tasks + points)), ledger, argv)
    except WorkerError as error:
        sys.exit(f"A worker failed; what is finished stays in {ledger.path}. {error}")

    done, drawn = ([ledger.records[task] for task in some if task in ledger.records] for some in (dict.fromkeys(tasks + points), points))
    results = Results([ledger.records[task] for task in tasks if task in ledger.records], failed)
    if not results.rows():
        sys.exit(f"{ledger.path} holds no measurement of these rows.")
    print(table(results))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_markdown(results, options.output_dir / "speed.md", published(argv), options.note, plot=bool(drawn))
    write_csv(done, options.output_dir / "speed.csv")
    if drawn:
        importlib.import_module("speed_plot").draw(drawn, options.output_dir / "speed.png")


if __name__ == "__main__":
    main()
