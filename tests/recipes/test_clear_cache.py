"""`recipes/clear_cache.py`: what it deletes, and what it says."""

import runpy
import sys
from pathlib import Path

import datasets
import pytest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "clear_cache.py"


def test_everything_kept_to_be_faster_goes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(RECIPE)])
    (tmp_path / "another_cache").write_bytes(b"not ours")
    kept = tmp_path / "hf_finetune" / "features" / "a.npy"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bytes(2**24))
    runpy.run_path(str(RECIPE), run_name="__main__")
    assert not kept.exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["another_cache"]
    assert capsys.readouterr().out.splitlines()[0] == f"0.02 GiB freed in {kept.parent}."
