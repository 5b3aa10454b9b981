"""Recordings laid end to end, sound before the picture, packets of several frames: what time each frame has."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_factory import draw_number, make_video, numbers, read_number

from salcap.timeline import split_clock
from salcap.video import probe, read_frames, stream_frames
from salcap.windows import cut_windows

HEIGHT, WIDTH, FPS = 96, 160, 25
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
# name -> FFmpeg's muxer, codec, options, bytes of the header that a reconnect leaves out
CONTAINERS = {
    "mkv": ("matroska", "libx264", {}, 0),
    "live.mkv": ("matroska", "libx264", {"live": "1"}, 0),
    "webm": ("webm", "libvpx", {}, 0),
    "flv": ("flv", "libx264", {}, 13),
    "fragments.mp4": ("mp4", "libx264", FRAGMENTS, 0),
    "mpg": ("vob", "mpeg2video", {}, 0),
    "ts": ("mpegts", "libx264", {}, 0),
}
ONLY_FIRST = {
    "mp4": ("mp4", "libx264", {}),
    "faststart.mp4": ("mp4", "libx264", {"movflags": "faststart"}),
    "mov": ("mov", "libx264", {}),
    "flv": ("flv", "libx264", {}),
    "wmv": ("asf", "wmv2", {}),
}
WARNING = "its clock starts over or leaps"


def record(path: Path, muxer: str, codec: str, options: dict[str, str], first: int, count: int) -> bytes:
    """A recording of its own clock whose frames say ``first``, ``first + 1``, ..."""
    with av.open(str(path), "w", format=muxer, options=options) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate, stream.codec_context.gop_size = 2_000_000, 12
        for number in range(first, first + count):
            frame = av.VideoFrame.from_ndarray(draw_number(number, HEIGHT, WIDTH), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize("lengths", [(100, 100), (50, 150), (150, 50), (75, 75, 50)], ids=str)
@pytest.mark.parametrize("name", CONTAINERS)
def test_joined_recordings_are_read_in_the_order_of_the_file(name, lengths, tmp_path):
    muxer, codec, options, header = CONTAINERS[name]
    path, first, parts = tmp_path / f"joined.{name}", 0, []
    for count in lengths:
        data = record(tmp_path / f"part.{name}", muxer, codec, options, first, count)
        parts.append(data[header:] if parts else data)
        first += count
    path.write_bytes(b"".join(parts))
    frames = read_frames(path, 10, exact=True)
    assert any(WARNING in warning for warning in frames.warnings)
    if any("another file follows" in warning for warning in frames.warnings):
        first -= lengths[-1]  # FFmpeg reads no third segment of Matroska
    assert frames.clip_seconds == pytest.approx((0, first / FPS), abs=0.05)
    said = numbers(frames)
    assert said == pytest.approx([(index + 0.5) * first / 10 for index in range(10)], abs=1)
    assert frames.pts_seconds.tolist() == pytest.approx([number / FPS for number in said], abs=0.05)
    every = [(seconds, read_number(picture)) for seconds, picture in stream_frames(path, size=(HEIGHT, WIDTH))]
    assert [number for _, number in every] == list(range(first))
    assert (np.diff([seconds for seconds, _ in every]) > 0).all()


@pytest.mark.parametrize("lengths", [(100, 100), (50, 150), (150, 50)], ids=str)
def test_fragments_that_cannot_be_found_any_more_are_not_read(lengths, tmp_path):
    """They state where their samples lie from the start of their own file."""
    options, first, parts = {"movflags": "frag_keyframe+empty_moov"}, 0, []
    for count in lengths:
        parts.append(record(tmp_path / "part.mp4", "mp4", "libx264", options, first, count))
        first += count
    (tmp_path / "joined.mp4").write_bytes(b"".join(parts))
    for source in (tmp_path / "joined.mp4", b"".join(parts)):
        frames = read_frames(source, lengths[0])
        assert numbers(frames) == list(range(lengths[0]))
        assert frames.warnings == ("another file follows, as in joined files: only the first one is read",)


@pytest.mark.parametrize("name", ONLY_FIRST)
def test_a_file_behind_the_one_that_is_read_is_told(name, tmp_path):
    one, other = (record(tmp_path / f"{first}.{name}", *ONLY_FIRST[name], first, 60) for first in (0, 60))
    path = tmp_path / f"joined.{name}"
    path.write_bytes(one + other)
    frames = read_frames(path, 60)
    assert numbers(frames) == list(range(60))
    assert any("another file follows" in warning for warning in frames.warnings)
    assert read_frames(path.read_bytes(), 2).warnings == read_frames(path, 2).warnings


@pytest.mark.parametrize("name", [*CONTAINERS, "mp4", "mov", "wmv"])
def test_one_recording_gives_no_warning(name, tmp_path):
    made = CONTAINERS[name][:3] if name in CONTAINERS else ONLY_FIRST[name]
    path = tmp_path / f"one.{name}"
    record(path, *made, 0, 130)
    frames = read_frames(path, 130)
    assert numbers(frames) == list(range(130))
    assert frames.warnings == ()
    assert frames.pts_seconds.tolist() == pytest.approx([number / FPS for number in range(130)], abs=0.011)


@pytest.mark.parametrize(
    "name, codec, times",
    [
        ("one.flv", "libx264", [0.0]),  # the mark of the end of H.264 has the time of the only frame
        ("late.wmv", "wmv2", [100 + number / FPS for number in range(80)]),  # seeking in ASF leaves odd index entries
        ("slides.mkv", "libx264", [90.0 * number for number in range(40)]),
        ("pauses.flv", "libx264", [number / FPS + number // 20 * 300 for number in range(120)]),
        ("pause.mp4", "libx264", [number / FPS + number // 40 * 600 for number in range(80)]),
    ],
)
def test_odd_times_of_one_recording_are_no_clock_that_starts_over(name, codec, times, tmp_path):
    formats = {"format": "asf"} if name.endswith("wmv") else {}
    path = make_video(tmp_path / name, len(times), codec=codec, fps=FPS, pts_seconds=times, **formats)
    frames = read_frames(path, len(times), exact=True)
    assert numbers(frames) == list(range(len(times)))
    assert not any(WARNING in warning for warning in frames.warnings)
    assert frames.pts_seconds.tolist() == pytest.approx([time - times[0] for time in times], abs=0.002)


def test_a_clock_is_cut_where_it_starts_over_and_not_at_single_wrong_times():
    first, second = list(range(0, 400, 4)), list(range(0, 200, 4))
    assert split_clock(first + second, 100) == [first, second]
    assert split_clock([*first[:50], 10**9, *first[50:]], 100, leap=None) == [[*first[:50], 10**9, *first[50:]]]
    assert len(split_clock([*first[:50], 0, *first[50:]], 100)) == 1
    reordered = [0, 8, 4, 16, 12, 24, 20]
    assert split_clock(reordered, 100) == [reordered]
    far = [time + 10**6 for time in second]
    assert split_clock(first + far, 100) == [first, far]
    assert split_clock(first + far, 100, leap=None) == [first + far]


def with_early_sound(path: Path, picture_starts: float, start: float = 0.0, seconds: float = 5.0) -> Path:
    """A file whose sound begins at ``start`` and its picture later; frame n is shown at picture_starts + n / FPS."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        codec = {".mpg": "mp2", ".ts": "mp2", ".webm": "libopus"}.get(path.suffix, "aac")
        sound = container.add_stream(codec, rate=48000)
        packets = []
        silence = np.zeros((1, 1152 if codec == "mp2" else 960 if codec == "libopus" else 1024), np.float32)
        for number in range(int((picture_starts + seconds) * 48000 / silence.shape[1])):
            frame = av.AudioFrame.from_ndarray(silence, "fltp" if codec == "aac" else "flt", layout="mono")
            if codec == "mp2":
                frame = av.AudioFrame.from_ndarray((silence * 0).astype(np.int16), "s16", layout="mono")
            frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
            frame.pts = number * silence.shape[1] + int(start * 48000)
            packets += sound.encode(frame)
        packets += sound.encode()
        for number in range(int(seconds * FPS)):
            picture = av.VideoFrame.from_ndarray(draw_number(number, HEIGHT, WIDTH), format="rgb24")
            picture.pts, picture.time_base = number + round((picture_starts + start) * FPS), Fraction(1, FPS)
            packets += video.encode(picture)
        packets += video.encode()
        for packet in sorted((p for p in packets if p.dts is not None), key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


@pytest.mark.parametrize("name, start", [("a.mkv", 0.0), ("a.mp4", 0.0), ("a.ts", 0.0), ("b.mkv", 100.0)])
def test_second_0_is_the_start_of_the_file_not_of_the_picture(name, start, tmp_path):
    path = with_early_sound(tmp_path / name, 3.0, start)
    info = probe(path)
    assert info.first_frame_seconds == pytest.approx(3.0, abs=0.06)
    assert info.duration_seconds == pytest.approx(8.0, abs=0.1)
    frames = read_frames(path, 5)
    late = info.first_frame_seconds
    assert frames.clip_seconds == pytest.approx((late, late + 5), abs=0.05)
    assert frames.pts_seconds.tolist() == pytest.approx([late + number / FPS for number in numbers(frames)], abs=0.01)
    part = read_frames(path, 2, 6.0, 7.0)
    assert part.clip_seconds == (6.0, 7.0)
    assert numbers(part) == pytest.approx([(6.25 - late) * FPS, (6.75 - late) * FPS], abs=1)
    assert numbers(read_frames(path, at_seconds=[4.0, 6.0])) == pytest.approx([(4 - late) * 25, (6 - late) * 25], abs=1)
    windows = list(cut_windows(str(path), 2.0))
    assert windows[0][0] == pytest.approx(late)
    assert windows[-1][1] is None
    assert [end - begin for begin, end in windows[:-1]] == pytest.approx([2.0] * (len(windows) - 1))
    with pytest.raises(ValueError, match=r"before the first picture, which comes at [23]\.\d+ s"):
        read_frames(path, 2, 0.0, 2.0)


def test_every_frame_of_a_program_stream_is_read_if_packets_share_times(tmp_path):
    """PES packets without times of their own, as recorders of low bit rate write them."""
    path = tmp_path / "a.mpg"
    data = bytearray(record(path, "vob", "mpeg2video", {}, 0, 60))
    at, removed = 0, 0
    while (at := data.find(b"\x00\x00\x01\xe0", at)) >= 0:
        flags, length = data[at + 7], data[at + 8]
        if flags & 0xC0 and removed % 3:  # stuffing in place of PTS and DTS
            data[at + 7] = flags & 0x3F
            data[at + 9 : at + 9 + length] = b"\xff" * length
        removed += 1
        at += 6 + struct.unpack(">H", data[at + 4 : at + 6])[0]
    path.write_bytes(data)
    frames = read_frames(path, 60)
    assert numbers(frames) == list(range(60))
    assert (np.diff(frames.pts_seconds) > 0).all()
