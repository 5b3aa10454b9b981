"""Uniform choice of frames by time."""

from __future__ import annotations

import pytest
import torch

from salcap.frames import Frames
from salcap.sampling import take_frames, uniform_indices


@pytest.mark.parametrize(
    "times, num_frames, expected",
    [
        (range(8), 8, list(range(8))),
        (range(8), 2, [2, 6]),
        (range(9), 3, [1, 4, 7]),
        (range(5), 1, [2]),
        ([0, 0.1, 0.2, 0.3, 10, 20, 30], 3, [3, 4, 5]),  # by time, not by number
        ([0, 0, 0, 0, 9], 3, [2, 3, 4]),  # never one frame twice
    ],
)
def test_uniform_indices(times, num_frames, expected):
    chosen = uniform_indices(torch.tensor([float(t) for t in times], dtype=torch.float64), num_frames)
    assert chosen.tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_uniform_indices_always_climb(seed):
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(40, generator=generator, dtype=torch.float64).pow(4).sort().values
    for num_frames in (1, 2, 7, 39, 40, 50):
        chosen = uniform_indices(times, num_frames)
        assert len(chosen) == min(num_frames, 40)
        assert (chosen.diff() > 0).all()
        assert chosen[0] >= 0
        assert chosen[-1] < 40


def test_take_frames_cuts_a_window():
    frames = Frames(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10), "x.mp4", ("damaged",))
    part = take_frames(frames, 2, start_seconds=4, end_seconds=8)
    assert part.pts_seconds.tolist() == [5, 7]
    assert (part.source, part.warnings) == ("x.mp4", ("damaged",))


@pytest.mark.parametrize("arguments, message", [((0,), "at least 1, got 0"), ((1, 20.0), "span 0.000 to 9.000")])
def test_take_frames_fails(arguments, message):
    frames = Frames(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10))
    with pytest.raises(ValueError, match=message):
        take_frames(frames, *arguments)
