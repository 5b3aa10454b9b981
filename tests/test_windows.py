"""A long video in windows: together they are the clip, and each has its own frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from video_factory import make_shots, make_video, numbers

import salcap.windows
from salcap.manifest import Item
from salcap.video import VideoDecodeError, read_frames
from salcap.windows import Window, cut_windows, find_cuts, item_windows, picture_seconds


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """6.4 s of shots that begin at 0, 1.6, 2.92, 3.4 (too short) and 3.72 s."""
    return str(make_shots(tmp_path_factory.mktemp("shots") / "a.mp4", [40, 33, 12, 8, 67]))


def here(function: Any, *args: Any) -> Any:
    return function(*args)


@pytest.mark.parametrize(
    "windows, start, end, expected",
    [
        (2, None, None, [(None, 2), (2, 4), (4, 6), (6, None)]),
        ("2.5", 1.0, 6.0, [(1, 3.5), (3.5, 6.0)]),
        (2.1, None, None, [(None, 2.1), (2.1, 4.2), (4.2, None)]),  # 0.1 s are left, less than a tenth
        (2.0, 3.0, 99.0, [(3.0, 5.0), (5.0, 99.0)]),  # beyond the end: the reader tells
        (10, None, None, [(None, None)]),
        (10, 7.0, None, [(7.0, None)]),  # nothing is there: the reader tells
        ("shots", None, None, [(None, 1.6), (1.6, 2.92), (2.92, None)]),
        ("shots", 1.0, 5.0, [(1.0, 2.92), (2.92, 5.0)]),  # 1.6 is too near the start
        ("shots", 1.6, 3.5, [(1.6, 3.5)]),  # starts with a cut; 2.92 is too near the end
    ],
)
def test_windows_are_the_whole_clip(
    video: str, windows: Any, start: float | None, end: float | None, expected: list[tuple[float | None, float | None]]
) -> None:
    found = list(cut_windows(video, windows, start, end))
    assert found == [pytest.approx(window) if None not in window else window for window in expected]


def test_a_long_video_is_searched_in_parts(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(cut_windows(video, "shots"))
    monkeypatch.setattr(salcap.windows, "PART_SECONDS", 1.6)
    calls = []

    def call(function: Any, *args: Any) -> Any:
        calls.append((function, args[1:]))
        return function(*args)

    windows = cut_windows(video, "shots", call=call)
    first = next(windows)
    assert calls == [(picture_seconds, ()), (find_cuts, (0.0, 1.6)), (find_cuts, (1.6, 3.2))]  # no more than it takes
    assert [first, *windows] == whole


@pytest.mark.parametrize("name, fps", [("a.mp4", 30), ("a.avi", 24), ("a.mkv", 24), ("a.ts", 30)])
def test_each_frame_is_in_one_window(tmp_path: Path, name: str, fps: int) -> None:
    """A window that starts with a frame has no earlier one, however its time was rounded; windows of few frames."""
    path = str(make_video(tmp_path / name, 24, fps=fps, gop=6))
    times = read_frames(path, 24).pts_seconds.tolist()
    for begin, end in ((times[7], times[10]), (round(times[7], 6), round(times[10], 6))):
        assert numbers(read_frames(path, 8, begin, end)) == [7, 8, 9]


@pytest.mark.parametrize("windows", [0, -1, "nan", float("inf"), "scenes", None, [2]])
def test_wrong_windows_fail(video: str, windows: Any) -> None:
    with pytest.raises(ValueError, match="windows must be a number of seconds above 0, or 'shots', got"):
        next(cut_windows(video, windows))


def test_windows_of_an_item(video: str) -> None:
    found = list(item_windows(Item(video, "talk", None, 5.0), 2.0, here))
    assert found == [
        Window(video, "talk#1", None, 2.0, "talk", 1, False),
        Window(video, "talk#2", 2.0, 4.0, "talk", 2, False),
        Window(video, "talk#3", 4.0, 5.0, "talk", 3, True),
    ]
    assert found[1].labels == {"video": "talk", "window": 2, "is_last_window": False}
    assert [window.id for window in item_windows(Item(video), 5.0, here)] == [f"{video}#1", f"{video}#2"]


def test_an_error_is_that_of_the_last_window(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = item_windows(Item("missing.mp4"), "shots", here)
    assert (only.id, only.is_last, type(only.error)) == ("missing.mp4#1", True, VideoDecodeError)
    monkeypatch.setattr(salcap.windows, "PART_SECONDS", 2.0)

    def call(function: Any, *args: Any) -> Any:
        if args[1:2] == (2.0,):
            raise OSError("gone")
        return function(*args)

    first, rest = item_windows(Item(video, "a", None, 6.0), "shots", call)
    assert (first.number, first.error, first.end_seconds) == (1, None, 1.6)
    assert (rest.number, str(rest.error), rest.start_seconds, rest.end_seconds) == (2, "gone", 1.6, 6.0)
    assert rest.is_last
