"""Pictures of saliency: on clips whose frames say their own number, so that the heat map says it too."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image, ImageDraw, ImageFont
from typer.testing import CliRunner
from video_factory import make_video, read_number

from salcap import SaliencyCaptioner, SaliencyModel, VideoDecodeError, create_saliency, read_frames
from salcap.cli import app
from salcap.evaluation.instruments import peak_rise_mib
from salcap.pictures import draw_saliency
from salcap.pictures.contact_sheet import ContactSheet
from salcap.pictures.painting import COLOURS, DROPPED, HOTTEST, KEPT, MERGED, heat, paint_heat, paint_patches
from salcap.pictures.video_writer import VideoWriter
from salcap.video import probe

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
UNEVEN = (0.0, 0.1, 0.15, 0.4, 0.5, 1.0, 1.3)  # of 7 frames: up to number 6, whose heat is bright enough to be read
CLOCKWISE = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


class Bright(SaliencyModel):
    """People look at what is bright."""

    name = "bright"

    def __init__(self) -> None:
        super().__init__()
        self.times: list[list[float]] = []

    def forward(self, pixels, pts_seconds=None):
        self.times.append([round(t, 6) for t in pts_seconds.tolist()])
        return 12 * pixels.mean(1)


class Above(SaliencyModel):
    """People look up."""

    name = "above"

    def forward(self, pixels, pts_seconds=None):
        return -torch.arange(8.0)[:, None].expand(len(pixels), 8, 8)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "uneven.mp4", len(UNEVEN), pts_seconds=UNEVEN)


def captioner(**options) -> SaliencyCaptioner:
    tiny = tiny_models.mini()
    return SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency=Above(), **options)


def grey_clip(path: Path, num_frames: int, size: tuple[int, int] = (64, 96)) -> Path:
    with VideoWriter(path, size) as writer:
        for number in range(num_frames):
            writer.write(np.full((*size, 3), 200, np.uint8), number / 25)
        writer.finish(num_frames / 25)
    return path


def decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def patch_means(picture: np.ndarray) -> np.ndarray:
    """(4, 4) means of the patches' middles."""
    height, width = picture.shape[0] // 4, picture.shape[1] // 4
    cells = picture[: 4 * height, : 4 * width].reshape(4, height, 4, width, 3)
    return cells[:, height // 4 : -height // 4, :, width // 4 : -width // 4].mean((1, 3, 4))


# --- painting


def test_colours_are_as_far_apart_as_they_look():
    """CIE L* rises evenly from black to white, as far as the published map's does: it is even by CAM02-UCS."""
    linear = np.where(COLOURS / 255 <= 0.04045, COLOURS / 255 / 12.92, ((COLOURS / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    lightness = np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)
    assert COLOURS[[0, 255]].tolist() == [[0, 0, 4], [252, 255, 164]]
    assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 256)).max() < 6
    assert (np.diff(lightness[::4]) > 0).all()


def test_heat_has_one_scale():
    assert heat(np.array([0.0, HOTTEST, 100.0])).tolist() == [0.0, 1.0, 1.0]
    assert heat(np.array(1.0)) == pytest.approx(np.log(2) / np.log(17))
    assert paint_heat(np.array([[0.0, 1.0]])).tolist() == [[[0, 0, 4], [252, 255, 164]]]


def test_patches_are_painted_in_their_box():
    picture = np.full((8, 8, 3), (200, 100, 0), np.uint8)
    states = np.array([KEPT, MERGED, DROPPED, KEPT])
    painted = paint_patches(picture, states, (2, 2), (0.25, 0.0, 0.75, 1.0))
    grey = round(0.55 * (0.299 * 200 + 0.587 * 100))
    kept, merged, dropped = [200, 100, 0], [grey] * 3, [40, 20, 0]
    row = [dropped] * 2 + [kept] * 2 + [merged] * 2 + [dropped] * 2
    assert painted[:4].tolist() == [row] * 4
    assert painted[4:].tolist() == [[dropped] * 4 + [kept] * 2 + [dropped] * 2] * 4


# --- videos


def test_heat_is_where_the_map_is_and_when(uneven, tmp_path):
    drawing = draw_saliency(uneven, tmp_path / "heat.mp4", Bright(), "heat")
    frames = decoded(drawing.path)
    assert [read_number(picture) for _, picture in frames] == list(range(7))
    assert [time for time, _ in frames] == pytest.approx(UNEVEN, abs=1e-5)
    assert drawing.end_seconds == probe(uneven).duration_seconds
    assert probe(drawing.path).duration_seconds == pytest.approx(drawing.end_seconds, abs=1e-5)
    assert (drawing.num_frames, drawing.start_seconds) == (7, 0.0)
    assert not list(tmp_path.glob("*.partial"))


def test_overlay_shows_frame_and_heat(uneven, tmp_path):
    """The one bright cell of frame 1 is coloured and bright, the others grey but for a veil."""
    _, picture = decoded(draw_saliency(uneven, tmp_path / "overlay.mp4", Bright()).path)[1]
    cells = picture.reshape(2, 48, 8, 20, 3)[:, 12:36, :, 5:15].mean((1, 3))
    assert cells[1, 7].mean() > 180
    assert cells[1, 7, 0] - cells[1, 7, 2] > 30  # yellow
    others = cells.reshape(-1, 3)[:-1]
    assert np.abs(others - 0.75 * 28).max() < 25


def test_a_part_starts_at_nought(uneven, tmp_path):
    drawing = draw_saliency(uneven, tmp_path / "part.mp4", Bright(), "heat", start_seconds=0.4, end_seconds=1.1)
    frames = decoded(drawing.path)
    assert [read_number(picture) for _, picture in frames] == [3, 4, 5]
    assert [time for time, _ in frames] == pytest.approx((0.0, 0.1, 0.6), abs=1e-5)
    assert (drawing.start_seconds, drawing.end_seconds) == pytest.approx((0.4, 1.1))
    with av.open(str(drawing.path)) as container:
        assert container.duration / 1e6 == pytest.approx(0.7, abs=0.002)


def test_a_part_that_starts_amid_a_frame_is_as_long_as_it_is(uneven, tmp_path):
    drawing = draw_saliency(uneven, tmp_path / "part.mp4", Bright(), "heat", start_seconds=0.7, end_seconds=1.2)
    frames = decoded(drawing.path)
    assert [read_number(picture) for _, picture in frames] == [4, 5]
    assert [time for time, _ in frames] == pytest.approx((0.0, 0.3), abs=1e-5)
    with av.open(str(drawing.path)) as container:
        assert container.duration / 1e6 == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_damage_is_told(tmp_path, suffix):
    data = bytearray(make_video(tmp_path / "whole.mp4", 96, mux_options={"movflags": "faststart"}).read_bytes())
    data[len(data) // 2 : len(data) * 3 // 4] = bytes(len(data) * 3 // 4 - len(data) // 2)
    (tmp_path / "damaged.mp4").write_bytes(data)
    drawing = draw_saliency(tmp_path / "damaged.mp4", tmp_path / f"out{suffix}", "center")
    assert drawing.num_frames < 96
    assert any(warning.startswith("damaged: ") for warning in drawing.warnings)


def test_a_video_that_is_too_wide_for_mp4(tmp_path):
    Image.new("RGB", (17000, 16)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match="at most 16384 pixels a side, got 17000x16"):
        draw_saliency(tmp_path / "wide.png", tmp_path / "x.mp4", "center")
    assert [path.name for path in tmp_path.iterdir()] == ["wide.png"]
    assert draw_saliency(tmp_path / "wide.png", tmp_path / "x.png", "center").num_frames == 1


@pytest.mark.parametrize(
    "size, expected, options",
    [
        ((65, 97), (66, 98), {"pix_fmt": "yuv444p"}),
        ((96, 160), (160, 96), {"display_matrix": CLOCKWISE, "turn": 1}),
        ((96, 80), (96, 160), {"sample_aspect_ratio": Fraction(2)}),
        ((96, 160), (160, 192), {"display_matrix": CLOCKWISE, "turn": 1, "sample_aspect_ratio": Fraction(1, 2)}),
    ],
    ids=["odd", "rotated", "wide pixels", "rotated narrow pixels"],
)
def test_pictures_are_upright_even_and_of_square_pixels(tmp_path, size, expected, options):
    video = make_video(tmp_path / "clip.mp4", 4, size=size, **options)
    frames = decoded(draw_saliency(video, tmp_path / "heat.mp4", Bright(), "heat").path)
    assert [picture.shape[:2] for _, picture in frames] == [expected] * 4
    assert [read_number(picture) for _, picture in frames] == [0, 1, 2, 3]


def test_parts_know_the_frame_before(tmp_path):
    """So that what reads motion sees that of every frame but the first."""
    video, backbone = make_video(tmp_path / "clip.mp4", 18, fps=25), Bright()
    draw_saliency(video, tmp_path / "heat.mp4", backbone, "heat")
    assert [[round(25 * time) for time in times] for times in backbone.times] == [
        [*range(8)],
        [*range(7, 16)],
        [15, 16, 17],
    ]


def test_memory_does_not_grow_with_the_video(tmp_path):
    rises = []
    for num_frames in (60, 260):  # 14 and 60 MB of frames
        video = grey_clip(tmp_path / f"{num_frames}.mp4", num_frames, (240, 320))
        output = tmp_path / f"overlay{num_frames}.mp4"
        draw = lambda video=video, output=output: draw_saliency(video, output, create_saliency("center"))  # noqa: E731
        rises.append(peak_rise_mib(draw, torch.device("cpu")))
    if rises[0] is None:
        pytest.skip("the system does not tell")
    assert rises[1] - rises[0] < 25


# --- patches


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_dropped_patches_are_dark(tmp_path, suffix):
    """Half of the rows, the upper ones, are kept of every frame."""
    video = grey_clip(tmp_path / "grey.mp4", 10)
    drawing = draw_saliency(video, tmp_path / f"patches{suffix}", captioner(policy="top", keep_ratio=0.5), "patches")
    if suffix == ".mp4":
        pictures = [picture for _, picture in decoded(drawing.path)]
        assert len(pictures) == 10
    else:
        sheet = np.asarray(Image.open(drawing.path))
        pictures = [sheet[64:128, 12 + column * 108 : 108 + column * 108] for column in range(4)]
        assert drawing.num_frames == 8
    for picture in pictures:
        means = patch_means(picture)
        assert np.abs(means[:2] - 200).max() < 4
        assert np.abs(means[2:] - 40).max() < 4


def test_merged_patches_are_grey(tmp_path):
    video = grey_clip(tmp_path / "grey.mp4", 2)
    pipeline = captioner(policy="foveate", keep_ratio=0.5)
    _, picture = decoded(draw_saliency(video, tmp_path / "patches.mp4", pipeline, "patches").path)[0]
    means = patch_means(picture)
    assert np.abs(means[0] - 200).max() < 4
    assert np.abs(means[1:] - 110).max() < 4


# --- contact sheets


def test_contact_sheet_shows_frames_at_their_times(uneven, tmp_path):
    drawing = draw_saliency(uneven, tmp_path / "sheet.png", Bright(), "heat", num_frames=5)
    frames = read_frames(uneven, 5)
    sheet = Image.open(drawing.path)
    font = ImageFont.load_default(15)
    for number, seconds in enumerate(frames.pts_seconds.tolist()):
        row, column = divmod(number, 4)
        left, top = 12 + column * (160 + 12), 12 + 26 + row * (96 + 32)
        picture = np.asarray(sheet.crop((left, top, left + 160, top + 96)))
        assert read_number(picture) == UNEVEN.index(pytest.approx(seconds, abs=1e-5))
        label = Image.new("RGB", (120, 24), (250, 250, 250))
        ImageDraw.Draw(label).text((0, 3), f"00:{seconds:06.3f}", (32, 32, 32), font)
        assert np.array_equal(sheet.crop((left, top + 96, left + 120, top + 120)), label)
    assert drawing.num_frames == 5
    legend = np.asarray(sheet)[-60:].reshape(-1, 3)
    assert {tuple(colour) for colour in COLOURS} <= {tuple(pixel) for pixel in legend}


@pytest.mark.parametrize("name", ["center", "a_backbone_of_a_name_that_is_longer_than_a_line"])
def test_narrow_sheets_say_all(name):
    """As a wide one does in a line: no ink is lost, and none runs to the edge."""
    heading = f"sample.mp4, 6.00 s. Where people look, by {name}"
    tile, font = np.zeros((200, 200, 3), np.uint8), ImageFont.load_default(15)

    def inks(image: Image.Image) -> int:
        pixels = np.asarray(image.convert("L"), float)
        assert (pixels[:, -12:] == 250).all()
        return round((250 - pixels).sum() / 255)

    def expected(words: str) -> int:
        image = Image.new("RGB", (1200, 40), (250, 250, 250))
        ImageDraw.Draw(image).text((2, 2), words, (32, 32, 32), font)
        return inks(image)

    legends = []
    for number in (1, 4):
        sheet = ContactSheet([tile] * number, [0.0] * number, heading)
        others = number * (expected("00:00.000") + round(200 * 200 * 250 / 255))
        before = inks(sheet.image)
        assert before - others == pytest.approx(expected(heading), rel=0.03)
        sheet.add_heat_legend()
        legends.append(inks(sheet.image) - before)
    assert legends[0] == pytest.approx(legends[1], rel=0.01)
    patches = ContactSheet([tile], [0.0], heading)
    patches.add_patch_legend((KEPT, MERGED, DROPPED))
    inks(patches.image)


# --- files in memory


@pytest.mark.parametrize("suffix, show", [(".png", "heat"), (".MP4", "heat"), (".mp4", "patches")])
def test_videos_may_be_open_files_and_bytes(uneven, tmp_path, suffix, show):
    looker = Bright() if show == "heat" else captioner(policy="top", keep_ratio=0.5)
    drawn = []
    with uneven.open("rb") as file:
        for number, video in enumerate((uneven, file, io.BytesIO(uneven.read_bytes()), uneven.read_bytes())):
            drawing = draw_saliency(video, tmp_path / f"{number}{suffix}", looker, show)
            drawn.append(drawing.path.read_bytes())
            assert drawing.num_frames == 7
    assert drawn[1] == drawn[0]
    assert drawn[3] == drawn[2]
    assert (drawn[2] == drawn[0]) is (suffix != ".png")  # the sheet's heading names no file


def test_bytes_that_are_no_video(tmp_path):
    with pytest.raises(VideoDecodeError, match=r"^cannot read video <file object>: [^\\]{,300}$"):
        draw_saliency(b"no video" * 1000, tmp_path / "x.png", "center")


# --- errors, command


@pytest.mark.parametrize("opened", [False, True])
def test_the_video_is_not_overwritten(uneven, tmp_path, opened):
    for name, output in (("a.mp4", "a.mp4"), ("b.MP4.partial", "b.MP4")):
        video = tmp_path / name
        video.write_bytes(uneven.read_bytes())
        with video.open("rb") as file, pytest.raises(ValueError, match=f"overwrite .*{name}, which is read"):
            draw_saliency(file if opened else video, tmp_path / output, "center", overwrite=True)
        result = run(video, "--output", tmp_path / output, "--overwrite")
        assert (result.exit_code, "which is read; name another" in result.stderr) == (2, True)
        assert video.read_bytes() == uneven.read_bytes()


def test_settings_that_do_not_fit(uneven, tmp_path):
    there = tmp_path / "there.png"
    there.write_bytes(b"mine")
    for options, message in (
        ({"output": "x.gif"}, r"suffix '.gif', allowed: .mp4, .png"),
        ({"output": there}, "exists; name another or pass --overwrite"),
        ({"output": tmp_path / "none" / "x.mp4"}, "does not exist"),
        ({"show": "heatt"}, "unknown show 'heatt'.*did you mean 'heat'"),
        ({"num_frames": 4}, "num_frames 4 is for contact sheets"),
        ({"show": "patches"}, "'patches' needs a captioner, got a FastUvaNet"),
        ({"saliency": captioner(mode="none")}, "'overlay' needs a saliency backbone, got a SaliencyCaptioner"),
        ({"saliency": captioner(mode="none"), "show": "patches"}, "got mode 'none'"),
        ({"saliency": captioner(max_visual_tokens=20), "show": "patches"}, "scope 'frame'.*got scope 'clip'"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_saliency(uneven, **{"output": tmp_path / "x.mp4", **options})
    assert there.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]
    draw_saliency(uneven, there, "center", num_frames=2, overwrite=True)
    assert Image.open(there).format == "PNG"


def test_a_file_that_is_no_video(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    with pytest.raises(VideoDecodeError, match=r"broken\.mp4"):
        draw_saliency(broken, tmp_path / "x.mp4", "center")
    result = run(broken, "--output", tmp_path / "x.png")
    assert (result.exit_code, "cannot read video" in result.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.mp4"]


def run(*arguments: object):
    return CliRunner().invoke(app, ["saliency", *map(str, arguments)])


def test_command(tmp_path):
    output = tmp_path / "sheet.png"
    arguments = (SAMPLE, "--output", output, "--saliency", "center", "--num-frames", 3, "--start", 1, "--end", 2)
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    first = float(read_frames(SAMPLE, 3, 1, 2).pts_seconds[0])
    assert record == {
        "path": str(output), "num_frames": 3, "start_seconds": first, "end_seconds": 2.0, "warnings": [],
    }  # fmt: skip
    assert (run(*arguments).exit_code, run(*arguments, "--overwrite").exit_code) == (2, 0)
    result = run(SAMPLE, "--output", tmp_path / "x.png", "--keep-ratio", 0.5)
    assert result.exit_code == 2
    assert "--keep-ratio belong to --show patches, got --show overlay" in result.stderr
