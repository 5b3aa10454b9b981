"""Processes that read: what they hand over is what is read here, and their end is one clip's."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import odd_readers
import pytest
import torch
from video_factory import ROOT, make_video

import salcap.reading
from salcap.reading import ReaderPool, ReadError
from salcap.shots import find_cuts
from salcap.video import VideoLimits, read_frames
from salcap.windows import picture_seconds

LIMITS = VideoLimits()


@pytest.fixture(scope="module")
def odd_pool() -> Iterator[ReaderPool]:
    with ReaderPool(1, time_limit=3.0, reader=odd_readers.read) as pool:
        yield pool


def test_a_process_reads_what_is_read_here() -> None:
    sample = str(ROOT / "data" / "sample.mp4")
    with ReaderPool(1, time_limit=60.0) as pool:
        futures = [pool.submit(sample, 3, 1.0, 4.0, size=(20, 30)), pool.submit("missing.mp4", 3, None, None)]
        frames, expected = futures[0].result(), read_frames(sample, 3, 1.0, 4.0, size=(20, 30))
        assert torch.equal(frames.pixels, expected.pixels)
        for name in ("source", "warnings", "clip_seconds"):
            assert getattr(frames, name) == getattr(expected, name)
        assert torch.equal(frames.pts_seconds, expected.pts_seconds)
        with pytest.raises(ReadError, match=r"cannot read video missing\.mp4: No such file") as caught:
            futures[1].result()
        assert caught.value.error_class == "VideoDecodeError"


@pytest.mark.parametrize(
    "name, error_class, message",
    [
        ("die.mp4", "ReaderDied", "die.mp4: the reading process died (SIGSEGV)"),
        ("hang.mp4", "ReadTimeout", "hang.mp4: not read within the time limit of 3 s"),
        ("broken.mp4", "VideoDecodeError", "cannot read video broken.mp4: made so"),
    ],
)
def test_a_process_that_ends_costs_one_clip(odd_pool: ReaderPool, name: str, error_class: str, message: str) -> None:
    bad, good = odd_pool.submit(name, 2, None, None), odd_pool.submit("good.mp4", 2, None, None)
    with pytest.raises(ReadError) as caught:
        bad.result()
    assert (caught.value.error_class, str(caught.value)) == (error_class, message)
    assert torch.equal(good.result().pixels, odd_readers.read("good.mp4", 2, None, None, limits=LIMITS).pixels)


def test_what_a_codec_prints_is_no_answer(odd_pool: ReaderPool) -> None:
    frames = odd_pool.submit("loud.mp4", 2, None, None, size=(4, 4)).result()
    assert (frames.pixels.shape, frames.source, frames.warnings) == ((2, 3, 4, 4), "loud.mp4", ("odd",))


def test_a_process_does_not_outlive_the_run(odd_pool: ReaderPool) -> None:
    """As when the run is killed: the pipes close, and the process ends in the middle of a file."""
    assert odd_pool.submit("good.mp4", 1, None, None).result()
    (worker,) = odd_pool._workers
    process = worker._process
    request = {"function": "odd_readers:read", "args": ["hang.mp4", 1, None, None], "options": {}, "limits": {}}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_an_answer_that_nobody_takes_ends_the_process(odd_pool: ReaderPool) -> None:
    assert odd_pool.submit("good.mp4", 1, None, None).result()
    (worker,) = odd_pool._workers
    process = worker._process
    process.stdout.close()
    request = {"function": "odd_readers:read", "args": ["good.mp4", 1, None, None], "options": {}, "limits": {}}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    assert process.wait(timeout=60) == 0


def test_more_than_the_limits_allow_is_not_taken() -> None:
    with ReaderPool(1, limits=VideoLimits(max_bytes=100), reader=odd_readers.read) as pool:
        with pytest.raises(ReadError) as caught:
            pool.submit("good.mp4", 2, None, None).result()
        assert caught.value.error_class == "ReaderDied"


def test_a_header_that_takes_all_memory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A movie of 2 kB whose sample table stands for 80 million samples: 2 GB of index, which take minutes."""
    data = bytearray(make_video(tmp_path / "a.mp4", 24).read_bytes())
    number = 80_000_000
    at = data.index(b"stsz") + 4
    data[at : at + 12] = struct.pack(">III", 0, 1, number)
    at = data.index(b"stsc") + 12
    data[at + 4 : at + 8] = struct.pack(">I", number)
    at = data.index(b"stts") + 12
    data[at : at + 4] = struct.pack(">I", number)
    (tmp_path / "bomb.mp4").write_bytes(data)
    monkeypatch.setattr(salcap.reading, "MEMORY_BYTES", 1200 * 2**20)
    with ReaderPool(1, time_limit=60.0) as pool:
        with pytest.raises(ReadError) as caught:
            pool.submit(str(tmp_path / "bomb.mp4"), 2, None, None).result()
        assert "bomb.mp4" in str(caught.value)
        assert caught.value.error_class != "ReadTimeout"
        assert len(pool.submit(str(tmp_path / "a.mp4"), 2, None, None).result()) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_other_functions_look_at_a_file_there_too(workers: int) -> None:
    sample = str(ROOT / "data" / "sample.mp4")
    with ReaderPool(workers, limits=VideoLimits(max_seconds=9)) as pool:
        assert (
            tuple(pool.call(picture_seconds, sample).result()) == picture_seconds(sample) == (0.0, pytest.approx(6.0))
        )
        assert pool.call(find_cuts, sample, 0.0, 6.0).result() == []
    with ReaderPool(workers, limits=VideoLimits(max_seconds=5)) as pool:
        with pytest.raises(RuntimeError, match="6 s long, at most 5 s are read") as caught:
            pool.call(picture_seconds, sample).result()
        assert getattr(caught.value, "error_class", "VideoDecodeError") == "VideoDecodeError"


def test_a_search_that_takes_too_long_is_ended() -> None:
    with ReaderPool(1, time_limit=2.0) as pool:
        with pytest.raises(ReadError) as caught:
            pool.call(odd_readers.read, "hang.mp4", 1, None, None).result()
        assert caught.value.error_class == "ReadTimeout"


def test_without_a_process_there_is_no_time_limit() -> None:
    with pytest.raises(ValueError, match="time limit of 5 s needs num_workers of at least 1"):
        ReaderPool(0, time_limit=5)
    with ReaderPool(0, reader=odd_readers.read) as pool:
        assert len(pool.submit("good.mp4", 2, None, None).result()) == 2


def test_a_reading_process_starts_without_torch():
    code = "import sys, salcap.reader_process, salcap.windows; print({'torch', 'transformers'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_a_process_is_replaced_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salcap.reading, "CLIPS_A_PROCESS", 2)
    sample, pids = str(ROOT / "data" / "sample.mp4"), []
    with ReaderPool(1, time_limit=60.0) as pool:
        for start in range(4):
            assert pool.submit(sample, 2, float(start), None).result().pts_seconds[0] >= start
            pids.append(pool._workers[0]._process.pid)
    assert pids[0] == pids[1] != pids[2] == pids[3]
