"""Records in a folder of parts: the same out as in, resumed, on a file system that is no disk."""

from __future__ import annotations

import json

import fsspec
import pytest

from salcap import record_parts
from salcap.caption import Caption
from salcap.record_parts import RecordParts, read_parts

SETTINGS = {"model": "m", "num_frames": 2}


def record(name: str, error_class: str | None = None) -> dict:
    caption = Caption(
        None if error_class else f"a “{name}”\n",
        f"{name}.mp4",
        0.0,
        2.5,
        -0.25,
        max_visual_tokens=None if error_class else 7,
        zoom_boxes=((0.0, 0.25, 0.5, 1.0),),
        frame_pts_seconds=(0.5, 1.5),
        timings={"read_ms": 1.5, "encode_ms": 2.0} if error_class is None else {},
        warnings=("odd",),
        error=error_class and "made so",
        error_class=error_class,
    )
    return json.loads(json.dumps({"id": name, **caption.to_dict()}))


def write(folder: str, *records: dict, **options: bool) -> RecordParts:
    with RecordParts(folder) as parts:
        parts.begin(SETTINGS, **options)
        for each in records:
            parts.add(each)
    return parts


@pytest.fixture(params=["disk.jsonl", "disk.parquet", "memory.jsonl", "memory.parquet"])
def folder(request, tmp_path) -> str:
    place, _, suffix = request.param.partition(".")
    return str(tmp_path / f"out.{suffix}") if place == "disk" else f"memory://{tmp_path.name}/out.{suffix}"


def test_what_goes_in_comes_out_and_a_second_run_goes_on(folder):
    records = [record("a"), record("b", "VideoDecodeError"), record("c")]
    assert write(folder, *records[:2]).outcomes == {"a": None, "b": "VideoDecodeError"}
    assert list(read_parts(folder)) == records[:2]
    assert write(folder, records[2]).outcomes == {"a": None, "b": "VideoDecodeError", "c": None}
    assert list(read_parts(folder)) == records
    assert write(folder, retry_failed=True).outcomes == {"a": None, "c": None}
    assert list(read_parts(folder)) == [records[0], records[2]]
    assert write(folder, record("d"), overwrite=True).outcomes == {"d": None}
    assert list(read_parts(folder)) == [record("d")]
    files, root = fsspec.core.url_to_fs(folder)
    assert sorted(path.rsplit("/", 1)[1] for path in files.ls(root, detail=False)) == [
        "_settings.json",
        f"part-000000{folder[folder.rindex('.') :]}",
    ]


def test_a_part_is_written_when_it_is_full_or_old(tmp_path, monkeypatch):
    monkeypatch.setattr(record_parts, "PART_RECORDS", 2)
    with RecordParts(tmp_path / "out.jsonl") as parts:
        parts.begin(SETTINGS)
        for name in "abc":
            parts.add(record(name))
        assert [each["id"] for each in read_parts(tmp_path / "out.jsonl")] == ["a", "b"]
        monkeypatch.setattr(record_parts, "PART_SECONDS", 0.0)
        parts.add(record("d"))
        assert len(list((tmp_path / "out.jsonl").glob("part-*"))) == 2
    assert [each["id"] for each in read_parts(tmp_path / "out.jsonl")] == list("abcd")


def test_what_was_gathered_is_kept_where_the_run_ends_early(tmp_path):
    def stopped() -> None:
        with RecordParts(tmp_path / "out.jsonl") as parts:
            parts.begin(SETTINGS)
            parts.add(record("a"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(read_parts(tmp_path / "out.jsonl")) == [record("a")]


def test_two_runs_on_one_output_are_found_out(tmp_path):
    first, second = (RecordParts(tmp_path / "out.jsonl") for _ in range(2))
    first.begin(SETTINGS)
    second.begin(SETTINGS)
    first.add(record("a"))
    second.add(record("a"))
    first.flush()
    with pytest.raises(ValueError, match=r"another run is writing .*out\.jsonl"):
        second.flush()
    assert list(read_parts(tmp_path / "out.jsonl")) == [record("a")]


def test_a_disk_that_fails_leaves_the_parts_before(tmp_path, monkeypatch):
    write(str(tmp_path / "out.jsonl"), record("a"))
    parts = RecordParts(tmp_path / "out.jsonl")
    parts.begin(SETTINGS)
    parts.add(record("b"))
    (tmp_path / "out.jsonl" / ".part-000001.jsonl.partial").mkdir()  # nothing can be written in its place
    with pytest.raises(OSError, match=r"cannot write .*part-000001\.jsonl: Is a directory; the parts before are whole"):
        parts.flush()
    assert list(read_parts(tmp_path / "out.jsonl")) == [record("a")]


def test_other_outputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"suffix '\.csv', allowed: \.jsonl, \.parquet"):
        RecordParts("memory://out.csv")
    (tmp_path / "file.jsonl").touch()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        RecordParts(tmp_path / "file.jsonl")
    with pytest.raises(ValueError, match="holds no parts"):
        list(read_parts(tmp_path / "none.jsonl"))
    write(str(tmp_path / "out.jsonl"), record("a"))
    with pytest.raises(ValueError, match=r"other settings \(num_frames: 2, now 3\)"):
        RecordParts(tmp_path / "out.jsonl").begin({**SETTINGS, "num_frames": 3})
    (tmp_path / "out.jsonl" / "_settings.json").unlink()
    with pytest.raises(ValueError, match=r"without its _settings\.json no run can go on"):
        RecordParts(tmp_path / "out.jsonl").begin(SETTINGS)
    (tmp_path / "out.jsonl" / "part-000000.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"part-000000\.jsonl, line 1 is no record"):
        list(read_parts(tmp_path / "out.jsonl"))
