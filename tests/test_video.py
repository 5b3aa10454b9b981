"""Reading videos: which frames come back, with which times and pixels, at which cost."""

from __future__ import annotations

import gc
import io
from bisect import bisect_right
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_factory import ROOT, CountedVideo, decode_all, draw_number, load_script, make_video, numbers, read_number

import salcap.video_probe
import salcap.video_reader
from salcap.frames import Frames
from salcap.video import VideoDecodeError, probe, read_frames

FPS, TOTAL = 25, 50  # so that 10 frames are asked from intervals of 5, whose middles lie within a frame
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3:open-gop=1"}
VPX = {"deadline": "realtime", "cpu-used": "8"}
OPEN_GROUPS = {"x264-params": "open-gop=1:log-level=-1"}

CONTAINERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mp4": ("a.mp4", {}),
    "mp4-one-group": ("a.mp4", {"gop": 250}),
    "mp4-intra": ("a.mp4", {"gop": 1}),
    "mp4-no-b-frames": ("a.mp4", {"options": {"bf": "0"}}),
    "mp4-sound": ("a.mp4", {"sound_seconds": 1.0}),
    "mp4-fragments": ("a.mp4", {"mux_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "mp4-hevc": ("a.mp4", {"codec": "libx265", "options": X265}),
    "mov": ("a.mov", {"codec": "mpeg4"}),
    "mkv": ("a.mkv", {}),
    "mkv-hevc": ("a.mkv", {"codec": "libx265", "options": X265}),
    "mkv-live": ("a.mkv", {"mux_options": {"live": "1"}}),
    "webm": ("a.webm", {"codec": "libvpx-vp9", "options": VPX}),
    "webm-live": ("a.webm", {"codec": "libvpx", "options": VPX, "mux_options": {"live": "1"}}),
    "avi": ("a.avi", {"codec": "mpeg4"}),
    "avi-b-frames": ("a.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "avi-h264": ("a.avi", {}),
    "avi-mjpeg": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "ts": ("a.ts", {}),
    "ts-open-groups": ("a.ts", {"options": OPEN_GROUPS}),
    "ts-hevc": ("a.ts", {"codec": "libx265", "options": X265}),
    "ts-mpeg2": ("a.ts", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "mpg": ("a.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "gif": ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    "apng": ("a.png", {"codec": "apng", "pix_fmt": "rgb24", "format": "apng"}),
    "flv": ("a.flv", {}),
    "wmv": ("a.wmv", {"codec": "wmv2"}),
    "raw-h264": ("a.h264", {"format": "h264"}),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A video of 50 numbered frames in every kind of container, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("videos")

    class Videos(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            name, options = CONTAINERS[kind]
            (folder / kind).mkdir()
            self[kind] = make_video(folder / kind / name, TOTAL, **{"fps": FPS, "gop": 12, **options})
            return self[kind]

    return Videos()


def assert_true_times(frames: Frames, fps: float = FPS) -> None:
    """Frame n of a video at a constant rate comes on screen at n / fps; some containers round to milliseconds."""
    expected = [number / fps for number in numbers(frames)]
    assert frames.pts_seconds.tolist() == pytest.approx(expected, abs=1.01e-3)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_uniform_choice_in_every_container(videos: dict[str, Path], kind: str) -> None:
    path = videos[kind]
    assert [number for _, number in decode_all(path)] == list(range(TOTAL))  # the file itself is whole
    for num_frames in (1, 10, TOTAL):
        frames = read_frames(path, num_frames)
        interval = TOTAL // num_frames
        assert numbers(frames) == list(range(interval // 2, TOTAL, interval))
        assert_true_times(frames)
        assert frames.warnings == ()
        assert frames.source == str(path)
        assert frames.pixels.is_contiguous()


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_clip_of_every_container(videos: dict[str, Path], kind: str) -> None:
    frames = read_frames(videos[kind], 3, start_seconds=0.42, end_seconds=1.62)  # frames 10.5 to 40.5
    assert numbers(frames) == [15, 25, 35]
    assert_true_times(frames)
    everything = read_frames(videos[kind], 8, start_seconds=1.01, end_seconds=1.15)  # from within 25 to within 28
    assert numbers(everything) == [25, 26, 27, 28]
    assert_true_times(everything)
    assert everything.warnings == ("asked for 8 frames, the clip gave 4",)
    assert numbers(read_frames(videos[kind], start_seconds=1.81)) == [45, 46, 47, 48, 49]


@pytest.mark.parametrize("kind", ["mp4", "mp4-hevc", "mkv-hevc", "ts-open-groups", "ts-hevc", "avi-h264"])
def test_every_single_frame_can_be_had(videos: dict[str, Path], kind: str) -> None:
    for number in range(0, TOTAL, 3):  # also those just before a keyframe in an open group
        frames = read_frames(videos[kind], 1, number / FPS, (number + 1) / FPS, exact=True)
        assert numbers(frames) == [number]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_frames_seen_before_are_read_again_by_their_times(videos: dict[str, Path], kind: str) -> None:
    """Those that a choice fell on: irregular, some next to each other; also of a part of the video."""
    chosen = [2, 3, 11, 12, 26, 40, 49]
    small = read_frames(videos[kind], TOTAL, size=(8, 16))
    frames = read_frames(videos[kind], at_seconds=small.pts_seconds[chosen].tolist())
    assert numbers(frames) == chosen
    assert torch.equal(frames.pts_seconds, small.pts_seconds[chosen])
    assert (frames.warnings, frames.clip_seconds) == ((), small.clip_seconds)
    part = read_frames(videos[kind], 99, 0.42, 1.62, at_seconds=[small.pts_seconds[n].item() for n in (10, 30)])
    assert numbers(part) == [10, 30]
    assert part.clip_seconds == read_frames(videos[kind], 1, 0.42, 1.62).clip_seconds


@pytest.mark.parametrize("kind", CONTAINERS)
def test_probe(videos: dict[str, Path], kind: str) -> None:
    info = probe(videos[kind])
    assert info.duration_seconds == pytest.approx(TOTAL / FPS, abs=0.005)
    assert (info.width, info.height, info.rotation, info.sample_aspect_ratio) == (160, 96, 0, 1.0)
    assert info.fps is None or info.fps == pytest.approx(FPS, rel=0.01)
    assert info.num_frames_stated in (None, TOTAL)
    assert info.warnings == ()


def test_containers_that_state_nothing_were_among_them(videos: dict[str, Path]) -> None:
    for kind in ("mkv-live", "webm-live", "raw-h264"):
        with av.open(str(videos[kind])) as container:
            assert container.streams.video[0].duration is None
            assert container.duration is None or kind == "raw-h264"
    assert probe(videos["ts"]).num_frames_stated is None
    assert probe(videos["ts"]).start_pts_seconds > 0.05  # and times do not start at 0 in all


@pytest.mark.parametrize("name, codec", [("v.mkv", "libx264"), ("v.mp4", "libx264"), ("v.webm", "libvpx-vp9")])
def test_variable_frame_rate(tmp_path: Path, name: str, codec: str) -> None:
    times = [0.0]
    for number in range(39):
        times.append(round(times[-1] + (0.02 if number < 20 else 0.25 if number % 3 else 0.1), 3))
    path = make_video(tmp_path / name, 40, codec=codec, gop=8, pts_seconds=times, options=VPX if "vpx" in codec else {})
    for num_frames, clip in ((5, (0.0, 4.0)), (7, (0.0, 3.0)), (4, (1.13, 3.71))):
        start, end = clip
        middles = [start + (i + 0.5) * (end - start) / num_frames for i in range(num_frames)]
        frames = read_frames(path, num_frames, start, end)
        assert numbers(frames) == [bisect_right(times, middle) - 1 for middle in middles]
        assert frames.pts_seconds.tolist() == pytest.approx([times[n] for n in numbers(frames)], abs=1.01e-3)


def test_a_long_still_is_not_repeated(tmp_path: Path) -> None:
    times = [number / 10 for number in range(10)] + [60.0, 60.1]  # frame 9 stays for a minute
    path = make_video(tmp_path / "slides.mkv", 12, gop=4, pts_seconds=times)
    frames = read_frames(path, 8)
    assert len(set(numbers(frames))) == 8
    assert 9 in numbers(frames)
    assert frames.pts_seconds.tolist() == pytest.approx([times[number] for number in numbers(frames)], abs=1.01e-3)
    assert frames.warnings == ()
    within = read_frames(path, 8, start_seconds=20, end_seconds=30)
    assert numbers(within) == [9]
    assert within.pts_seconds.tolist() == pytest.approx([0.9], abs=1.01e-3)  # its true time, before the clip
    assert within.warnings == ("asked for 8 frames, the clip gave 1",)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_fewer_frames_than_asked(tmp_path: Path, num_frames: int) -> None:
    frames = read_frames(make_video(tmp_path / "few.mp4", num_frames))
    assert numbers(frames) == list(range(num_frames))
    assert frames.warnings == (f"asked for 8 frames, the clip gave {num_frames}",)


@pytest.mark.parametrize("format", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_a_picture_is_a_video_of_one_frame(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"picture.{format}"
    Image.fromarray(draw_number(777, 97, 161)).save(path, format)
    frames = read_frames(path, 2)
    assert numbers(frames) == [777]
    assert frames.pixels.shape == (1, 3, 97, 161)


# As in the header of an MP4 file: the first is what telephones write when held upright.
TURNS = {
    "clockwise": ((0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30), 1, 90),
    "half": ((-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30), 2, 180),
    "counter-clockwise": ((0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30), 3, 270),
}


@pytest.mark.parametrize("matrix, turn, rotation", TURNS.values(), ids=TURNS)
def test_rotation_is_applied(tmp_path: Path, matrix: tuple[int, ...], turn: int, rotation: int) -> None:
    path = make_video(tmp_path / "turned.mp4", 20, size=(96, 160), display_matrix=matrix, turn=turn)
    shape = (160, 96) if turn % 2 else (96, 160)
    frames = read_frames(path, 10)
    assert numbers(frames) == list(range(1, 20, 2))
    assert frames.pixels.shape == (10, 3, *shape)
    info = probe(path)
    assert (info.rotation, info.height, info.width) == (rotation, *shape)
    scaled = read_frames(path, 10, size=(60, 100))
    assert scaled.pixels.shape == (10, 3, 60, 100)
    assert numbers(scaled) == numbers(frames)


def test_mirroring_is_applied(tmp_path: Path) -> None:
    path = make_video(tmp_path / "m.mp4", 4, display_matrix=(-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    pictures = read_frames(path, 4).pixels
    assert [read_number(picture.flip(-1)) for picture in pictures] == [0, 1, 2, 3]


PIXEL_FORMATS = ["yuv420p", "yuv420p10le", "gray", "gray10le", "ya8", "yuva420p", "bgra", "rgb48le", "yuv410p"]


@pytest.mark.parametrize(
    "name, codec, pix_fmt, size",
    [
        *[("p.mkv", "ffv1", pix_fmt, (97, 163)) for pix_fmt in PIXEL_FORMATS],
        ("p.mp4", "libx264", "yuv420p10le", (98, 162)),
        ("p.webm", "libvpx-vp9", "yuva420p", (97, 163)),
        ("p.mov", "qtrle", "argb", (97, 163)),
        ("p.mov", "prores_ks", "yuva444p10le", (98, 162)),
        ("p.mp4", "libx264", "yuv420p", (34, 66)),
    ],
)
def test_pixel_formats_and_odd_sizes(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, size: tuple[int, int]
) -> None:
    frames = read_frames(make_video(tmp_path / name, 10, codec=codec, pix_fmt=pix_fmt, size=size, gop=0), 10)
    assert numbers(frames) == list(range(10))
    assert frames.pixels.shape == (10, 3, *size)
    dark, bright = frames.pixels[7].float().quantile(torch.tensor([0.1, 0.95]))  # 7: three bright cells of 16
    assert dark.item() == pytest.approx(28, abs=6)  # the range is kept
    assert bright.item() == pytest.approx(228, abs=6)


def test_pixels_are_those_of_a_full_decode(videos: dict[str, Path]) -> None:
    with av.open(str(videos["mp4"])) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = read_frames(videos["mp4"], 10)
    assert np.array_equal(frames.pixels.permute(0, 2, 3, 1).numpy(), np.stack(expected[2::5]))


@pytest.mark.parametrize(
    "options, shape",
    [
        ({"size": (50, 70)}, (50, 70)),
        ({"size": (200, 300)}, (200, 300)),
        ({"shortest_side": 48}, (48, 80)),
        ({"shortest_side": 31}, (31, 52)),
        ({"shortest_side": 96}, (96, 160)),
        ({"shortest_side": 500}, (96, 160)),
    ],
)
def test_scaling(videos: dict[str, Path], options: dict[str, Any], shape: tuple[int, int]) -> None:
    frames = read_frames(videos["mkv"], 10, **options)
    assert frames.pixels.shape == (10, 3, *shape)
    assert numbers(frames) == list(range(2, TOTAL, 5))


def test_scaling_down_averages(tmp_path: Path) -> None:
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    pixels = read_frames(tmp_path / "stripes.png", 1, size=(16, 16)).pixels[..., 2:-2].float()
    assert pixels.mean().item() == pytest.approx(100, abs=3)
    assert pixels.std().item() < 5


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountedVideo]:
    CountedVideo.reset()
    monkeypatch.setattr(salcap.video_reader, "_Video", CountedVideo)
    monkeypatch.setattr(salcap.video_probe, "_Video", CountedVideo)
    return CountedVideo


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.ts"])
def test_work_does_not_grow_with_the_length(tmp_path: Path, counted: type[CountedVideo], name: str) -> None:
    gop, num_frames, decoded = 20, 4, []
    for total in (400, 1600):
        path = make_video(tmp_path / f"{total}{name}", total, size=(32, 64), fps=FPS, gop=gop)
        counted.decoded = 0
        frames = read_frames(path, num_frames, exact=True)
        assert numbers(frames) == [total * (2 * i + 1) // (2 * num_frames) for i in range(num_frames)]
        decoded.append(counted.decoded)
    overhead = 12  # frames in flight after each seek: threads and reordering
    assert max(decoded) <= (num_frames + 1) * (gop + overhead)
    assert counted.opened == 2  # nothing was started over


def test_h264_in_avi_is_sought_by_its_index(tmp_path: Path, counted: type[CountedVideo]) -> None:
    path = make_video(tmp_path / "a.mp4", 400, size=(32, 64), fps=FPS, gop=20)
    (tmp_path / "a.avi").write_bytes(load_script("make_hostile_folder").remux(path, "avi"))
    with av.open(str(tmp_path / "a.avi")) as container:
        assert not any(packet.is_keyframe for packet in container.demux(video=0))  # nothing but the index tells
    assert numbers(read_frames(tmp_path / "a.avi", 4, exact=True)) == [50, 150, 250, 350]
    assert counted.decoded <= 5 * (20 + 12)


def test_no_group_is_decoded_twice(videos: dict[str, Path], counted: type[CountedVideo]) -> None:
    read_frames(videos["mp4-one-group"], 25)
    assert counted.decoded <= TOTAL + 12  # all once, and what came out with the first frame


def test_costly_frames_move_to_a_keyframe(tmp_path: Path, counted: type[CountedVideo]) -> None:
    total, gop, num_frames = 1600, 100, 4
    path = make_video(tmp_path / "long.mp4", total, size=(32, 64), fps=FPS, gop=gop, options={"bf": "0"})
    frames = read_frames(path, num_frames, end_seconds=62)
    middles = [62 * FPS * (i + 0.5) / num_frames for i in range(num_frames)]  # all more than 48 after a keyframe
    assert [number % gop for number in numbers(frames)] == [0] * num_frames
    assert_true_times(frames)
    for number, middle in zip(numbers(frames), middles, strict=True):
        assert abs(number - middle) <= 62 * FPS / num_frames / 4
    cheap, counted.decoded = counted.decoded, 0
    exact = read_frames(path, num_frames, end_seconds=62, exact=True)
    assert numbers(exact) == [int(middle) for middle in middles]
    assert cheap < counted.decoded / 3
    assert numbers(read_frames(path, at_seconds=[9.5, 36.7])) == [237, 917]  # what is asked for by time is not moved


def test_cheap_frames_are_never_moved(tmp_path: Path) -> None:
    path = make_video(tmp_path / "ten_seconds.mp4", 250, size=(32, 64), fps=FPS, gop=40)
    assert torch.equal(read_frames(path).pts_seconds, read_frames(path, exact=True).pts_seconds)


@pytest.mark.parametrize(
    "clip",
    ["captions/msrvtt/clips/video7010.mp4", "captions/msvd/clips/WTf5EgVY5uU_124_128.avi", "clips/t2vzero_boat.mp4"],
)
def test_real_clips_equal_a_full_decode(shared: Path, clip: str) -> None:
    path = shared / "data" / clip
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pictures = [
            frame.to_ndarray(format="rgb24") for frame in container.decode(stream)
        ]  # as stored, maybe not square
        seconds = 1 / stream.average_rate
    frames = read_frames(path, 8, exact=True, size=pictures[0].shape[:2])
    assert frames.warnings == ()
    for index, (time, picture) in enumerate(zip(frames.pts_seconds.tolist(), frames.pixels, strict=True)):
        number = round(time / seconds)
        assert time == pytest.approx(float(number * seconds), abs=1e-6)
        assert abs(number + 0.5 - len(pictures) * (2 * index + 1) / 16) <= 1
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), pictures[number])


def test_a_file_object_is_read(videos: dict[str, Path]) -> None:
    with open(videos["mp4"], "rb") as file:
        from_file = read_frames(file, 5)
        again = read_frames(file, 5)
        assert not file.closed
    assert from_file.source == str(videos["mp4"])
    assert numbers(from_file) == numbers(again) == numbers(read_frames(videos["mp4"], 5))
    data = videos["mkv"].read_bytes()
    for file in (io.BytesIO(data), data):
        assert len(read_frames(file, 5)) == 5
        assert read_frames(file, 5).source is None
        assert probe(file).codec == probe(videos["mkv"]).codec
    with pytest.raises(VideoDecodeError, match=r"^cannot read video <file object>: .{,200}$"):
        read_frames(b"no video" * 10_000)


def test_odd_names_are_read(videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("12:30 é 100%d.mp4", "pipe:0", "concat:a|b", "-"):
        (tmp_path / name).write_bytes(videos["mp4"].read_bytes())
        monkeypatch.chdir(tmp_path)
        assert len(read_frames(name, 2)) == 2


def test_the_sample_video_is_sound() -> None:
    path = ROOT / "data" / "sample.mp4"
    assert path.stat().st_size < 300_000
    frames = read_frames(path, 8)
    assert frames.pixels.shape == (8, 3, 240, 320)
    assert frames.warnings == ()


def test_containers_are_closed(videos: dict[str, Path], counted: type[CountedVideo]) -> None:
    read_frames(videos["mp4"])
    probe(videos["mp4"])
    with pytest.raises(ValueError, match="beyond the end"):
        read_frames(videos["mp4"], start_seconds=99)
    with pytest.raises(ValueError, match="size must be"):
        read_frames(videos["mp4"], size=(0, 4))
    assert counted.opened == counted.closed == 4


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"start_seconds": -1.0}, "start_seconds must be a time from the start of the video, 0 or later, got -1.0"),
        ({"end_seconds": float("nan")}, "end_seconds must be a time"),
        ({"start_seconds": 1.0, "end_seconds": 1.0}, "end_seconds must be later than start_seconds, got 1.0 to 1.0"),
        ({"end_seconds": 0}, "end_seconds must be later"),
        ({"at_seconds": [0.1, 0.5, 0.5]}, r"at_seconds must rise, got \[0.1, 0.5, 0.5\]"),
        ({"at_seconds": []}, "num_frames must be at least 1, got 0"),
        ({"start_seconds": 2.0}, r"start_seconds 2.0 is beyond the end of the video, 2.000 s"),
        ({"size": (10, 10), "shortest_side": 10}, "not both"),
        ({"size": (10,)}, r"size must be \(height, width\)"),
        ({"shortest_side": 0}, "shortest_side must be at least 1 pixel, got 0"),
    ],
)
def test_arguments_out_of_range_fail(videos: dict[str, Path], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_frames(videos["mp4"], **arguments)


def test_a_clip_beyond_the_end_is_cut_off_with_a_warning(videos: dict[str, Path]) -> None:
    frames = read_frames(videos["mp4"], 5, start_seconds=1.0, end_seconds=9.0)
    assert numbers(frames) == [27, 32, 37, 42, 47]
    assert frames.warnings == ("end_seconds 9.0 is beyond the end of the video: read up to it",)


def test_frames_go_as_soon_as_they_are_read(videos):
    """None waits for Python to look for cycles: of 4K each takes 12 MB."""
    gc.collect()
    gc.disable()
    try:
        read_frames(videos["mp4"], 8)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert [each for each in gc.garbage if type(each).__module__.startswith("av.")] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
