"""Zoom: where the closer view is cut, what it shows, and that every family reads it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from random_maps import draw
from torch import Tensor

import salcap
from salcap import SaliencyCaptioner, Weighting
from salcap.captioners.mini.modeling import SalcapEncoder
from salcap.views import finer, make_views, view_size
from salcap.weighting import relative_saliency
from salcap.weighting.zoom import LEAST_SHARE, SPEED_COST, cut_maps, zoom_boxes

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
FAMILIES = {**tiny_models.FAMILIES, "git": lambda: tiny_models.git(6), "mini": tiny_models.mini}


def seconds(count: int, gap: float = 1.0) -> Tensor:
    return torch.arange(count, dtype=torch.float64) * gap


def spots(size: tuple[int, int], places: list[list[tuple[int, int, int, int]]]) -> Tensor:
    """Maps (F, *size) that are high in each frame's rectangles (top, left, bottom, right) and nothing elsewhere."""
    maps = torch.full((len(places), *size), -torch.inf)
    for frame, rectangles in zip(maps, places, strict=True):
        for top, left, bottom, right in rectangles:
            frame[top:bottom, left:right] = 0.0
    return maps


def masses(log_density: Tensor, boxes: Tensor) -> Tensor:
    """(F,) mass in boxes that lie on whole pixels of the maps."""
    density = log_density.double().flatten(1).softmax(-1).view(log_density.shape)
    height, width = log_density.shape[-2:]
    edges = (boxes * torch.tensor([width, height, width, height])).round().long()
    return torch.stack([d[t:b, x:r].sum() for d, (x, t, r, b) in zip(density, edges.tolist(), strict=True)])


def all_windows(height: int, width: int) -> Tensor:
    """Every window of half of each side on whole pixels: (S, 4), in raster order."""
    starts = itertools.product(range(height - height // 2 + 1), range(width - width // 2 + 1))
    windows = [(x, y, x + width // 2, y + height // 2) for y, x in starts]
    return torch.tensor(windows, dtype=torch.float64) / torch.tensor([width, height, width, height])


def speeds(boxes: Tensor, pts_seconds: Tensor) -> Tensor:
    return (boxes[:, :2].diff(dim=0)).norm(dim=1) / pts_seconds.diff()


# --- where the window lies ---


@pytest.mark.parametrize("zoom", [1.5, 2.0, 3.0])
def test_the_window_goes_with_a_bright_square(zoom):
    """Across a frame of another size than the maps; the square is all that is looked at."""
    corners = [(4 + 2 * i, 3 + 5 * i) for i in range(10)]
    maps = spots((48, 64), [[(y, x, y + 10, x + 10)] for y, x in corners])
    boxes = zoom_boxes(maps, seconds(10), (270, 480), zoom)
    for (y, x), (left, top, right, bottom) in zip(corners, boxes.tolist(), strict=True):
        assert left <= x / 64
        assert right >= (x + 10) / 64
        assert top <= y / 48
        assert bottom >= (y + 10) / 48
        assert (right - left, bottom - top) == pytest.approx((1 / zoom, 1 / zoom), abs=0.003)
    pixels = boxes * torch.tensor([480, 270, 480, 270])
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-9, rtol=0)
    assert boxes.min() >= 0.0
    assert boxes.max() <= 1.0


@pytest.mark.parametrize("seed", range(4))
def test_a_still_gets_the_window_of_the_most_mass(seed):
    """On maps as fine as the frame and on coarser ones, of which a window covers parts of pixels."""
    for size, times in (((12, 14), 1), ((4, 7), 3)):
        log_density = 2 * draw(1, *size, seed=seed)
        frame_size = (size[0] * times, size[1] * times)
        fine = log_density.repeat_interleave(times, 1).repeat_interleave(times, 2)
        box = zoom_boxes(log_density, seconds(1), frame_size, 2.0)
        windows = all_windows(*frame_size)
        best = masses(fine.expand(len(windows), -1, -1), windows).max()
        assert masses(fine, box)[0] == pytest.approx(float(best), rel=1e-3)


@pytest.mark.parametrize("gap", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_path_is_cheaper_and_the_bounds_hold(seed, gap):
    """Against all 9^4 paths through four frames of 4x4 pixels."""
    maps, times = 1.5 * draw(4, 4, 4, seed=seed), torch.tensor([0.0, 1.0, 1.5, 4.0], dtype=torch.float64) * gap
    windows = all_windows(4, 4)
    mass = torch.stack([masses(one.expand(9, -1, -1), windows) for one in maps])
    mass = mass.where(mass >= LEAST_SHARE * mass.amax(1, keepdim=True), 0.0)
    centres = windows[:, :2]
    paths = torch.cartesian_prod(*[torch.arange(9)] * 4)
    speed = (centres[paths].diff(dim=1).norm(dim=-1) / times.diff()).sum(1)
    costs = speed * SPEED_COST - mass.log()[torch.arange(4), paths].sum(1)

    boxes = zoom_boxes(maps, times, (4, 4), 2.0)
    held = masses(maps, boxes)
    assert (held >= LEAST_SHARE * mass.amax(1)).all()
    ours = float(speeds(boxes, times).sum() * SPEED_COST - held.log().sum())
    assert ours == pytest.approx(float(costs.min()), abs=4e-3)  # what breaks ties may cost as much
    slowest = float(speed[costs.isfinite()].min())
    assert float(speeds(boxes, times).sum()) <= slowest + 4 * (np.log(2) + 1e-3)


def test_noise_does_not_move_the_window_but_a_new_place_does():
    steady = torch.zeros(12, 32, 32)
    steady[:, 4:14, 5:15] = 3.0
    noisy = steady + 0.3 * draw(12, 32, 32)
    boxes = zoom_boxes(noisy, seconds(12, 0.5), (64, 64), 2.0)
    assert len(boxes.unique(dim=0)) == 1
    alone = torch.cat([zoom_boxes(one[None], seconds(1), (64, 64), 2.0) for one in noisy])
    assert len(alone.unique(dim=0)) > 1  # frame by frame it would jitter
    noisy[6:] = noisy[6:].flip(-1, -2)
    moved = zoom_boxes(noisy, seconds(12, 0.5), (64, 64), 2.0)
    assert len(moved[:6].unique(dim=0)) == len(moved[6:].unique(dim=0)) == 1
    assert (moved[6] - moved[5]).abs().max() > 0.2


def test_a_glance_aside_is_followed_if_there_is_time_for_it():
    """One frame of five with somewhat more on the other side: far between the frames, and near."""
    maps = torch.full((5, 8, 16), -20.0)
    maps[:, 2:6, 1:5] = 0.0
    maps[:, 2:6, 11:15] = -0.4
    maps[2, 2:6, 11:15] = 0.4
    slow = zoom_boxes(maps, seconds(5, 5.0), (64, 128), 2.0)
    assert [left < 0.25 for left in slow[:, 0].tolist()] == [True, True, False, True, True]
    quick = zoom_boxes(maps, seconds(5, 0.2), (64, 128), 2.0)
    assert [left < 0.25 for left in quick[:, 0].tolist()] == [True] * 5
    assert torch.isfinite(zoom_boxes(maps, torch.zeros(5), (64, 128), 2.0)).all()  # frames of one time


def test_of_equal_windows_the_middle_one_then_the_first():
    middle = [0.25, 0.25, 0.75, 0.75]
    for constant in (torch.full((3, 1, 1), -2.0), torch.zeros(3, 9, 13)):
        assert zoom_boxes(constant, seconds(3), (64, 64), 2.0).tolist() == [middle] * 3
    (spot,) = zoom_boxes(spots((64, 64), [[(20, 38, 22, 40)]]), seconds(1), (64, 64), 2.0).tolist()
    assert abs((spot[0] + spot[2]) / 2 - 39 / 64) <= 1 / 64  # in the middle of the window, as near as it can be
    assert abs((spot[1] + spot[3]) / 2 - 21 / 64) <= 1 / 64
    two = spots((64, 64), [[(30, 2, 34, 6), (30, 58, 34, 62)]])
    assert zoom_boxes(two, seconds(1), (64, 64), 2.0)[0, 0] < 0.1  # the left one


def test_only_what_the_captioner_sees_of_a_window_counts():
    """A captioner that reads the middle third of the width: the spot must lie in the middle third of the window."""
    maps = spots((32, 96), [[(10, 60, 14, 66)]])
    seen = (1 / 3, 0.0, 2 / 3, 1.0)
    ((left, _, right, _),) = zoom_boxes(maps, seconds(1), (64, 192), 2.0, seen).tolist()
    third = (right - left) / 3
    assert left + third <= 60 / 96
    assert right - third >= 66 / 96


@pytest.mark.parametrize(
    "change, message",
    [
        ({"zoom": 1.0}, "above 1, got 1.0"),
        ({"log_density": torch.zeros(4, 4)}, r"must be \(F, h, w\)"),
        ({"pts_seconds": seconds(3)}, r"pts_seconds \(F,\), got \(2, 4, 4\) and \(3,\)"),
        ({"log_density": torch.full((2, 4, 4), torch.nan)}, "no NaN"),
        ({"log_density": torch.full((2, 4, 4), -torch.inf)}, "some mass in every frame"),
        ({"seen": (0.5, 0.0, 0.5, 1.0)}, "box must be"),
    ],
)
def test_zoom_boxes_fails(change, message):
    arguments = {"log_density": torch.zeros(2, 4, 4), "pts_seconds": seconds(2), "frame_size": (8, 8), "zoom": 2.0}
    with pytest.raises(ValueError, match=message):
        zoom_boxes(**{**arguments, **change})


# --- the map of the crop ---


def test_the_map_of_a_crop_is_that_of_its_box():
    maps = draw(2, 8, 12)
    maps[1, 3, 5] = -torch.inf
    boxes = torch.tensor([[3 / 12, 2 / 8, 9 / 12, 6 / 8], [0.0, 0.5, 0.5, 1.0]])
    cut = cut_maps(maps, boxes)
    inside = torch.stack([maps[0, 2:6, 3:9], maps[1, 4:8, 0:6]]).repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(cut, inside.flatten(1).log_softmax(-1).view(2, 8, 12), atol=1e-5, rtol=1e-5)
    for grid in ((4, 6), (2, 3)):
        through_cut = relative_saliency(cut[0], grid)
        torch.testing.assert_close(through_cut, relative_saliency(maps[0], grid, tuple(boxes[0].tolist())))


def test_a_constant_map_stays_constant_in_any_crop():
    boxes = torch.tensor([[0.123, 0.301, 0.623, 0.801]])
    for size in ((1, 1), (7, 9)):
        assert torch.equal(relative_saliency(cut_maps(torch.full((1, *size), -3.3), boxes), (5, 5)), torch.ones(1, 25))


# --- the views ---


@pytest.mark.parametrize(
    "read_options, reads, views",
    [
        ({"size": (32, 48)}, {"shortest_side": 96}, (32, 48)),
        ({"shortest_side": 30}, {"shortest_side": 60}, (30, 53)),
        ({"shortest_side": 500}, {"shortest_side": 1000}, (90, 160)),  # more than the source has
        ({}, {}, (45, 80)),
    ],
)
def test_how_videos_are_read_and_how_large_views_are(read_options, reads, views):
    assert finer(read_options, 2.0) == reads
    assert view_size((90, 160), read_options, 2.0) == views


def test_views_hold_the_sources_own_pixels():
    """Crops of just the views' size are not touched; others are resized from the source, not from the context."""
    frames = salcap.read_frames(SAMPLE, 2, shortest_side=128)
    height, width = frames.pixels.shape[-2:]
    half = (height // 2, width // 2)
    boxes = torch.tensor([[0, 0, half[1], half[0]], [width - half[1], 5, width, 5 + half[0]]], dtype=torch.float64)
    boxes /= torch.tensor([width, height, width, height])
    views = make_views(frames, boxes, half)
    assert len(views) == 4
    assert views.pts_seconds.tolist() == [t for t in frames.pts_seconds.tolist() for _ in range(2)]
    assert torch.equal(views.pixels[1], frames.pixels[0, :, : half[0], : half[1]])
    assert torch.equal(views.pixels[3], frames.pixels[1, :, 5 : 5 + half[0], width - half[1] :])
    for size in ((50, 50), half):
        views = make_views(frames, boxes, size)
        wholes = [frame.permute(1, 2, 0).numpy() for frame in frames.pixels]
        parts = [wholes[0], wholes[0][: half[0], : half[1]], wholes[1], wholes[1][5 : 5 + half[0], width - half[1] :]]
        for view, part in zip(views.pixels, parts, strict=True):
            expected = np.array(Image.fromarray(part).resize(size[::-1], Image.Resampling.BICUBIC))
            assert np.abs(view.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


# --- the whole way ---


def load(family: str, **options: Any) -> SaliencyCaptioner:
    tiny = FAMILIES[family]()
    return SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, **{"mode": "zoom", **options})


def spy(captioner: SaliencyCaptioner, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """The clips and maps that the captioner gets."""
    seen: list[tuple[Any, Any]] = []
    generate = captioner.captioner.generate

    def record(clips: Any, maps: Any, *args: Any, **options: Any) -> Any:
        seen.append((clips, maps))
        return generate(clips, maps, *args, **options)

    monkeypatch.setattr(captioner.captioner, "generate", record)
    return seen


@pytest.mark.parametrize("family", ["git", "mini"])
def test_a_file_is_read_finer_and_the_crop_shows_what_the_captioners_own_size_would_lose(family, monkeypatch):
    """Pixels and maps that reach the captioner, against crops of the frames decoded at their full size."""
    captioner = load(family, saliency="spectral_residual")
    seen = spy(captioner, monkeypatch)
    result = captioner.caption(SAMPLE, 3, max_new_tokens=2)
    ((views,), (maps,)) = seen[0]
    assert (len(views), len(maps), result.views) == (6, 6, 6)
    assert views.pts_seconds[::2].tolist() == pytest.approx(result.frame_pts_seconds, abs=1e-6)
    native = salcap.read_frames(SAMPLE, 3)
    fine = salcap.read_frames(SAMPLE, 3, **captioner.read_options)
    side = min(views.pixels.shape[-2:])
    assert min(fine.pixels.shape[-2:]) == 2 * side
    height, width = native.pixels.shape[-2:]
    assert min(height, width) > 2 * side
    for index, box in enumerate(result.zoom_boxes):
        crop = views.pixels[2 * index + 1].permute(1, 2, 0).numpy().astype(float)
        picture = Image.fromarray(native.pixels[index].permute(1, 2, 0).numpy())
        cut = tuple(share * extent for share, extent in zip(box, (width, height, width, height), strict=True))
        size = (crop.shape[1], crop.shape[0])
        direct = np.array(picture.resize(size, Image.Resampling.BICUBIC, box=cut)).astype(float)
        context = Image.fromarray(views.pixels[2 * index].permute(1, 2, 0).numpy())
        cut = tuple(share * extent for share, extent in zip(box, (*context.size, *context.size), strict=True))
        blurred = np.array(context.resize(size, Image.Resampling.BICUBIC, box=cut)).astype(float)
        assert np.abs(crop - direct).mean() < 0.35 * np.abs(blurred - direct).mean()
    predicted = captioner.saliency.predict(fine, size="native")
    assert torch.equal(maps[::2], predicted)
    boxes = zoom_boxes(
        predicted, fine.pts_seconds, fine.pixels.shape[-2:], 2.0, captioner.captioner.seen_box(*views.pixels.shape[-2:])
    )
    assert torch.equal(maps[1::2], cut_maps(predicted, boxes))
    assert torch.tensor(result.zoom_boxes).sub(boxes).abs().max() < 1e-6
    if family == "mini":  # frames of 64 x 64 at twice the size: exactly the pixels that were decoded
        left, top, right, bottom = (boxes[0] * torch.tensor([*fine.pixels.shape[:-3:-1]] * 2)).round().long().tolist()
        whole = make_views(fine, boxes, (bottom - top, right - left))
        assert torch.equal(whole.pixels[1], fine.pixels[0, :, top:bottom, left:right])


@pytest.mark.parametrize("options", [{}, {"mode": "zoom+prune", "policy": "foveate", "keep_ratio": 0.5}])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_views_as_frames(family, options):
    """Batches equal single runs, tokens are those of the views, and the crop is in what is said of the video."""
    captioner = load(family, saliency="spectral_residual", **options)
    rng = np.random.default_rng(0)
    fields = rng.integers(0, 256, (2, 2, 6, 8, 3), np.uint8).repeat(12, 2).repeat(12, 3)
    videos = [SAMPLE, *fields, fields[0][:, 10:50]]
    together = captioner.caption_batch(videos, 2, max_new_tokens=4)
    plain = captioner.with_weighting(mode="none").caption_batch(videos, 2, max_new_tokens=4)
    prefix = tiny_models.FAMILIES[family]().num_prefix_tokens if family != "mini" else 0
    each = prefix + (8 if "prune" in captioner.weighting.modes else 16)
    for video, result, without in zip(videos, together, plain, strict=True):
        alone = captioner.caption(video, 2, max_new_tokens=4)
        assert (alone.text, alone.zoom_boxes) == (result.text, result.zoom_boxes)
        assert alone.score == pytest.approx(result.score, abs=1e-4)
        assert (result.visual_tokens, result.views, result.zoom) == (4 * each, 4, 2.0)
        assert (without.views, without.zoom, without.zoom_boxes) == (2, None, ())
        assert family == "mini" or result.score != without.score  # a trunk of random weights is blind
        assert set(result.timings) == {
            *("read_ms", "saliency_ms", "zoom_ms", "preprocess_ms", "encode_ms", "prefill_ms", "decode_ms"),
        }
        assert len(result.frame_pts_seconds) == len(result.zoom_boxes) == 2
        assert result.to_dict()["zoom_boxes"] == result.zoom_boxes


@pytest.mark.parametrize("family", FAMILIES)
def test_views_share_a_budget_over_the_clip(family):
    captioner = load(family, saliency="spectral_residual", mode="zoom+prune", max_visual_tokens=40)
    result = captioner.caption(SAMPLE, 2, max_new_tokens=2)
    assert (result.visual_tokens, result.views, result.scope) == (40, 4, "clip")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_even_map_changes_nothing_but_the_views(family):
    """With scale, bias and prune on top, at strengths and budgets that would act."""
    captioner = load(family, saliency="uniform")
    plain = captioner.caption(SAMPLE, 2, max_new_tokens=3)
    assert plain.zoom_boxes[0] == plain.zoom_boxes[1] == pytest.approx((0.25, 0.25, 0.75, 0.75), abs=0.01)
    for options in ({"mode": "zoom+scale"}, {"mode": "bias+zoom"}, {"mode": "zoom+prune", "max_visual_tokens": 999}):
        result = captioner.with_weighting(**options).caption(SAMPLE, 2, max_new_tokens=3)
        assert (result.text, result.score) == (plain.text, plain.score)


def test_what_is_looked_at_decides_what_is_shown():
    """A dark video with a small coloured square: the square fills more of what the captioner reads."""
    pixels = np.zeros((4, 128, 128, 3), np.uint8)
    for frame, picture in enumerate(pixels):
        picture[20:44, 10 + 25 * frame : 34 + 25 * frame] = (250, 200, 30)

    class Brightness(salcap.SaliencyModel):
        def forward(self, pixels, pts_seconds=None):
            return 6 * pixels.mean(1)

    captioner = load("mini", saliency=Brightness())
    result = captioner.caption(pixels, 4, max_new_tokens=2)
    for frame, (left, top, right, bottom) in enumerate(result.zoom_boxes):
        assert left <= (10 + 25 * frame) / 128
        assert right >= (34 + 25 * frame) / 128
        assert top <= 20 / 128
        assert bottom >= 44 / 128
    again = captioner.caption(
        salcap.Frames(torch.from_numpy(pixels).permute(0, 3, 1, 2), seconds(4)), 4, max_new_tokens=2
    )
    assert replace(again, timings={}) == replace(result, timings={})


def test_controls_are_maps_that_do_not_look():
    """Backbone "center" cuts the middle, "random" a place drawn from the pixels and the same in every batch."""
    fields = [np.random.default_rng(i).integers(0, 256, (1, 128, 128, 3), np.uint8) for i in range(6)]
    boxes = {}
    for name in ("center", "random"):
        captioner = load("mini", saliency=name)
        results = captioner.caption_batch(fields, 1, max_new_tokens=2)
        boxes[name] = [result.zoom_boxes[0] for result in results]
        assert captioner.caption(fields[3], 1, max_new_tokens=2).zoom_boxes[0] == boxes[name][3]
    assert set(boxes["center"]) == {(0.25, 0.25, 0.75, 0.75)}
    assert len(set(boxes["random"])) >= 5


def test_frames_by_saliency_are_zoomed_into_as_well():
    captioner = load("mini", saliency="spectral_residual")
    result = captioner.caption(SAMPLE, 3, frames="saliency", max_new_tokens=2)
    assert (result.frames, result.views, len(result.zoom_boxes)) == ("saliency", 6, 3)
    assert {"choose_ms", "zoom_ms"} < set(result.timings)


def test_git_reads_half_as_many_frames():
    captioner = load("git")
    assert len(captioner.caption(SAMPLE, max_new_tokens=2).frame_pts_seconds) == 3
    with pytest.raises(ValueError, match=r"takes 1 to 3 frames in mode 'zoom', which makes two views of each, got 4"):
        captioner.caption(SAMPLE, 4)
    image = tiny_models.git(None)
    with pytest.raises(ValueError, match=r"cannot honour mode 'zoom'; it allows \['bias', 'none', 'prune', 'scale'\]"):
        SaliencyCaptioner.from_pretrained(image.model, image.processor, mode="zoom")


def test_a_family_that_says_nothing_of_zoom_has_none():
    """A family may join frames in temporal patches: it must ask for views."""
    from salcap.captioners.family import CaptionerFamily

    assert "zoom" not in CaptionerFamily.modes


@pytest.mark.parametrize(
    "options, message",
    [
        ({"zoom": 1.0}, "zoom must be above 1 and finite, got 1.0"),
        ({"zoom": float("inf")}, "zoom must be above 1 and finite, got inf"),
        ({"mode": "scale", "zoom": 3.0}, "zoom 3.0 does nothing in mode 'scale': it needs zoom"),
        ({"mode": "zoom", "strength": 0.2}, "strength 0.2 does nothing in mode 'zoom'"),
        ({"mode": "zoom", "max_visual_tokens": 9}, "needs a mode with 'prune', got mode 'zoom'"),
        ({"mode": "none+zoom"}, "cannot be combined"),
    ],
)
def test_wrong_settings_fail(options, message):
    with pytest.raises(ValueError, match=message):
        load("mini", **options)


def test_a_budget_alone_adds_prune_to_zoom():
    assert load("mini").with_weighting(keep_ratio=0.5).weighting == Weighting("zoom+prune", keep_ratio=0.5)


# --- the bundled captioner at other sizes ---


def test_the_bundled_encoder_reads_other_sizes():
    """A square grid of any side; positions are interpolated, and back at its own size it is itself."""
    tiny = tiny_models.mini()
    encoder: SalcapEncoder = tiny.model.encoder
    with torch.no_grad():
        encoder.position_embedding.copy_(torch.linspace(0, 1, 4).repeat_interleave(4)[:, None].expand(-1, 32))
    before = encoder(pixel_values=torch.ones(1, 3, 64, 64)).last_hidden_state
    assert torch.equal(encoder.resize(64)(pixel_values=torch.ones(1, 3, 64, 64)).last_hidden_state, before)
    assert encoder.resize(112)(pixel_values=torch.ones(1, 3, 112, 112)).last_hidden_state.shape == (1, 49, 32)
    rows = encoder.position_embedding.detach()[:, 0].view(7, 7)
    assert (rows.diff(dim=0) > 0).all()  # rows stay rows, in their order
    torch.testing.assert_close(rows, rows[:, :1].expand(-1, 7))
    with pytest.raises(ValueError, match="multiple of 16 from 32 on, got 100"):
        encoder.resize(100)
