"""Colours that are stated, or are to be guessed, come out as sRGB: HDR, wide gamuts, both ranges, untagged HD."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image

from salcap.video import VideoDecodeError, read_frames

# numbers of ITU-T H.273
BT709, UNSPECIFIED, BT601, BT2020, P3 = 1, 2, 6, 9, 12
PQ, HLG = 16, 18
FROM_SRGB = {  # linear light
    BT709: np.eye(3),
    BT2020: np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]),
    P3: np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]]),
}
LUMA = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722), BT2020: (0.2627, 0.0593), UNSPECIFIED: (0.2126, 0.0722)}
COLOURS = [(200, 60, 30), (30, 60, 200), (60, 200, 90), (128, 128, 128), (20, 20, 20), (240, 200, 40)]


def linear(colour: Sequence[int]) -> np.ndarray:
    share = np.array(colour) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def encoded(nits: np.ndarray, transfer: int) -> np.ndarray:
    """Display light as code values from 0 to 1, by BT.2100's formulas the other way round."""
    if transfer == PQ:
        power = (nits / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    shown = nits / 1000
    scene = shown * max(float(shown @ (0.2627, 0.678, 0.0593)), 1e-9) ** (1 / 1.2 - 1)
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def make_video(
    path: Path,
    rgb: np.ndarray,
    *,
    matrix: int = BT709,
    stated: int | None = None,
    primaries: int = UNSPECIFIED,
    transfer: int = UNSPECIFIED,
    is_full: bool = False,
    size: tuple[int, int] = (64, 96),
    codec: str = "ffv1",
) -> Path:
    """Frames of one colour, given as code values from 0 to 1; ``stated``: another matrix than the one that is used."""
    red, blue = LUMA[matrix]
    luma = red * rgb[0] + (1 - red - blue) * rgb[1] + blue * rgb[2]
    chroma = np.array([(rgb[2] - luma) / (2 - 2 * blue), (rgb[0] - luma) / (2 - 2 * red)])
    codes = [1023 * luma, *(512 + 1023 * chroma)] if is_full else [64 + 876 * luma, *(512 + 896 * chroma)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p10le"
        context = stream.codec_context
        context.colorspace, context.color_range = matrix if stated is None else stated, 1 + is_full
        context.color_primaries, context.color_trc = primaries, transfer
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none:crf=4:pools=1"}
        frame = av.VideoFrame(size[1], size[0], "yuv444p10le")
        for plane, code in zip(frame.planes, codes, strict=True):
            plane.update(np.full(plane.buffer_size // 2, round(code), "<u2").tobytes())
        frame.colorspace, frame.color_range = context.colorspace, context.color_range
        frame.color_primaries, frame.color_trc = primaries, transfer
        for number in range(4):
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def colour_of(path: Path, **options) -> list[float]:
    return read_frames(path, 1, **options).pixels.float().mean((0, 2, 3)).tolist()


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize("codec, suffix", [("ffv1", "mkv"), ("libx265", "mp4")])
def test_hdr_looks_as_it_does_in_sdr(tmp_path: Path, transfer: int, is_full: bool, codec: str, suffix: str) -> None:
    for colour in COLOURS:
        rgb = encoded(FROM_SRGB[BT2020] @ linear(colour) * 203, transfer)
        tags = {"matrix": BT2020, "primaries": BT2020, "transfer": transfer, "is_full": is_full}
        path = make_video(tmp_path / f"a.{suffix}", rgb, codec=codec, **tags)
        assert colour_of(path) == pytest.approx(colour, abs=5)
        assert colour_of(path, shortest_side=32) == pytest.approx(colour, abs=5)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_highlights_are_compressed_and_not_cut_off(tmp_path: Path, transfer: int) -> None:
    found = []
    for nits in (100, 203, 300, 500, 900):
        rgb = encoded(np.full(3, float(nits)), transfer)
        path = make_video(tmp_path / "a.mkv", rgb, matrix=BT2020, primaries=BT2020, transfer=transfer)
        found.append(colour_of(path)[0])
    assert found == sorted(set(found))
    assert found[0] == pytest.approx(186, abs=2)
    assert found[1] == pytest.approx(249, abs=1)
    bright = encoded(FROM_SRGB[BT2020] @ linear((200, 60, 30)) * 800, transfer)
    red, green, blue = colour_of(
        make_video(tmp_path / "b.mkv", bright, matrix=BT2020, primaries=BT2020, transfer=transfer)
    )
    light = linear((red, green, blue))  # brighter, of the same hue
    assert light / light[0] == pytest.approx(linear((200, 60, 30)) / linear((200, 60, 30))[0], abs=0.02)


def test_hdr_that_does_not_state_the_rest_is_bt2020(tmp_path: Path) -> None:
    rgb = encoded(FROM_SRGB[BT2020] @ linear((200, 60, 30)) * 203, PQ)
    path = make_video(tmp_path / "a.mkv", rgb, matrix=BT2020, stated=UNSPECIFIED, transfer=PQ)
    assert colour_of(path) == pytest.approx((200, 60, 30), abs=4)
    rgb = encoded(linear((200, 60, 30)) * 203, HLG)  # and one that says BT.709 is not
    path = make_video(tmp_path / "b.mkv", rgb, matrix=BT709, primaries=BT709, transfer=HLG)
    assert colour_of(path) == pytest.approx((200, 60, 30), abs=12)  # HLG's contrast goes by BT.2020's luminance


@pytest.mark.parametrize("primaries, matrix", [(BT2020, BT2020), (P3, BT709)])
@pytest.mark.parametrize("transfer", [1, 14, UNSPECIFIED])
def test_wide_gamuts_in_sdr_are_converted(tmp_path: Path, primaries: int, matrix: int, transfer: int) -> None:
    for colour in COLOURS:
        rgb = (FROM_SRGB[primaries] @ (np.array(colour) / 255) ** 2.4) ** (1 / 2.4)
        path = make_video(tmp_path / "a.mkv", rgb, matrix=matrix, primaries=primaries, transfer=transfer)
        assert colour_of(path) == pytest.approx(colour, abs=3)


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("matrix", [BT601, BT709])
def test_ordinary_video_is_as_swscale_makes_it(tmp_path: Path, matrix: int, is_full: bool) -> None:
    rgb = np.array((200, 60, 30)) / 255
    path = make_video(tmp_path / "a.mkv", rgb, matrix=matrix, is_full=is_full, primaries=BT709, transfer=1)
    assert colour_of(path) == pytest.approx((200, 60, 30), abs=2)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        expected = VideoReformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()
    assert np.array_equal(read_frames(path, 1).pixels[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("stated", [UNSPECIFIED, 3])  # 3 is reserved
@pytest.mark.parametrize(
    "size, matrix",
    [((720, 1280), BT709), ((64, 1280), BT709), ((578, 96), BT709), ((576, 720), BT601), ((480, 1278), BT601)],
)
def test_untagged_video_is_bt709_if_it_is_hd(tmp_path: Path, size: tuple[int, int], matrix: int, stated: int) -> None:
    rgb = np.array((200, 60, 30)) / 255
    path = make_video(tmp_path / "a.mkv", rgb, matrix=matrix, stated=stated, size=size)
    assert colour_of(path) == pytest.approx((200, 60, 30), abs=2)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png", "avif", "gif", "bmp"])
def test_stills_of_hd_size_keep_their_colours(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    options = {"quality": 95} if suffix in ("jpg", "webp", "avif") else {}
    Image.new("RGB", (1280, 720), (200, 60, 30)).save(path, **options)
    pixels = read_frames(path.read_bytes(), 1).pixels  # by a name that ends in .jpg FFmpeg would take it for a series
    assert pixels.float().mean((0, 2, 3)).tolist() == pytest.approx((200, 60, 30), abs=3)


def test_a_matrix_that_is_not_supported_is_named(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", np.array((0.5, 0.4, 0.3)), matrix=BT2020, stated=14, transfer=PQ)
    with pytest.raises(VideoDecodeError, match="its colour matrix ICtCp is not supported"):
        read_frames(path, 1)
