"""Arrays on disk: whole or not there, bounded, and never in the way of a run."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest

from hf_finetune.data.stored_arrays import ArrayStore, StoreError, clear, data_fingerprint, digest
from tests.coloured import photo_split

ARRAY = np.arange(12, dtype=np.float32).reshape(4, 3)


def store(path: Path, limit: int = 10_000) -> ArrayStore:
    return ArrayStore(path, limit)


def test_what_was_written_in_parts_is_read_back(tmp_path: Path) -> None:
    written = store(tmp_path).write("a", (4, 3), "float32", [ARRAY[:1], ARRAY[1:]])
    np.testing.assert_array_equal(written, ARRAY)
    np.testing.assert_array_equal(store(tmp_path).open("a"), ARRAY)
    assert store(tmp_path).open("b") is None


def test_a_file_that_was_cut_short_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path).write("a", (4, 3), "float32", [ARRAY])
    os.truncate(tmp_path / "a.npy", 140)
    with caplog.at_level("INFO"):
        assert store(tmp_path).open("a") is None
    assert "cannot be used" in caplog.text
    assert len(caplog.records) == 1


def test_an_array_above_the_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        store(tmp_path, 2**30).write("a", (2**30,), "float32", [])
    assert str(error.value) == "4.00 GiB are needed and 1.00 GiB allowed"


def test_the_least_recently_used_makes_room(tmp_path: Path) -> None:
    small = store(tmp_path, 400)  # a file takes 176 bytes
    for age, name in ((30, "a"), (20, "b")):
        small.write(name, (4, 3), "float32", [ARRAY])
        os.utime(tmp_path / f"{name}.npy", (age, age))
    small.open("a")
    small.write("c", (40,), "float32", [np.zeros(40)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "c.npy"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode.replace("b", "")))
    with pytest.raises(StoreError) as error:
        store(tmp_path).write("a", (4, 3), "float32", [ARRAY])
    assert str(error.value) == f"{tmp_path} cannot be written (No space left on device)"
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_while_a_chunk_is_computed_is_not_taken_for_the_disk(tmp_path: Path) -> None:
    def parts():
        yield ARRAY[:2]
        raise OSError("image file is truncated")

    with pytest.raises(OSError, match=r"^image file is truncated$"):
        store(tmp_path).write("a", (4, 3), "float32", parts())
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_use_is_not_deleted(tmp_path: Path) -> None:
    small = store(tmp_path, 400)  # a file takes 176 bytes
    first = small.write("a", (4, 3), "float32", [ARRAY])
    with pytest.raises(StoreError) as error:
        small.write("b", (60,), "float32", [np.zeros(60)])
    assert str(error.value) == "240 bytes are needed beside 176 bytes in use, and 400 bytes allowed"
    np.testing.assert_array_equal(first, ARRAY)
    store(tmp_path).write("idle", (2,), "float32", [np.zeros(2)])
    with pytest.raises(StoreError):
        small.write("b", (60,), "float32", [np.zeros(60)])
    (tmp_path / "idle.npy").unlink()  # it is there: nothing is deleted for what does not fit in any case
    del first
    small.write("b", (60,), "float32", [np.zeros(60)])
    assert [path.name for path in tmp_path.iterdir()] == ["b.npy"]


def test_a_draft_of_a_killed_run_counts_and_is_deleted_after_a_day(tmp_path: Path) -> None:
    young, old = tmp_path / "x.1.part", tmp_path / "y.2.part"
    for path in (young, old):
        path.write_bytes(bytes(300))
    os.utime(old, (1, 1))
    with pytest.raises(StoreError, match="beside 300 bytes in use"):
        store(tmp_path, 320).write("a", (4, 3), "float32", [ARRAY])
    assert [path.name for path in tmp_path.iterdir()] == ["x.1.part"]


def test_a_file_of_someone_else_is_read_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path).write("a", (4, 3), "float32", [ARRAY])

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    np.testing.assert_array_equal(store(tmp_path).open("a"), ARRAY)
    assert (tmp_path / "a.npy").is_file()


def test_clearing_says_how_much_was_freed(tmp_path: Path) -> None:
    store(tmp_path).write("a", (4, 3), "float32", [ARRAY])
    size = (tmp_path / "a.npy").stat().st_size
    assert clear(tmp_path) == size
    assert clear(tmp_path / "nowhere") == 0


def test_digests_know_where_a_part_ends() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a", b"b") == digest("a", "b")


def test_the_fingerprint_follows_the_photos_and_their_labels() -> None:
    one = data_fingerprint(photo_split(2))
    assert one == data_fingerprint(photo_split(2))
    assert one != data_fingerprint(photo_split(2, 1))
    assert one != data_fingerprint(photo_split(2).select(range(5)))
