"""Data sets of human gaze: what is read, the splits, and what becomes of points on the way to a map's pixels."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salcap.datasets.fixations import FixationItem, load_fixations
from salcap.datasets.gaze_video import GazeClip, load_gaze_clips
from salcap.video import probe

SUBJECTS = (np.array([[10.0, 20.0], [799.9, 599.9]]), np.array([[400.0, 300.0], [-3.0, 10.0], [800.0, 10.0]]))


@pytest.fixture
def item() -> FixationItem:
    return FixationItem("a.jpg", Path("a.jpg"), 800.0, 600.0, SUBJECTS)


@pytest.fixture
def clip() -> GazeClip:
    """Three viewers, two views, six frames of 10 a second; viewer v looks at x = 10 v + frame, y = view."""
    viewer, view, frame = np.meshgrid(np.arange(3), np.arange(2), np.arange(6), indexing="ij")
    gaze = np.stack([10 * viewer + frame, view], -1).astype(np.float32)
    gaze[2, 1, 3] = np.nan
    gaze[2, 0, 4] = (-1, 0)
    return GazeClip("clip", Path("clip.mp4"), 40.0, 20.0, 10.0, gaze)


def write_set(root: Path, name: str, keys: list[str], **changes) -> Path:
    """A folder in the layout of a set, every image an empty file."""
    points = [[1, 2], [3.5, 4]] if name == "etto" else [[[1, 2, 99], [3.5, 4, 99]], []]
    index = {"original_size": [80, 60], "fixations": dict.fromkeys(keys, points), **changes}
    with gzip.open(root / "fixations.json.gz", "wt") as file:
        json.dump(index, file)
    (root / "images").mkdir()
    for key in keys:
        (root / "images" / (f"{key}.jpg" if name == "etto" else key)).touch()
    return root


# --- images ---


def test_items_are_read_with_each_observer(tmp_path):
    first, second = load_fixations("osie", write_set(tmp_path, "osie", ["b.jpg", "a.jpg"]))
    assert (first.image_id, second.image_id) == ("a.jpg", "b.jpg")
    assert first.path == tmp_path / "images" / "a.jpg"
    assert (first.width, first.height) == (80, 60)
    assert [subject.tolist() for subject in first.subjects] == [[[1, 2], [3.5, 4]], []]
    assert first.fixations.tolist() == [[1, 2], [3.5, 4]]


def test_a_set_may_have_a_size_for_each_image_or_pooled_observers(tmp_path):
    for name in ("sun500", "etto"):
        (tmp_path / name).mkdir()
    sizes = {"a.jpg": {"original_size": [300, 200], "image_size": [30, 20]}}
    (item,) = load_fixations("sun500", write_set(tmp_path / "sun500", "sun500", ["a.jpg"], sizes=sizes))
    assert (item.width, item.height) == (300, 200)
    (item,) = load_fixations("etto", write_set(tmp_path / "etto", "etto", ["a"]))
    assert item.path.name == "a.jpg"
    assert [subject.tolist() for subject in item.subjects] == [[[1, 2], [3.5, 4]]]
    with pytest.raises(ValueError, match="a: needs two observers or more to be halved, got 1"):
        item.halves()


def test_the_split_is_the_one_that_is_written_down(tmp_path):
    keys = [f"{number}.jpg" for number in range(1001, 1131)]
    write_set(tmp_path, "osie", keys)
    names = {split: [item.image_id for item in load_fixations("osie", tmp_path, split)] for split in ("train", "val")}
    random.Random(20261121).shuffle(keys)
    assert names == {"val": sorted(keys[:100]), "train": sorted(keys[100:])}
    assert len(load_fixations("osie", tmp_path, "all")) == len(load_fixations("osie", tmp_path)) == 130


@pytest.mark.parametrize("name", ["osie", "sun500"])
def test_the_real_sets(shared, name):
    root = shared / "data" / "saliency" / name
    val, train = (load_fixations(name, root, split) for split in ("val", "train"))
    assert (len(val), len(train)) == (100, 400)
    assert not {item.image_id for item in val} & {item.image_id for item in train}
    if name == "osie":
        assert [item.image_id for item in val[:4]] == ["1006.jpg", "1010.jpg", "1012.jpg", "1020.jpg"]
        assert {len(item.subjects) for item in val + train} == {15}
        assert {(item.width, item.height) for item in val + train} == {(800, 600)}
        assert sum(len(item.fixations) for item in val + train) == 69876
    for item in val[::20]:
        with Image.open(item.path) as image:
            assert image.width / image.height == pytest.approx(item.width / item.height, rel=0.01)
        assert len(item.fixations_in(640, 480)) == len(item.fixations) > 20


def test_etto_holds_pooled_points_on_its_own_maps(shared):
    """The set's own fixation maps are the second witness to where the points lie."""
    items = load_fixations("etto", shared / "data/saliency/etto")
    assert len(items) == 95
    assert sum(len(item.fixations) for item in items) == 2733
    agreement = []
    for item in items[::10]:
        with Image.open(shared / "data/saliency/etto/maps" / f"{item.image_id}.png") as image:
            truth = np.asarray(image.convert("L"), dtype=np.float64)
        density = item.density_map(truth.shape, sigma_share=0.02)
        agreement.append([np.corrcoef(density.ravel(), seen.ravel())[0, 1] for seen in (truth, truth[::-1])])
    own, upside_down = np.mean(agreement, 0)
    assert own > 0.65 > upside_down + 0.1


def test_points_are_scaled_and_those_outside_dropped(item):
    assert item.fixations_in(80, 30).tolist() == [[1, 1], [pytest.approx(79.99), pytest.approx(29.995)], [40, 15]]
    assert item.fixations_in(800, 600).tolist() == [[10, 20], [799.9, 599.9], [400, 300]]


@pytest.mark.parametrize("size", [(600, 800), (60, 80), (64, 64)])
def test_a_density_is_a_gaussian_around_each_fixation(size):
    single = FixationItem("a", Path("a"), 800.0, 600.0, (np.array([[240.0, 330.0]]),))
    density = single.density_map(size, sigma_share=0.05)
    assert density.dtype == np.float32
    assert density.shape == size
    assert density.sum() == pytest.approx(1, abs=1e-5)
    for axis, side, place in ((1, 800, 240), (0, 600, 330)):
        centres = (np.arange(size[axis]) + 0.5) * side / size[axis]
        marginal = density.sum(1 - axis).astype(np.float64)
        mean = (marginal * centres).sum()
        assert mean == pytest.approx(place, abs=0.5)
        assert np.sqrt((marginal * (centres - mean) ** 2).sum()) == pytest.approx(0.05 * 800, rel=0.02)


def test_a_density_weighs_fixations_alike_and_may_be_empty(item):
    density = item.density_map((60, 80), sigma_share=0.02)
    first = FixationItem("a", item.path, 800.0, 600.0, (item.subjects[0][:1],)).density_map((60, 80), 0.02)
    assert density[:10, :10].sum() == pytest.approx(first[:10, :10].sum() * density[:10, :10].sum(), rel=0.01)
    assert density[25:35, 35:45].sum() > 0.3
    nobody = FixationItem("a", item.path, 800.0, 600.0, (np.empty((0, 2)),))
    assert not nobody.density_map((6, 8)).any()
    with pytest.raises(ValueError, match="sigma_share must be finite and above 0, got 0"):
        item.density_map((6, 8), sigma_share=0.0)


def test_halves_share_no_observer(item):
    first, second = item.halves()
    assert first.fixations.tolist() == SUBJECTS[0].tolist()
    assert second.fixations.tolist() == SUBJECTS[1].tolist()
    assert first.path == item.path


@pytest.mark.parametrize(
    "name, split, error, message",
    [
        ("osi", None, ValueError, "unknown dataset 'osi', allowed: osie, sun500, etto; did you mean 'osie'"),
        ("osie", "test", ValueError, "unknown split of osie 'test', allowed: train, val, all"),
        ("etto", "train", ValueError, "unknown split of etto 'train', allowed: all"),
        ("osie", None, FileNotFoundError, "holds no fixations.json.gz"),
    ],
)
def test_load_fixations_fails(tmp_path, name, split, error, message):
    with pytest.raises(error, match=message):
        load_fixations(name, tmp_path, split)


def test_load_fixations_fails_on_what_is_not_whole(tmp_path):
    write_set(tmp_path, "osie", ["a.jpg", "b.jpg"])
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are missing in .*: \['b.jpg'\]"):
        load_fixations("osie", tmp_path)
    packed = (tmp_path / "fixations.json.gz").read_bytes()
    for broken in (packed[:40], b"{}", gzip.compress(b"{}"), gzip.compress(b"[1]")):
        (tmp_path / "fixations.json.gz").write_bytes(broken)
        with pytest.raises(ValueError, match="is no index of fixations of osie"):
            load_fixations("osie", tmp_path)


# --- clips ---


def test_gaze_of_a_window_around_each_moment(clip):
    first, later = clip.gaze_in(40, 20, [0.1, 0.45], window_seconds=0.2)
    assert sorted(first.tolist()) == sorted([10.0 * v + f, y] for v in range(3) for y in range(2) for f in (0, 1, 2))
    xs = sorted(later[:, 0].tolist())
    assert xs == [4, 4, 5, 5, 14, 14, 15, 15, 24, 25, 25]  # of frame 4 one viewer looked beyond the edge
    assert len(clip.gaze_in(40, 20, [0.3], window_seconds=0.0)[0]) == 5  # once the tracker saw no eye
    assert clip.gaze_in(40, 20, [9.0])[0].shape == (0, 2)
    (scaled,) = clip.gaze_in(80, 10, [0.0], window_seconds=0.0)
    assert sorted(scaled.tolist()) == sorted([20.0 * v, y / 2] for v in range(3) for y in range(2))


def test_density_maps_of_moments_follow_the_gaze(clip):
    maps = clip.density_maps((20, 40), [0.0, 0.5, 9.0], sigma_share=0.02, window_seconds=0.0)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum((1, 2)), [1, 1, 0], atol=1e-5)
    columns = maps[:2].sum(1)
    np.testing.assert_allclose(columns[0, :30], columns[1, 5:35], atol=0.04)
    assert columns[1, 4:7].sum() > 0.25


def test_halves_of_a_clip_share_no_viewer(clip):
    first, second = clip.halves()
    assert sorted({x // 10 for x, _ in first.gaze_in(40, 20, [0.2])[0].tolist()}) == [0, 2]
    assert sorted({x // 10 for x, _ in second.gaze_in(40, 20, [0.2])[0].tolist()}) == [1]
    with pytest.raises(ValueError, match="clip: needs two viewers or more to be halved, got 1"):
        second.halves()


def test_the_real_clips(shared):
    clips = load_gaze_clips(shared / "data/saliency/causality")
    assert [clip.clip_id for clip in clips] == [f"clip_{number:02d}" for number in range(1, 21)]
    assert {clip.gaze.shape[:2] for clip in clips} == {(31, 2)}
    assert [clip.num_frames for clip in clips] == [300] * 11 + [301] + [300] * 7 + [301]
    info = probe(clips[11].path)
    assert (info.width, info.height, info.fps) == (clips[11].width, clips[11].height, clips[11].fps)
    starts = np.concatenate([clip.gaze_in(1000, 750, [0.0])[0] for clip in clips])
    np.testing.assert_allclose(np.median(starts, 0), (500, 375), atol=10)  # the mark that they were told to look at


@pytest.mark.parametrize("content", [None, b"no archive", b"PK\x03\x04 broken"])
def test_load_gaze_clips_fails(tmp_path, content):
    if content is not None:
        (tmp_path / "gaze.npz").write_bytes(content)
    error = FileNotFoundError if content is None else ValueError
    with pytest.raises(error, match=r"gaze\.npz"):
        load_gaze_clips(tmp_path)


def test_load_gaze_clips_fails_on_what_is_not_whole(tmp_path):
    kept = {"gaze": np.zeros((2, 1, 2, 3, 2), np.float16), "track_loss": np.array([False, True])}
    np.savez(tmp_path / "gaze.npz", clip=[7], frames=[3], **kept)
    with pytest.raises(FileNotFoundError, match=r"1 of 1 clips are missing in .*: \['clip_07'\]"):
        load_gaze_clips(tmp_path)
    np.savez(tmp_path / "gaze.npz", clip=[7, 8], frames=[3, 3], **kept)
    with pytest.raises(ValueError, match=r"gaze has shape \(1, 1, 2, 3, 2\) for 2 clips"):
        load_gaze_clips(tmp_path)
