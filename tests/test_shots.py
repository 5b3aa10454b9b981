"""Cuts are found to the frame, and nothing else is taken for one."""

from __future__ import annotations

import gc
from pathlib import Path

import av
import pytest
from video_factory import load_script, make_shots

from salcap.shots import cut_times, find_cuts
from salcap.video import VideoDecodeError, VideoLimits

CALM = [2.0] * 12


@pytest.mark.parametrize(
    "changes, fps, expected",
    [
        ([*CALM, 60.0, *CALM], 25, [12]),
        ([*CALM, 15.0, *CALM], 25, []),  # a small change
        ([*CALM, 60.0, 60.0, *CALM], 25, []),  # a flash: there and back
        ([*CALM, 25.0, 45.0, 30.0, *CALM], 25, []),  # fast motion
        ([*CALM, 60.0, *[28.0] * 12], 25, [12]),  # from a calm shot to a wild one
        ([0.0, 0.0, 0.0, 30.0] * 8, 25, []),  # each frame four times, as when slow film was made fast
        ([60.0, *CALM, 60.0], 25, [0, 13]),
        ([60.0] * 4, 0.2, [0, 1, 2, 3]),  # frames 5 s apart: slides
        ([], 25, []),
    ],
)
def test_only_a_cut_is_one(changes: list[float], fps: float, expected: list[int]) -> None:
    times = [10.0 + index / fps for index in range(len(changes))]
    assert cut_times(times, changes) == [times[index] for index in expected]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float]]:
    """Its path, and the times of its cuts."""
    path = make_shots(tmp_path_factory.mktemp("shots") / "a.mp4", [40, 33, 52, 25])
    return str(path), [40 / 25, 73 / 25, 125 / 25]


def test_cuts_of_a_video_to_the_frame(video: tuple[str, list[float]]) -> None:
    path, cuts = video
    assert find_cuts(path, 0.0, 6.0) == pytest.approx(cuts, abs=1e-9)


@pytest.mark.parametrize("part", [0.37, 0.96, 1.6, 2.5])
def test_parts_have_the_cuts_of_the_whole(video: tuple[str, list[float]], part: float) -> None:
    """Also where a part begins or ends with a cut."""
    path, cuts = video
    found = [
        cut
        for number in range(17)
        if number * part < 6.0
        for cut in find_cuts(path, number * part, (number + 1) * part)
    ]
    assert found == pytest.approx(cuts, abs=1e-9)


def test_known_cuts_of_natural_video(shared: Path, tmp_path: Path) -> None:
    """Two seconds of every third clip: 22 joints. Where a wild pan ends in a cut, that may be missed."""
    measure = load_script("measure_cuts")
    clips = sorted((shared / "data" / "clips").glob("*.mp4"))[::3]
    joints = measure.join(clips, tmp_path / "joined.mp4", seconds=2.0)
    assert len(joints) >= 20
    right, _, false = measure.compare(measure.find(tmp_path / "joined.mp4"), joints)
    assert (right / len(joints) > 0.95, false) == (True, [])


def test_no_frame_is_kept(video: tuple[str, list[float]]) -> None:
    """An hour of them would fill memory before Python collects its garbage."""
    gc.collect()
    gc.disable()
    try:
        find_cuts(video[0], 0.0, 6.0)
        kept = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert kept < 5


def test_limits_and_refusals_are_those_of_the_reader(video: tuple[str, list[float]], tmp_path: Path) -> None:
    with pytest.raises(VideoDecodeError, match="more than 20 frames to decode"):
        find_cuts(video[0], 0.0, 6.0, limits=VideoLimits(max_decoded_frames=20))
    with pytest.raises(VideoDecodeError, match="declares 96x64 pixels, at most 1000 are decoded"):
        find_cuts(video[0], 0.0, 6.0, limits=VideoLimits(max_pixels=1000))
    script = tmp_path / "list.mp4"
    script.write_text(f"ffconcat version 1.0\nfile '{video[0]}'\n")
    for path in (str(script), "http://localhost/a.mp4"):
        with pytest.raises(VideoDecodeError):
            find_cuts(path, 0.0, 6.0)
