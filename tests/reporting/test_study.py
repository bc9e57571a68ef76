"""A study runs what is missing, compares on the same photos, and says in words what was shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_finetune.errors import ConfigError, DataError
from hf_finetune.reporting.intervals import seeds_and_photos_interval
from hf_finetune.reporting.study import Study

PHOTOS = 400
CELLS = {"head": {"freeze": "head"}, "all": {"freeze": "none"}, "same": {"freeze": "last:1"}}
ACCURACY = {"head": 0.70, "none": 0.85, "last:1": 0.70}


class FakeRuns:
    """Writes what a run leaves: predictions that are right with a given rate, from photos in another order every time."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    def __call__(self, settings: dict[str, Any]) -> None:
        self.made.append(settings)
        folder = Path(settings["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([settings["seed"], len(settings["freeze"])])
        right = rng.permutation(PHOTOS) < PHOTOS * ACCURACY[settings["freeze"]]
        order = rng.permutation(PHOTOS)
        table = {"image_id": [f"photo_{i:03d}" for i in order], "split": ["test"] * PHOTOS, "label": [0] * PHOTOS}
        pq.write_table(pa.table(table | {"prediction": [int(not right[i]) for i in order]}), folder / "predictions.parquet")
        train = {"runtime_s": 10.0 * (1 + settings["seed"]), "peak_memory_bytes": 5e8, "trainable_parameters": 1234}
        (folder / "metrics.json").write_text(
            json.dumps({"test": {"accuracy": float(right.mean())}, "validation": {"accuracy": 0.5}, "train": train})
        )


def test_the_table_says_which_cells_differ(tmp_path: Path) -> None:
    results = Study(tmp_path, CELLS, [0, 1, 2], FakeRuns(), title="Which layers").run()
    assert [(result.name, result.verdict) for result in results] == [
        ("head", "the reference"),
        ("all", "better"),
        ("same", "no difference shown"),
    ]
    for result, accuracy in zip(results, (0.70, 0.85, 0.70), strict=True):
        assert result.accuracy == pytest.approx(accuracy)
        assert result.interval.low < accuracy < result.interval.high
        assert result.training_seconds == 20
    page = (tmp_path / "study.md").read_text()
    assert page.startswith("# Which layers\n")
    assert "- all against head: better (+15.0 points, 95 % interval +" in page
    assert "in about the same time (20.0 s against 20.0 s)." in page
    rows = list(csv.DictReader((tmp_path / "study.csv").open()))
    assert [row["cell"] for row in rows] == ["head", "all", "same"]
    assert rows[0]["seeds"] == "0 1 2"
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_reference_nothing_is_compared(tmp_path: Path) -> None:
    results = Study(tmp_path, CELLS, [0], FakeRuns()).run(slice(1, 3))
    assert [(result.name, result.verdict) for result in results] == [("all", "not compared"), ("same", "not compared")]
    page = (tmp_path / "study.md").read_text()
    assert " against " not in page.partition("![")[0].partition("| --- ")[2]
    assert "With one seed the intervals are over photos alone" in page


def test_training_time_is_that_of_whole_runs_without_caching(tmp_path: Path) -> None:
    Study(tmp_path, CELLS, [0, 1], FakeRuns()).run()
    for seed, more in ((0, {"caching_s": 4.0}), (1, {"resumed_from_step": 7, "caching_s": 1.0})):
        path = tmp_path / "all" / f"seed{seed}" / "metrics.json"
        metrics = json.loads(path.read_text())
        path.write_text(json.dumps({**metrics, "train": {**metrics["train"], **more}}))
    found = Study(tmp_path, CELLS, [0, 1], FakeRuns()).write()[1]
    assert (found.training_seconds, found.caching_seconds) == (6.0, 4.0)


def test_one_run_that_was_slowed_does_not_change_the_training_time(tmp_path: Path) -> None:
    before = Study(tmp_path, CELLS, [0, 1, 2], FakeRuns()).run()[0]
    path = tmp_path / "head" / "seed2" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({**metrics, "train": {**metrics["train"], "runtime_s": 10 * metrics["train"]["runtime_s"]}}))
    assert Study(tmp_path, CELLS, [0, 1, 2], FakeRuns()).write()[0].training_seconds == before.training_seconds


def test_a_difference_is_that_of_the_seeds_which_both_have(tmp_path: Path) -> None:
    Study(tmp_path, CELLS, [0, 1, 2], FakeRuns()).run(slice(0, 1))
    for seed in (1, 2):  # of the reference alone, and far better: they must not count
        path = tmp_path / "head" / f"seed{seed}" / "predictions.parquet"
        table = pq.read_table(path)
        pq.write_table(table.set_column(table.schema.get_field_index("prediction"), "prediction", table["label"]), path)
    Study(tmp_path, CELLS, [0], FakeRuns()).run()
    found = Study(tmp_path, CELLS, [0, 1, 2], FakeRuns()).write()[1]
    assert (found.seeds, found.change) == ((0,), pytest.approx(0.15))
    assert "- all against head: better (+15.0 points," in (tmp_path / "study.md").read_text()


def test_a_cell_is_compared_with_its_own_reference(tmp_path: Path) -> None:
    study = Study(tmp_path, CELLS, [0, 1, 2], FakeRuns(), reference=lambda cell: "head" if cell == "head" else "all")
    assert [(result.name, result.verdict) for result in study.run()] == [
        ("head", "the reference"),
        ("all", "the reference"),
        ("same", "worse"),
    ]
    page = (tmp_path / "study.md").read_text()
    assert "- same against all: worse (-15.0 points, 95 % interval -" in page
    assert "all against" not in page.replace("same against all", "")


@pytest.mark.parametrize(
    ("computed", "said"),
    [
        ({"head": 0, "all": 9}, "in 2 times its time (20.0 s against 10.0 s, features of the frozen part not counted)."),
        ({"head": 9, "all": 9}, "in 1.5 times its time (24.0 s against 16.0 s)."),
        ({"head": 9, "all": None}, "in 1.2 times its time (20.0 s against 16.0 s)."),
    ],
)
def test_times_are_compared_with_the_features_unless_they_were_there_already(computed: dict[str, Any], said: str, tmp_path: Path) -> None:
    cells = {name: CELLS[name] for name in ("head", "all")}
    study = Study(tmp_path, cells, [0], FakeRuns())
    study.run()
    seconds = {"head": 10.0, "all": 20.0}
    caching = {"head": 6.0, "all": 4.0}
    for name, count in computed.items():
        path = tmp_path / name / "seed0" / "metrics.json"
        metrics = json.loads(path.read_text())
        spent = caching[name] if count else 0.0
        cache = None if count is None else {"boundaries": ["fc"], "computed": count, "reused": 9 - count, "seconds": spent}
        metrics["train"] |= {"runtime_s": seconds[name] + spent, "caching_s": spent, "feature_cache": cache}
        path.write_text(json.dumps(metrics))
    study.write()
    assert said in (tmp_path / "study.md").read_text()


def test_another_seed_with_other_settings_is_refused_too(tmp_path: Path) -> None:
    Study(tmp_path, CELLS, [0], FakeRuns()).run()
    with pytest.raises(DataError) as error:
        Study(tmp_path, {**CELLS, "head": {"freeze": "last:1"}}, [1], FakeRuns()).run()
    assert str(error.value) == (
        f"{tmp_path / 'head'} was made with other settings ({{'freeze': 'head'}}); remove {tmp_path / 'head'}, "
        "or give the study another folder."
    )


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    first, second = FakeRuns(), FakeRuns()
    Study(tmp_path, CELLS, [0], first).run(slice(0, 2))
    assert [Path(settings["output_dir"]).parent.name for settings in first.made] == ["head", "all"]
    Study(tmp_path, CELLS, [0, 1], second).run()
    assert [(Path(s["output_dir"]).parent.name, s["seed"]) for s in second.made] == [("same", 0), ("head", 1), ("all", 1), ("same", 1)]


def test_a_run_that_was_cut_off_goes_on_or_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "head" / "seed0" / "checkpoint-7").mkdir(parents=True)
    (tmp_path / "head" / "seed0" / "checkpoint-7" / "trainer_state.json").write_text("{}")
    (tmp_path / "all" / "seed0").mkdir(parents=True)
    runs = FakeRuns()
    Study(tmp_path, CELLS, [0], runs).run()
    assert [sorted(settings.keys() - {"freeze", "seed", "output_dir"}) for settings in runs.made] == [
        ["resume_from_checkpoint"],
        ["overwrite_output_dir"],
        [],
    ]


def test_a_cell_whose_settings_changed_is_not_taken_for_finished(tmp_path: Path) -> None:
    Study(tmp_path, CELLS, [0], FakeRuns()).run()
    changed = {**CELLS, "all": {"freeze": "last:1"}}
    with pytest.raises(DataError) as error:
        Study(tmp_path, changed, [0], FakeRuns()).run()
    assert str(error.value) == (
        f"{tmp_path / 'all'} was made with other settings ({{'freeze': 'none'}}); remove {tmp_path / 'all'}, "
        "or give the study another folder."
    )


def test_a_setting_that_is_not_set_is_the_same_as_one_that_is_not_there(tmp_path: Path) -> None:
    Study(tmp_path, CELLS, [0], FakeRuns()).run()
    runs = FakeRuns()
    Study(tmp_path, CELLS, [0], runs, common={"crop_pct": None}).run()
    assert runs.made == []


def test_common_settings_reach_every_cell_and_count_as_its_own(tmp_path: Path) -> None:
    runs = FakeRuns()
    Study(tmp_path, CELLS, [0], runs, common={"model": "tiny", "freeze": "never"}).run()
    assert [(settings["model"], settings["freeze"]) for settings in runs.made] == [("tiny", "head"), ("tiny", "none"), ("tiny", "last:1")]
    with pytest.raises(DataError) as error:
        Study(tmp_path, CELLS, [0], FakeRuns(), common={"model": "large", "freeze": "never"}).run()
    assert str(error.value) == (
        f"{tmp_path / 'head'} was made with other settings ({{'model': 'tiny'}}); remove {tmp_path / 'head'}, "
        "or give the study another folder."
    )


def test_a_rule_ends_the_study_between_cells(tmp_path: Path) -> None:
    runs = FakeRuns()
    study = Study(tmp_path, CELLS, [0, 1], runs, answer=lambda found: [f"{len(found)} cells."], enough=lambda found: len(found) == 2)
    assert [result.name for result in study.run()] == ["head", "all"]
    assert [(Path(s["output_dir"]).parent.name, s["seed"]) for s in runs.made] == [("head", 0), ("head", 1), ("all", 0), ("all", 1)]
    page = (tmp_path / "study.md").read_text()
    assert "\n\n2 cells.\n\n" in page
    assert "Not run: same.\n" in page


def test_a_range_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^The study has 3 cells, counted from 0; there are none in the range that was asked for\.$"):
        Study(tmp_path, CELLS, [0], FakeRuns()).run(slice(5, 7))


def test_runs_on_different_photos_are_not_compared(tmp_path: Path) -> None:
    study = Study(tmp_path, CELLS, [0], FakeRuns())
    study.run()
    path = tmp_path / "all" / "seed0" / "predictions.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match=r"^Two runs of the study were scored on different test photos, 1 of them \(photo_\d+\)\.$"):
        study.write()


def test_a_study_needs_cells_and_seeds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^A study needs at least one cell and one seed\.$"):
        Study(tmp_path, CELLS, [], FakeRuns())


def test_the_interval_covers_both_sources_of_chance() -> None:
    rng = np.random.default_rng(0)
    photos_only = seeds_and_photos_interval((rng.random((1, 500)) < 0.8).astype(float))
    assert photos_only.high - photos_only.low == pytest.approx(2 * 1.96 * (0.8 * 0.2 / 500) ** 0.5, rel=0.15)
    # seeds that differ by far more than their photos can explain
    seeds = np.stack([(rng.random(500) < rate).astype(float) for rate in (0.6, 0.8, 1.0)])
    wide = seeds_and_photos_interval(seeds)
    assert wide.high - wide.low > 2 * (photos_only.high - photos_only.low)
    assert seeds_and_photos_interval(seeds) == wide
