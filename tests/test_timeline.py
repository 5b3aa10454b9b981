"""The choice of frames and keyframes, apart from any decoder."""

from __future__ import annotations

import pytest

from salcap.timeline import in_order, spread_times


@pytest.mark.parametrize(
    "times, targets, expected",
    [
        (range(0, 100, 10), [4, 34, 64, 94], [0, 30, 60, 90]),  # the one on screen
        (range(0, 30, 10), [1, 2, 3, 4, 5], [0, 10, 20]),  # fewer than asked: all
        ([0, 1, 2, 3, 4, 50], [5, 15, 25, 35, 45, 55], [0, 1, 2, 3, 4, 50]),
        ([0, 1, 2, 3, 100], [20, 40, 60], [2, 3, 100]),  # one still for all three: neighbours join it
        ([0, 40, 41, 42], [10, 20, 43], [0, 40, 42]),  # the second takes the next one, the third stays
        ([5, 6, 7], [1, 2], [5, 6]),  # nothing on screen yet
    ],
)
def test_spread_times(times: list[int], targets: list[int], expected: list[int]) -> None:
    assert spread_times(list(times), targets) == expected


@pytest.mark.parametrize(
    "times, expected",
    [
        ([], []),
        ([3], [3]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 1, 99, 2, 3], [0, 1, 2, 3]),  # one jumped ahead
        ([0, 1, 2, 1, 3], [0, 1, 2, 3]),  # one came too late
        ([0, 5, 5, 6], [0, 5, 6]),  # two at once: one is never seen
    ],
)
def test_in_order(times: list[int], expected: list[int]) -> None:
    assert [time for time, _ in in_order((time, None) for time in times)] == expected
