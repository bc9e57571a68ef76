"""A study: settings × seeds, each a run of its own, compared on the same test photos with the uncertainty of both.

Which run is missing is read from the folders, so a study that was killed goes on with the same command, and several machines can share one
by taking different cells. Nothing here knows how a run is made; the function that makes one is handed in.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hf_finetune.errors import ConfigError, DataError, listed
from hf_finetune.reporting.intervals import Interval, seeds_and_photos_interval
from hf_finetune.reporting.markdown import markdown_table, markdown_text
from hf_finetune.reporting.plots import compared_cells, png
from hf_finetune.reporting.wording import amount, duration, percent, size, write_atomically


@dataclass(frozen=True)
class CellResult:
    """What the finished seeds of one cell say together.

    Attributes:
        name: Of the cell.
        seeds: Those that are finished.
        accuracies: On test, one a seed, in [0, 1].
        validation: On validation, one a seed, in [0, 1]; what is chosen is chosen by these.
        interval: 95 % interval of their mean, over seeds and test photos.
        difference: 95 % interval of the mean minus that of the reference, paired by seed and photo; None for the reference itself, and
            where the two share no finished seed.
        training_seconds: Median over the seeds that were not interrupted, without what the feature cache took.
        caching_seconds: What the feature cache took in the run that computed it.
        peak_memory_bytes: Highest of the seeds.
        trainable_parameters: Of the last epoch.
        reference: The cell that it is compared with, its own name for one that others are compared with.
        change: Mean of the differences from the reference over the seeds that both have finished; 0 where there are none.
        found_features: Whether every run found its features already computed, by another cell or an earlier study.
    """

    name: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    validation: tuple[float, ...]
    interval: Interval
    difference: Interval | None
    training_seconds: float
    caching_seconds: float
    peak_memory_bytes: float
    trainable_parameters: int
    reference: str
    found_features: bool = False
    change: float = 0.0

    @property
    def accuracy(self) -> float:
        """The mean over seeds, in [0, 1]."""
        return statistics.fmean(self.accuracies)

    @property
    def validation_accuracy(self) -> float:
        """The mean over seeds on validation, in [0, 1]."""
        return statistics.fmean(self.validation)

    @property
    def verdict(self) -> str:
        """In words how the cell compares with its reference."""
        if self.difference is None:
            return "the reference" if self.name == self.reference else "not compared"
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "no difference shown"


class Study:
    """Cells × seeds of one comparison.

    Args:
        directory: Holds a folder a cell and in it a folder a seed, as a run writes it, and the files of the study.
        cells: Name → settings of its own.
        seeds: At least one.
        run: Makes one run from the common settings, those of a cell, `seed` and `output_dir`, and leaves `metrics.json` and
            `predictions.parquet` there. `overwrite_output_dir` is added where a run was begun and left no checkpoint,
            `resume_from_checkpoint` where it left one.
        common: Settings of all cells, which a cell's own overrule.
        title: Heads the page.
        command: What starts the study, for the page.
        answer: Says in sentences what the results mean, for the page.
        enough: Told the results cell by cell, in their order; where it returns true the cells that follow are not made.
        reference: Cell → the one that it is compared with; by default the first.

    Raises:
        ConfigError: If there is no cell or no seed.
    """

    def __init__(
        self,
        directory: str | Path,
        cells: Mapping[str, Mapping[str, Any]],
        seeds: Sequence[int],
        run: Callable[[dict[str, Any]], object],
        common: Mapping[str, Any] | None = None,
        title: str = "Study",
        command: str = "",
        answer: Callable[[Sequence[CellResult]], Sequence[str]] = lambda results: [],
        enough: Callable[[Sequence[CellResult]], bool] | None = None,
        reference: Callable[[str], str] | None = None,
    ) -> None:
        if not cells or not seeds:
            raise ConfigError("A study needs at least one cell and one seed.")
        self.directory, self.seeds, self.run_cell = Path(directory), tuple(seeds), run
        self.cells = {name: {**(common or {}), **settings} for name, settings in cells.items()}
        self.title, self.command, self.answer, self.enough = title, command, answer, enough
        self.reference = reference or (lambda cell: next(iter(self.cells)))

    def folder(self, cell: str, seed: int) -> Path:
        """Return where one run of the study lies."""
        return self.directory / cell / f"seed{seed}"

    def finished(self, cell: str, seed: int) -> bool:
        """Return whether a run left its figures.

        Raises:
            DataError: If it was made with other settings.
        """
        folder = self.folder(cell, seed)
        if not (folder / "metrics.json").is_file():
            return False
        self._check_settings(cell)
        return True

    def run(self, which: slice | None = None) -> list[CellResult]:
        """Make the runs that are missing, and write the files of the study, anew after every run, so that a study under way can be read.

        Runs are made seed by seed and within a seed cell by cell; where `enough` may end the study, cell by cell.

        Args:
            which: The cells of this machine, counted from 0; None for all.

        Raises:
            ConfigError: If there are no such cells.
        """
        chosen = list(self.cells)[which or slice(None)]
        if not chosen:
            raise ConfigError(f"The study has {len(self.cells)} cells, counted from 0; there are none in the range that was asked for.")
        if self.enough is None:
            pairs = [(cell, seed) for seed in self.seeds for cell in chosen]
        else:
            pairs = [(cell, seed) for cell in chosen for seed in self.seeds]
        for cell, seed in pairs:
            if seed == self.seeds[0] and self.enough and (done := self.results()) and self.enough(done):
                break
            if not self.finished(cell, seed):
                self._run_one(cell, seed)
                self.write()
        return self.write()

    def results(self) -> list[CellResult]:
        """Return what is finished, cell by cell; cells without a finished seed are left out."""
        done = {cell: tuple(seed for seed in self.seeds if self.finished(cell, seed)) for cell in self.cells}
        return [self._result(cell, seeds, done[self.reference(cell)]) for cell, seeds in done.items() if seeds]

    def write(self) -> list[CellResult]:
        """Write `study.csv`, `study.md` and `study.png`, and return the results."""
        results = self.results()
        if results:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.directory / "study.csv", _csv(results))
            write_atomically(self.directory / "study.md", self.markdown(results))
            photos = len(_correct(self.folder(results[0].name, results[0].seeds[0])))
            drawn = [(one.name, one.accuracy, one.interval, one.difference) for one in results]
            write_atomically(self.directory / "study.png", png(compared_cells(drawn, f"{self.title} ({photos:,} test photos)")))
        return results

    def markdown(self, results: Sequence[CellResult]) -> str:
        """Return the page of the study."""
        lines = [f"# {self.title}", ""]
        if found := self.answer(results):
            lines += [*found, ""]
        lines += [*_table(results), "", *(f"- {sentence(result, results)}" for result in results if result.difference is not None), ""]
        if left := [cell for cell in self.cells if cell not in {result.name for result in results}]:
            lines += [f"Not run: {markdown_text(listed(left, 30))}.", ""]
        method = _METHOD + (_ONE_SPLIT if all(settings.get("data_seed") is not None for settings in self.cells.values()) else "")
        method += _ONE_SEED if min(len(result.seeds) for result in results) == 1 else ""
        plot = "![Test accuracy of every cell, and its difference from the reference, with 95 % intervals](study.png)"
        lines += [plot, "", method, "", *self._origin(results)]
        return "\n".join(lines) + "\n"

    def _origin(self, results: Sequence[CellResult]) -> list[str]:
        """Return the command, and data, versions, machine and date of the runs."""
        files = [self.folder(result.name, seed) / "metrics.json" for result in results for seed in result.seeds]
        metrics = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        environments = [one.get("environment", {}) for one in metrics]
        splits = metrics[0].get("dataset", {}).get("splits", {})
        days = sorted({time.strftime("%Y-%m-%d", time.localtime(file.stat().st_mtime)) for file in files})
        facts = [f"Seeds {', '.join(map(str, self.seeds))}", " and ".join(dict.fromkeys((days[0], days[-1])))]
        facts += [f"{count} photos of {split}" for split, count in splits.items()]
        for key in ("processor", "device", "dtype", "threads", "torch", "transformers", "timm", "peft"):
            values = dict.fromkeys(str(environment[key]) for environment in environments if key in environment)
            facts += [f"{key} {' and '.join(values)}"] if values else []
        command = ["```bash", self.command, "```", ""] if self.command else []
        return [*command, f"{markdown_text('; '.join(facts))}."]

    def _check_settings(self, cell: str) -> None:
        file, now = self.directory / cell / "cell.json", _plain(self.cells[cell])
        made = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else now
        # a flag that came later and is not set, None, changes nothing
        changed = {key: made.get(key) for key in sorted(made.keys() | now.keys()) if made.get(key) != now.get(key)}
        if changed:
            raise DataError(
                f"{file.parent} was made with other settings ({changed}); remove {file.parent}, or give the study another folder."
            )

    def _run_one(self, cell: str, seed: int) -> None:
        self._check_settings(cell)
        folder = self.folder(cell, seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.parent / "cell.json", json.dumps(_plain(self.cells[cell]), indent=1) + "\n")
        settings = {**self.cells[cell], "seed": seed, "output_dir": str(folder)}
        if any(folder.glob("checkpoint-*/trainer_state.json")):
            settings["resume_from_checkpoint"] = "last"
        elif folder.exists():
            settings["overwrite_output_dir"] = True
        self.run_cell(settings)

    def _result(self, cell: str, seeds: tuple[int, ...], reference_seeds: tuple[int, ...]) -> CellResult:
        reference = self.reference(cell)
        right = {seed: _correct(self.folder(cell, seed)) for seed in seeds}
        metrics = [json.loads((self.folder(cell, seed) / "metrics.json").read_text(encoding="utf-8")) for seed in seeds]
        train = [one["train"] for one in metrics]
        # the time of a resumed run lacks what came before
        whole = [one for one in train if not one.get("resumed_from_step")] or train
        cached = [one["feature_cache"] for one in train if one.get("feature_cache")]
        difference, change, both = None, 0.0, [seed for seed in seeds if seed in reference_seeds]
        if cell != reference and both:
            theirs = {seed: _correct(self.folder(reference, seed)) for seed in both}
            pairs = np.stack([_paired(right[seed], theirs[seed]) for seed in both])
            difference, change = seeds_and_photos_interval(pairs), float(pairs.mean())
        return CellResult(
            name=cell,
            seeds=seeds,
            accuracies=tuple(one["test"]["accuracy"] for one in metrics),
            validation=tuple(one["validation"]["accuracy"] for one in metrics),
            interval=seeds_and_photos_interval(np.stack([np.array([*hits.values()], float) for hits in right.values()])),
            difference=difference,
            training_seconds=statistics.median(one["runtime_s"] - one.get("caching_s", 0.0) for one in whole),
            caching_seconds=max(one.get("caching_s", 0.0) for one in train),
            peak_memory_bytes=max(one["peak_memory_bytes"] for one in train),
            trainable_parameters=train[0]["trainable_parameters"],
            reference=reference,
            change=change,
            found_features=bool(cached) and not any(one["computed"] for one in cached),
        )


def sentence(result: CellResult, results: Sequence[CellResult]) -> str:
    """Return in words how a cell compares with its reference, in accuracy and in time."""
    if result.difference is None:
        return f"{markdown_text(result.name)}: {result.verdict}."
    reference = next(other for other in results if other.name == result.reference)
    low, high = (f"{100 * value:+.1f}" for value in result.difference)
    pair = f"{markdown_text(result.name)} against {markdown_text(reference.name)}"
    return (
        f"{pair}: {result.verdict} ({100 * result.change:+.1f} points, 95 % interval {low} to {high}), {_compared_time(result, reference)}."
    )


def _compared_time(result: CellResult, reference: CellResult) -> str:
    """Return a ratio of times in words: features included, unless one of the two found them computed."""
    both = (result, reference)
    found = any(one.found_features for one in both)
    own, others = (one.training_seconds + (0 if found else one.caching_seconds) for one in both)
    ratio = own / max(others, 1e-9)
    said = f"in {'about the same' if abs(ratio - 1) < 0.05 else f'{ratio:.2g} times its'} time ({duration(own)} against {duration(others)}"
    return f"{said}, features of the frozen part not counted)" if found and max(one.caching_seconds for one in both) >= 0.5 else f"{said})"


def chosen(results: Sequence[CellResult]) -> CellResult:
    """Return the cell that is best on validation, the earlier of equal ones."""
    return max(results, key=lambda result: result.validation_accuracy)


def choice(results: Sequence[CellResult]) -> str:
    """Return in words which cell is chosen on validation, and what test says of it."""
    best = chosen(results)
    tested = f"{percent(best.accuracy)} of the test photos (95 % interval {100 * best.interval.low:.1f} to {percent(best.interval.high)})"
    said = f"Chosen on validation: **{markdown_text(best.name)}**, which names {tested} correctly."
    return said if best.difference is None else f"{said} {sentence(best, results)}"


_METHOD = (
    "Accuracy is the mean over seeds on the test split, which every run scores once, at its end; what is chosen is chosen on validation. "
    "Intervals are 95 %, from a bootstrap that draws seeds and test photos anew; the comparison is paired by seed and photo. A difference "
    "whose interval holds 0 is called no difference shown. Training time is the median over seeds, since other work on a machine slows "
    "single runs. It leaves out loading and scoring the test split, and computing the features of a frozen part: the first run of a cell "
    "computes them, which the next column has, and its other runs find them. Sentences compare the sum of both."
)
_ONE_SPLIT = (
    " Seeds share the photos of training and validation; they differ in the first weights of the head and in the order and views of photos."
)
_ONE_SEED = " With one seed the intervals are over photos alone: another training may differ by more."


def _table(results: Sequence[CellResult]) -> list[str]:
    header = (
        "cell",
        "test accuracy",
        "95 % interval",
        "validation",
        "seeds",
        "training time",
        "features",
        "peak memory",
        "trained",
        "against its reference",
    )
    rows = [
        (
            markdown_text(result.name),
            percent(result.accuracy),
            f"{100 * result.interval.low:.1f} to {percent(result.interval.high)}",
            percent(result.validation_accuracy),
            str(len(result.seeds)),
            duration(result.training_seconds),
            duration(result.caching_seconds) if result.caching_seconds >= 0.5 else "–",
            size(result.peak_memory_bytes),
            amount(result.trainable_parameters),
            result.verdict,
        )
        for result in results
    ]
    return markdown_table(header, rows, "lrrrrrrrrl")


def _csv(results: Sequence[CellResult]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        (
            *("cell", "seeds", "accuracy", "low", "high", "difference_low", "difference_high", "validation", "training_s", "caching_s"),
            *("peak_memory_bytes", "trained"),
        )
    )
    for result in results:
        difference = result.difference or ("", "")
        figures = (
            result.accuracy,
            *result.interval,
            *difference,
            result.validation_accuracy,
            result.training_seconds,
            result.caching_seconds,
            result.peak_memory_bytes,
        )
        table.writerow((result.name, " ".join(map(str, result.seeds)), *figures, result.trainable_parameters))
    return text.getvalue()


def _correct(folder: Path) -> dict[str, bool]:
    """Return `image_id` → whether the prediction was right, for the test photos of a run, in a fixed order."""
    rows = pq.read_table(folder / "predictions.parquet", filters=[("split", "=", "test")]).to_pylist()
    return {row["image_id"]: row["label"] == row["prediction"] for row in sorted(rows, key=lambda row: row["image_id"])}


def _paired(one: dict[str, bool], other: dict[str, bool]) -> np.ndarray:
    if one.keys() != other.keys():
        missing = sorted(one.keys() ^ other.keys())
        raise DataError(f"Two runs of the study were scored on different test photos, {len(missing)} of them ({listed(missing, 3)}).")
    return np.array([*one.values()], float) - np.array([*other.values()], float)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back."""
    return json.loads(json.dumps(dict(settings), default=str))
