"""What becomes of damaged, hostile and wrong files."""

from __future__ import annotations

import io
import os
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from video_factory import ROOT, CountedVideo, draw_number, load_script, make_video, numbers, read_number

import salcap.video_probe
import salcap.video_reader
from salcap.timeline import in_order
from salcap.video import VideoDecodeError, probe, read_frames, stream_frames

FPS, TOTAL = 25, 50
SCRIPT = load_script("make_hostile_folder")


def decode_damaged(path: Path) -> list[tuple[int, np.ndarray]]:
    """Brute force: (pts, picture) of every frame that decodes, with one thread, which loses none."""
    frames: list[tuple[int, np.ndarray]] = []
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        codec.thread_count = 1
        packets = container.demux(video=0)
        while True:
            try:
                for packet in packets:
                    frames += [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in codec.decode(packet)]
                break
            except av.error.InvalidDataError:
                packets = container.demux(video=0)
            except EOFError:
                break
    return frames


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountedVideo]:
    CountedVideo.reset()
    monkeypatch.setattr(salcap.video_reader, "_Video", CountedVideo)
    monkeypatch.setattr(salcap.video_probe, "_Video", CountedVideo)
    return CountedVideo


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_what_is_left_of_a_cut_file_is_read(tmp_path: Path, container: str, share: float) -> None:
    sample = ROOT / "data" / "sample.mp4"
    data = sample.read_bytes() if container == "mp4" else SCRIPT.remux(sample, container)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * share) | 1])  # odd: not at the end of a transport packet
    left = [picture for _, picture in decode_damaged(path)]
    frames = read_frames(path, 5)
    assert any("truncated" in warning for warning in frames.warnings)
    indices = [round(time * 24) for time in frames.pts_seconds.tolist()]
    assert indices == pytest.approx([len(left) * (2 * i + 1) / 10 for i in range(5)], abs=4)  # over all that is left
    for index, picture in zip(indices, frames.pixels, strict=True):
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), left[index])


def test_a_hole_is_stepped_over(tmp_path: Path) -> None:
    options = {"movflags": "faststart"}
    path = make_video(tmp_path / "whole.mp4", TOTAL, fps=FPS, gop=10, mux_options=options)
    data = bytearray(path.read_bytes())
    middle = len(data) * 2 // 3
    data[middle : middle + 300] = bytes(300)
    (tmp_path / "hole.mp4").write_bytes(data)
    frames = read_frames(tmp_path / "hole.mp4", TOTAL)
    decodable = [read_number(picture) for _, picture in in_order(decode_damaged(tmp_path / "hole.mp4"))]
    assert numbers(frames) == decodable
    assert 10 < len(decodable) < TOTAL
    assert numbers(frames)[-5:] == list(range(TOTAL - 5, TOTAL))  # the last group is whole again
    assert frames.pts_seconds[-5:].tolist() == pytest.approx([number / FPS for number in range(TOTAL - 5, TOTAL)])
    assert any(warning.startswith("damaged: ") for warning in frames.warnings)
    assert frames.warnings[0] == f"asked for {TOTAL} frames, the clip gave {len(decodable)}"


def test_a_wrong_time_does_not_hide_the_frames_after_it(tmp_path: Path) -> None:
    times = [number / 25 for number in range(TOTAL)]
    data = bytearray(make_video(tmp_path / "a.ts", TOTAL, pts_seconds=times, options={"bf": "0"}).read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 4] == b"\x00\x00\x01\xe0"]
    data[starts[20] + 9] ^= 0x04  # a high bit of the 21st packet's time
    (tmp_path / "b.ts").write_bytes(data)
    frames = read_frames(tmp_path / "b.ts", 10)
    assert len(frames) == 10
    assert numbers(frames)[-1] > 40
    for start in starts:  # nor does it, wherever it is looked at, pass for a clock that starts over
        one = data.copy()
        one[starts[20] + 9] ^= 0x04
        one[start + 9] ^= 0x02
        assert not any("starts over" in note for note in probe(io.BytesIO(one)).warnings)
    long = bytearray(make_video(tmp_path / "a.ts", 400, pts_seconds=[2 * n for n in range(400)]).read_bytes())
    for start in [at for at in range(len(long)) if long[at : at + 4] == b"\x00\x00\x01\xe0"]:
        one = long.copy()
        one[start + 9] ^= 0x02
        assert not any("starts over" in note for note in probe(io.BytesIO(one)).warnings)


@pytest.mark.parametrize("starts", [(0, 0), (1000, 50000), (50000, 1000)])
@pytest.mark.parametrize("lengths", [(50, 50), (80, 20), (20, 80), (92, 8), (5, 95)])
def test_a_clock_that_starts_over_or_leaps_hides_no_frame(
    tmp_path: Path, lengths: tuple[int, int], starts: tuple[int, int]
) -> None:
    parts = [
        make_video(tmp_path / f"{start}{length}.ts", length, pts_seconds=[start + n / FPS for n in range(length)])
        for length, start in zip(lengths, starts, strict=True)
    ]
    for part in parts:
        assert read_frames(part, 4).warnings == ()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    warnings: list[str] = []
    timed = list(stream_frames(joined, size=(96, 160), warnings=warnings))
    assert [read_number(picture) for _, picture in timed] == [*range(lengths[0]), *range(lengths[1])]
    assert [seconds for seconds, _ in timed] == pytest.approx([number / FPS for number in range(100)], abs=1e-3)
    frames = read_frames(joined, 10)
    assert frames.pts_seconds.tolist() == pytest.approx([0.2 + 0.4 * number for number in range(10)], abs=1e-3)
    assert numbers(frames) == [number if number < lengths[0] else number - lengths[0] for number in range(5, 100, 10)]
    assert numbers(read_frames(joined, 1, 3.6, 3.8)) == [92 - (lengths[0] if lengths[0] <= 92 else 0)]
    assert probe(joined).duration_seconds == pytest.approx(4.0, abs=1e-3)
    for found in (frames.warnings, probe(joined).warnings, tuple(warnings)):
        assert [warning for warning in found if "its clock starts over or leaps" not in warning] == []
        assert len(found) == 1


def test_a_hole_in_a_recording_keeps_its_times(tmp_path: Path) -> None:
    """Nor does one of a low frame rate leap from frame to frame."""
    hole = [2 * number + (90 if number > 60 else 0) for number in range(120)]
    for times in (hole, *([100 * number for number in range(count)] for count in (8, 12, 40))):
        path = make_video(tmp_path / "a.ts", len(times), pts_seconds=times, options={"bf": "0"})
        assert not any("starts over" in note for note in probe(path).warnings)
        assert read_frames(path, len(times)).pts_seconds.tolist() == pytest.approx(times, abs=1e-3)


def too_big() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (9000, 9000)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("missing.mp4", None, "No such file or directory"),
        ("empty.mp4", b"", "the file is empty (0 bytes)"),
        ("text.mp4", b"no video at all\n" * 99, "the file is text, not a video; it begins 'no video at all"),
        ("text.txt", b"no video at all\n" * 99, "the file is text, not a video; it begins 'no video at all"),
        ("list.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "the file is a playlist"),
        ("sound.mp4", SCRIPT.sound(), "no video stream (streams in the file: audio)"),
        ("cover.mp3", SCRIPT.sound_with_cover(), "no video stream (streams in the file: audio, video)"),
        ("big.png", too_big(), "9000x9000 exceeds specified max pixel count"),
        ("index_lost.mp4", b"\0\0\0\x18ftypisom\0\0\2\0isomavc1\0\0\0\x10mdat12345678", "moov atom not found"),
    ],
)
@pytest.mark.parametrize("reader", [read_frames, probe])
def test_a_file_without_frames_fails(
    tmp_path: Path, reader: Any, name: str, content: bytes | None, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoDecodeError) as caught:
        reader(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert caught.value.path == str(path)
    if "no video stream" not in words:
        assert isinstance(caught.value.__cause__, Exception)  # chained
    assert capfd.readouterr() == ("", "")  # FFmpeg's log is in the message and nowhere else
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_is_no_file_fails(tmp_path: Path) -> None:
    with pytest.raises(VideoDecodeError, match="Is a directory"):
        read_frames(tmp_path)
    with pytest.raises(VideoDecodeError, match="not URLs"):
        read_frames("https://example.com/a.mp4")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VideoDecodeError, match="not a regular file"):  # and does not wait for a writer
        read_frames(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(VideoDecodeError, match="not a regular file"):
            read_frames(tmp_path / "s")


def test_the_sound_file_stays_silent_about_pictures(tmp_path: Path) -> None:
    """A cover picture that does decode is no video either."""
    cover = io.BytesIO()
    Image.fromarray(draw_number(3, 64, 64)).save(cover, "png")
    picture = b"\0image/png\0\x03\0" + cover.getvalue()
    tag = b"APIC" + len(picture).to_bytes(4, "big") + b"\0\0" + picture
    size = bytes((len(tag) >> shift) & 127 for shift in (21, 14, 7, 0))
    path = tmp_path / "song.mp3"
    path.write_bytes(b"ID3\x03\0\0" + size + tag + (b"\xff\xfb\x10\xc4" + bytes(100)) * 40)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(VideoDecodeError, match="no video stream"):
        read_frames(path)


def test_many_threads_read_bad_files(tmp_path: Path) -> None:
    """FFmpeg's log, which is switched on for the message of a file that fails, is the whole process's."""
    for name, content in SCRIPT.hostile_files(ROOT / "data" / "sample.mp4", seed=1):
        if name.startswith(("cut", "flipped")) and name.endswith(("mp4", "ts")):
            (tmp_path / name).write_bytes(content)

    def outcome(path: Path) -> int | str:
        try:
            return len(read_frames(path, 4, size=(32, 32)))
        except VideoDecodeError as error:
            return str(error)

    paths = sorted(tmp_path.iterdir())
    assert len(paths) > 20
    one_by_one = [outcome(path) for path in paths]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(outcome, paths)) == one_by_one
    assert av.logging.get_level() is None


def test_hostile_files(tmp_path: Path, counted: type[CountedVideo], capfd: pytest.CaptureFixture[str]) -> None:
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    outcomes: dict[str, int] = {}
    for name, content in SCRIPT.hostile_files(ROOT / "data" / "sample.mp4", seed=0):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            frames = read_frames(path, 4, size=(32, 32))
        except VideoDecodeError as error:
            outcomes[name], message = 0, str(error)
        else:
            outcomes[name], message = len(frames), f"{path}: {frames.warnings}"
            assert len(frames) == 4 or frames.warnings, name
        assert str(path) in message, name
    assert len(outcomes) >= 40
    for name, number in outcomes.items():
        if name.startswith(("cut_0.5.", "cut_0.8", "cut_0.9", "flipped_1e-05", "hole")) and name != "cut_0.5.end.mp4":
            assert number == 4, name  # most of these still decodes
    assert sum(number == 0 for number in outcomes.values()) > 30
    assert counted.opened == counted.closed > 0
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors
    assert capfd.readouterr() == ("", "")
