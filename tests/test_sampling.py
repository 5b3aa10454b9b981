"""Choice of frames, evenly by time and by saliency."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from salcap.frames import Frames
from salcap.sampling import (
    PRESAMPLE_FRAMES,
    choose_frames,
    presample_size,
    saliency_indices,
    take_frames,
    uniform_indices,
)


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


# --- by saliency ---


def looks(places: list[float], size: int = 12, spread: float = 1.0) -> torch.Tensor:
    """(T, size, size) log-density: one blob a frame, ``places`` (share of the width) from the left."""
    axis = torch.arange(size, dtype=torch.float64)
    x = torch.tensor(places, dtype=torch.float64)[:, None, None] * size
    blob = -((axis[:, None] - size / 2) ** 2 + (axis - x) ** 2) / (2 * spread**2)
    return blob.flatten(1).log_softmax(-1).unflatten(1, (size, size))


def wander(total: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps whose gaze rests and jumps, and irregular times, some of them equal."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(total, generator=generator) * (torch.rand(total, generator=generator) < 0.3)
    times = torch.rand(total, generator=generator, dtype=torch.float64).pow(3).mul(20).round(decimals=1).cumsum(0)
    return looks((steps.cumsum(0) % 1.0).tolist()), times


def test_saliency_indices_by_hand():
    """Eight frames of a second, one jump before the third: it weighs as much as the whole clip, but is one slot only.

    The slots: 1 for the third frame, 1/7 for each of the others. Middles are at 0.5 (third) and 1.5 (fifth).
    """
    jump = looks([0.0, 0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], spread=0.4)
    assert saliency_indices(jump, torch.arange(8), 2).tolist() == [2, 4]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 30])
def test_saliency_indices_climb_and_leave_no_stretch_out(seed, num_frames):
    log_density, times = wander(64, seed)
    chosen = saliency_indices(log_density, times, num_frames)
    assert len(chosen) == num_frames
    assert bool((chosen.diff() > 0).all())
    assert 0 <= int(chosen[0]) <= int(chosen[-1]) < 64
    assert torch.equal(chosen, saliency_indices(log_density.clone(), times.clone(), num_frames))
    assert torch.equal(chosen, saliency_indices(log_density, times * 64, num_frames))  # whatever the unit
    seconds = torch.cat([times.diff(), times.diff().mean()[None]])
    share = seconds / seconds.sum()
    ends = [-1, *chosen.tolist(), 64]
    passed = [float(share[a + 1 : b].sum()) for a, b in pairwise(ends)]
    assert max(passed[1:-1], default=0.0) < 2 / num_frames + 1e-6
    assert max(passed[0], passed[-1]) < 1 / num_frames + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_saliency_indices_of_a_gaze_that_rests_are_uniform(seed):
    _, times = wander(50, seed)
    still = looks([0.3] * 50)
    flicker = still + 0.005 * torch.rand(50, 12, 12, generator=torch.Generator().manual_seed(seed))
    flicker = flicker.flatten(1).log_softmax(-1).unflatten(1, (12, 12))
    assert not torch.equal(flicker[0], flicker[1])
    for num_frames in (1, 3, 6, 49, 50, 60):
        for log_density in (still, flicker):
            assert torch.equal(saliency_indices(log_density, times, num_frames), uniform_indices(times, num_frames))


@pytest.mark.parametrize("num_frames", [4, 6, 8])
def test_saliency_indices_go_where_the_gaze_moves(num_frames):
    """Twelve seconds at 5 frames a second; in the eighth the gaze crosses the picture, there and back."""
    places = [0.0] * 35 + [0.3, 0.7, 0.95, 0.6, 0.2] + [0.0] * 20
    chosen = saliency_indices(looks(places), torch.arange(60) / 5, num_frames)
    eventful = int(((chosen >= 35) & (chosen <= 40)).sum())
    assert eventful in (num_frames // 2, num_frames // 2 + 1)
    assert eventful > int(((uniform_indices(torch.arange(60) / 5, num_frames) - 37.5).abs() <= 2.5).sum())
    other = chosen[(chosen < 35) | (chosen > 40)]
    assert int(other.min()) <= 60 // num_frames
    assert int(other.max()) > 40


def test_a_cut_costs_one_frame():
    places = [0.1] * 30 + [0.8] * 30
    chosen = saliency_indices(looks(places), torch.arange(60), 6)
    assert 30 in chosen.tolist()
    gaps = torch.cat([torch.tensor([0]), chosen, torch.tensor([60])]).diff()
    assert int(gaps.max()) <= 12  # the other five are spread as five would be
    assert int((chosen < 30).sum()) in (2, 3)


def test_a_small_move_counts_for_less_than_a_great_one():
    times = torch.arange(60)
    near, far = ([0.5] * 30 + [0.5 + step * (i % 2) for i in range(10)] + [0.5] * 20 for step in (0.004, 0.4))
    counts = [int(((c >= 30) & (c <= 40)).sum()) for c in (saliency_indices(looks(p), times, 12) for p in (near, far))]
    assert counts[0] <= 4
    assert counts[1] >= 6


@pytest.mark.parametrize("num_frames", [*range(1, 40), 64, 100])
def test_the_even_choice_is_among_the_presample(num_frames):
    size = presample_size(num_frames)
    assert 3 * num_frames <= size <= max(PRESAMPLE_FRAMES, 3 * num_frames)
    middles = uniform_indices(torch.arange(size), num_frames)
    assert torch.equal((middles + 0.5) / size, (torch.arange(num_frames) + 0.5) / num_frames)


def test_choose_frames_takes_an_even_presample_for_even_whatever_its_times():
    """Of a full pre-sample each frame stands for an equal part of the clip, though some came on screen early."""
    size = presample_size(3)
    late = torch.arange(size) - torch.rand(size, generator=torch.Generator().manual_seed(0)) * 0.9
    frames = Frames(torch.arange(size, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2), late, "x.mp4")
    chosen = choose_frames(frames, looks([0.5] * size), 3)
    assert chosen.pixels[:, 0, 0, 0].tolist() == [10, 31, 52]
    assert torch.equal(chosen.pts_seconds, late[[10, 31, 52]].double())
    assert (chosen.source, chosen.warnings) == ("x.mp4", ())
