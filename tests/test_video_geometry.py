"""What is shown of a frame, and in which proportions: cropping by containers and codecs, pixels that are not square."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from video_factory import make_video, read_number

from salcap.pictures.draw import picture_size
from salcap.video import probe, read_frames, stream_frames

SEGMENT, TRACKS, TRACK, VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
CLOCKWISE = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


def make_halves(path: Path, **options) -> Path:
    """A video of 192x96 that is red at the left, blue at the right, and white in its 8 lowest rows."""
    picture = np.zeros((96, 192, 3), np.uint8)
    picture[:, :96, 0] = picture[:, 96:, 2] = 255
    picture[-8:] = 255
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 96, 192, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def element(number: int, body: bytes) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8) + (len(body) | 1 << 56).to_bytes(8) + body


def elements(data: bytes) -> list[tuple[int, bytes]]:
    def variable(at: int) -> tuple[int, int]:
        return int.from_bytes(data[at : at + 9 - data[at].bit_length()]), at + 9 - data[at].bit_length()

    found, at = [], 0
    while at < len(data):
        number, at = variable(at)
        size, start = variable(at)
        size -= 1 << 7 * (start - at)
        at = len(data) if size == (1 << 7 * (start - at)) - 1 else start + size
        found.append((number, data[start:at]))
    return found


def with_elements(data: bytes, folders: Sequence[int], added: bytes) -> bytes:
    """Matroska with elements added to the contents of one that lies in others."""
    if not folders:
        return data + added
    return b"".join(
        element(number, with_elements(body, folders[1:], added) if number == folders[0] else body)
        for number, body in elements(data)
    )


def with_clean_aperture(data: bytes, *aperture: int) -> bytes:
    """An MP4, whose moov lies at its end, with a clap box in its sample entry."""
    box = struct.pack(">I4s4I iI iI", 40, b"clap", *aperture)
    grown = bytearray(data)
    end = data.index(b"avc1", data.index(b"stsd")) - 4
    end += struct.unpack(">I", data[end : end + 4])[0]
    for kind in (b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        at = data.rindex(kind, 0, end) - 4
        struct.pack_into(">I", grown, at, struct.unpack(">I", data[at : at + 4])[0] + len(box))
    return bytes(grown[:end]) + box + bytes(grown[end:])


def is_red(pixels: torch.Tensor) -> bool:
    red, green, blue = pixels.float().flatten(2).transpose(0, 1).flatten(1)
    return bool((red > 220).all() and (green < 40).all() and (blue < 40).all())


@pytest.mark.parametrize("format", ["mkv", "webm"])
@pytest.mark.parametrize("is_late", [False, True])
def test_cropping_stated_by_matroska_is_cut_off(tmp_path: Path, format: str, is_late: bool) -> None:
    path = make_halves(tmp_path / "a.mkv", live="1")
    crops = element(0x54DD, b"\x60") + element(0x54AA, b"\x08")
    data = with_elements(path.read_bytes(), (SEGMENT, TRACKS, TRACK, VIDEO), crops)
    if is_late:  # the tracks behind the pictures, where a SeekHead points
        (_, header), (_, segment) = elements(data)
        parts = elements(segment)
        rest = b"".join(element(number, body) for number, body in parts if number != TRACKS)
        tracks = element(TRACKS, dict(parts)[TRACKS])

        def seek_head(place: int) -> bytes:
            entry = element(0x53AB, TRACKS.to_bytes(4)) + element(0x53AC, place.to_bytes(8))
            return element(0x114D9B74, element(0x4DBB, entry))

        head = seek_head(len(seek_head(0)) + len(rest))
        data = element(0x1A45DFA3, header) + element(SEGMENT, head + rest + tracks)
    path = tmp_path / f"b.{format}"
    path.write_bytes(data)
    frames = read_frames(path, 2)
    assert frames.pixels.shape[-2:] == (88, 96)
    assert is_red(frames.pixels)
    assert (probe(path).width, probe(path).height) == (96, 88)
    assert is_red(read_frames(path.read_bytes(), 2, shortest_side=44).pixels)
    assert read_frames(path, 1, shortest_side=44).pixels.shape[-2:] == (44, 48)
    assert all(is_red(torch.from_numpy(p).permute(2, 0, 1)[None]) for _, p in stream_frames(path, size=(40, 40)))


def test_a_clean_aperture_is_cut_out(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    # 96x80 whose middle lies 48 columns to the left of the frame's, and 4 rows below it
    path.write_bytes(with_clean_aperture(make_halves(path).read_bytes(), 96, 1, 80, 1, -48, 1, 0, 1))
    frames = read_frames(path, 2)
    assert frames.pixels.shape[-2:] == (80, 96)
    assert is_red(frames.pixels)


def test_a_turned_video_is_cropped_as_it_is_stored(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 4, size=(160, 96), display_matrix=CLOCKWISE, turn=1)
    whole = read_frames(path, 1).pixels
    path.write_bytes(with_clean_aperture(path.read_bytes(), 96, 1, 80, 1, 0, 1, 40, 1))  # the lower half
    half = read_frames(path, 1).pixels
    assert whole.shape[-2:] == (96, 160)
    assert half.shape[-2:] == (96, 80)
    assert any(torch.equal(half, part) for part in (whole[..., :80], whole[..., 80:]))


@pytest.mark.parametrize(
    "aperture", [(500, 1, 80, 1, 0, 1, 0, 1), (96, 0, 80, 1, 0, 1, 0, 1), (96, 1, 80, 1, 90, 1, 0, 1)]
)
def test_cropping_that_cannot_be_is_not_done(tmp_path: Path, aperture: tuple[int, ...]) -> None:
    path = make_halves(tmp_path / "a.mp4")
    whole = read_frames(path, 1)
    path.write_bytes(with_clean_aperture(path.read_bytes(), *aperture))
    frames = read_frames(path, 1)
    assert torch.equal(frames.pixels, whole.pixels)
    assert ("the container crops" in str(frames.warnings)) == (aperture[1] != 0)


def test_a_codec_that_crops_at_the_left_hides_what_it_should(tmp_path: Path) -> None:
    """FFmpeg would show some of it, so that the rest stays aligned in memory."""
    whole, path = make_halves(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        crop = BitStreamFilterContext(
            "h264_metadata=crop_left=6:crop_right=90:crop_bottom=8", source.streams.video[0], stream
        )
        for packet in source.demux(video=0):
            for filtered in crop.filter(packet if packet.size else None):
                filtered.stream = stream
                target.mux(filtered)
    frames = read_frames(path, 2)
    assert frames.pixels.shape[-2:] == (88, 96)
    reference = read_frames(whole, 2).pixels[..., :88, 6:102]
    assert (frames.pixels.float() - reference.float()).abs().mean() < 2


@pytest.mark.parametrize(
    "suffix, options, shape",
    [
        ("mp4", {"sample_aspect_ratio": Fraction(64, 45)}, (96, 228)),
        ("mkv", {"sample_aspect_ratio": Fraction(8, 9)}, (96, 142)),
        ("ts", {"sample_aspect_ratio": Fraction(2)}, (96, 320)),  # stated by the codec alone
        ("mp4", {"sample_aspect_ratio": Fraction(1, 2), "display_matrix": CLOCKWISE, "turn": 1}, (160, 192)),
        ("mp4", {"sample_aspect_ratio": Fraction(404, 405)}, (96, 160)),  # an encoder's rounding
        ("mkv", {"sample_aspect_ratio": Fraction(20)}, (96, 160)),
    ],
)
def test_pixels_are_made_square_once(tmp_path: Path, suffix: str, options: dict, shape: tuple[int, int]) -> None:
    path = make_video(tmp_path / f"a.{suffix}", 4, **options)
    frames, info = read_frames(path, 4), probe(path)
    assert frames.pixels.shape[-2:] == shape == (info.height, info.width) == picture_size(info, 1000)
    assert info.sample_aspect_ratio == pytest.approx(float(options["sample_aspect_ratio"]))
    assert [read_number(picture) for picture in frames.pixels] == [0, 1, 2, 3]
    assert read_frames(path, 1, size=(50, 70)).pixels.shape[-2:] == (50, 70)
    assert min(read_frames(path, 1, shortest_side=48).pixels.shape[-2:]) == 48
    assert ("taken for square" in str(frames.warnings)) == (options["sample_aspect_ratio"] == 20)


def test_a_square_is_as_high_as_wide(tmp_path: Path) -> None:
    picture = np.zeros((576, 720, 3), np.uint8)
    picture[188:388, 290:430] = 255  # 200 rows; 140.6 columns of pixels that are 64/45 as wide as high
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = 576, 720, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    for options in ({}, {"shortest_side": 224}):
        bright = read_frames(path, 1, **options).pixels[0].float().mean(0) > 128
        assert int(bright.any(1).sum()) == pytest.approx(int(bright.any(0).sum()), abs=2)
