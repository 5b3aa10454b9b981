"""Records that survive."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from salcap.records import RecordFile, merge_records, read_records

SETTINGS = {"model": "m", "num_frames": 8}


def record(number: int, error_class: str | None = None) -> dict:
    return {"id": f"v{number}", "caption": "é" * 40, "error_class": error_class}


def write(path: Path, numbers, **options) -> None:
    with RecordFile(path, SETTINGS, **options) as file:
        for number in numbers:
            file.write(record(number, "ReadTimeout" if number % 3 == 2 else None))


def ids(path: Path) -> list[str]:
    return [found["id"] for found in read_records(path)]


def test_every_length_of_a_torn_end_is_repaired(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, range(3))
    whole = path.read_bytes()
    second, third = (end + 1 for end in range(len(whole)) if whole[end : end + 1] == b"\n" and end < len(whole) - 1)
    for length in range(second, len(whole)):
        path.write_bytes(whole[:length])
        with RecordFile(path, SETTINGS) as file:
            assert list(file.outcomes) == ["v0", "v1"][: 1 + (length >= third)]
            for number in range(len(file.outcomes), 3):
                file.write(record(number, "ReadTimeout" if number == 2 else None))
        assert path.read_bytes() == whole


def test_failures_are_retried_where_asked(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, range(6))
    with RecordFile(path, SETTINGS) as file:
        assert file.outcomes == {
            "v0": None,
            "v1": None,
            "v2": "ReadTimeout",
            "v3": None,
            "v4": None,
            "v5": "ReadTimeout",
        }
    with RecordFile(path, SETTINGS, retry_failed=True) as file:
        assert list(file.outcomes) == ["v0", "v1", "v3", "v4"]
        file.write(record(2))
    assert ids(path) == ["v0", "v1", "v3", "v4", "v2"]


def test_other_settings_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [0])
    with pytest.raises(ValueError, match=r"settings \(num_frames: 8, now 4\); name another, or delete or overwrite it"):
        RecordFile(path, {**SETTINGS, "num_frames": 4})
    with pytest.raises(ValueError, match=r"\(num_beams: none, now 3\)"):
        RecordFile(path, {**SETTINGS, "num_beams": 3})
    foreign = tmp_path / "b.jsonl"
    foreign.write_text("kept\n")
    for options in ({}, {"retry_failed": True}):
        with pytest.raises(ValueError, match=r"without its b\.jsonl\.settings"):
            RecordFile(foreign, SETTINGS, **options)
    assert foreign.read_text() == "kept\n"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1 is no record"):
        RecordFile(path, SETTINGS)


def test_nothing_is_replaced_before_the_first_record(tmp_path):
    path = tmp_path / "a.jsonl"
    RecordFile(path, SETTINGS).close()
    assert list(tmp_path.iterdir()) == []
    write(path, range(3))
    other = {**SETTINGS, "num_frames": 4}
    RecordFile(path, other, overwrite=True).close()
    with RecordFile(path, SETTINGS) as file:
        assert len(file.outcomes) == 3
    with RecordFile(path, other, overwrite=True) as file:
        file.write(record(7))
    with RecordFile(path, other) as file:
        assert list(file.outcomes) == ["v7"]


def test_two_runs_on_one_file_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with RecordFile(path, SETTINGS) as first:
        first.write(record(0))
        with pytest.raises(ValueError, match=r"another run is writing .*a\.jsonl"):
            RecordFile(path, SETTINGS)
    with RecordFile(path, SETTINGS) as second:
        assert list(second.outcomes) == ["v0"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_a_file_system_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog, code):
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "a.jsonl"
    for numbers in (range(2), range(2, 4)):
        write(path, numbers)
    assert ids(path) == ["v0", "v1", "v2", "v3"]
    parts = [tmp_path / "b.0.jsonl", tmp_path / "b.1.jsonl"]
    for part, number in zip(parts, (1, 0), strict=True):
        write(part, [number])
    assert merge_records(parts, tmp_path / "b.jsonl", ["v0", "v1"])
    assert ids(tmp_path / "b.jsonl") == ["v0", "v1"]
    assert not list(tmp_path.glob("*.partial"))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 5
    assert f"the file system of {path} has no locks ({os.strerror(code)})" in warnings[0]


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_taken_is_no_missing_lock(tmp_path, monkeypatch, code):
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match="another run is writing"):
        RecordFile(tmp_path / "a.jsonl", SETTINGS)


@pytest.fixture(params=["tmpfs", "file size limit"])
def full(request, tmp_path: Path) -> Iterator[Path]:
    """A folder whose files cannot grow beyond 8 kB in all, or each."""
    if request.param == "tmpfs":
        yield request.getfixturevalue("small_disk")
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        yield tmp_path
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_whole_records(full):
    path = full / "a.jsonl"
    with pytest.raises(OSError, match=r"its [1-9][0-9]+ records are whole") as caught:
        write(path, range(1000))
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert str(path) in str(caught.value)
    assert path.read_bytes().endswith(b"\n")
    written = ids(path)
    assert written == [f"v{number}" for number in range(len(written))]
    with RecordFile(path, SETTINGS) as file:
        assert list(file.outcomes) == written


def test_settings_that_do_not_fit_leave_nothing(full):
    path = full / "a.jsonl"
    words = r"cannot write .*a\.jsonl\.settings: (No space left|File too large)"
    with RecordFile(path, {"prompt": "x" * 9000}) as file, pytest.raises(OSError, match=words) as caught:
        file.write(record(0))
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert list(full.iterdir()) == []
    write(path, [0])
    assert ids(path) == ["v0"]


def test_parts_are_merged_when_all_are_there(tmp_path):
    parts, path, wanted = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"], tmp_path / "all.jsonl", ["v0", "v1", "v2", "v3"]
    write(parts[0], [2, 0])
    assert not merge_records(parts, path, wanted)
    write(parts[1], [1])
    assert not merge_records(parts, path, wanted)
    assert not path.exists()
    write(parts[1], [3])
    assert merge_records(parts, path, wanted)
    assert ids(path) == wanted
    with RecordFile(path, SETTINGS) as file:
        assert list(file.outcomes) == wanted
    settings = tmp_path / "2.jsonl.settings"
    settings.write_text(json.dumps({**SETTINGS, "model": "n"}))
    with pytest.raises(ValueError, match=r"2.jsonl was made with other settings \(model: 'n', now 'm'\)"):
        merge_records(parts, path, wanted)
