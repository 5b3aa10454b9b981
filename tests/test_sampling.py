"""Choice of frames, evenly by time and by saliency."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from salcap.frames import Frames
from salcap.sampling import (
    PRESAMPLE_FRAMES,
    SPACING,
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


def cost_of(choice: tuple[int, ...], maps: torch.Tensor, times: list[float]) -> tuple[float, float]:
    """What a choice costs by the words of `saliency_indices`, and by how much it keeps to the bounds."""
    total, number = len(maps), len(choice)
    seconds = [b - a for a, b in pairwise(times)]
    seconds.append(sum(seconds) / len(seconds))
    share = [s / sum(seconds) for s in seconds]
    middle = [sum(share[:t]) + share[t] / 2 for t in range(total)]
    moves = [0.0, *(float((b - a).abs().sum()) / 2 for a, b in pairwise(maps))]
    cost = 0.0
    for t in range(total):
        near = [max((c for c in choice if c <= t), default=None), min((c for c in choice if c >= t), default=None)]
        cost += (share[t] + moves[t] / max(sum(moves), 1.0)) * min(
            float((maps[t] - maps[c]).abs().sum()) / 2 + SPACING * number * abs(middle[t] - middle[c])
            for c in near
            if c is not None
        )
    ends = (-1, *choice, total)
    passed = [sum(share[a + 1 : b]) for a, b in pairwise(ends)]
    return cost, min(*(2 / number - p for p in passed[1:-1]), 1 / number - max(passed[0], passed[-1]), 1.0)


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
def test_saliency_indices_are_the_cheapest_of_all_choices(seed, num_frames):
    log_density, times = wander(9, seed)
    assert not torch.equal(log_density[0], log_density[-1])
    choices = combinations(range(9), num_frames)
    costs = {choice: cost_of(choice, log_density.exp(), times.tolist()) for choice in choices}
    chosen = tuple(saliency_indices(log_density, times, num_frames).tolist())
    cheapest = min(cost for cost, slack in costs.values() if slack > 1e-9)  # some are on the bound, up to rounding
    cost, slack = costs[chosen]
    assert cost <= cheapest + 1e-12
    assert slack > -1e-9


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
    assert eventful >= num_frames // 2
    assert eventful > int(((uniform_indices(torch.arange(60) / 5, num_frames) - 37.5).abs() <= 2.5).sum())
    other = chosen[(chosen < 35) | (chosen > 40)]
    assert int(other.min()) <= 60 // num_frames
    assert int(other.max()) > 40


def test_a_brief_shot_is_seen_that_an_even_choice_misses():
    places = [0.1] * 40 + [0.8] * 3 + [0.1] * 17
    even = uniform_indices(torch.arange(60), 6)
    assert not bool(((even >= 40) & (even < 43)).any())
    chosen = saliency_indices(looks(places), torch.arange(60), 6)
    assert int(((chosen >= 40) & (chosen < 43)).sum()) == 1
    gaps = torch.cat([torch.tensor([0]), chosen, torch.tensor([60])]).diff()
    assert int(gaps.max()) <= 15  # the others cover the rest


def test_a_small_move_draws_fewer_frames_than_a_great_one():
    times = torch.arange(60)
    near, far = ([0.5] * 30 + [0.5 + step * i for i in range(10)] + [0.5] * 20 for step in (0.003, 0.05))
    counts = [int(((c >= 30) & (c < 40)).sum()) for c in (saliency_indices(looks(p), times, 12) for p in (near, far))]
    assert counts[0] <= 3
    assert counts[1] >= 5


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
