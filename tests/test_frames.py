"""Frames: the one way pixels travel, checked when made."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from salcap.frames import Frames


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.arange(3 * 3 * 4 * 5, dtype=torch.uint8).reshape(3, 3, 4, 5)


@pytest.mark.parametrize(
    "times",
    [[0.0, 0.5, 0.5], (0, 1, 2), np.array([-1.0, 0.0, 7.25]), torch.tensor([0.0, 0.04, 0.08])],
    ids=["list with equal times", "integers", "numpy before zero", "float32 tensor"],
)
def test_frames_take_any_times(pixels: torch.Tensor, times) -> None:
    frames = Frames(pixels, times, "a.mp4", ("cut short",))
    assert len(frames) == 3
    assert torch.equal(frames.pixels, pixels)
    assert frames.pts_seconds.dtype == torch.float64
    assert frames.pts_seconds.tolist() == pytest.approx([float(t) for t in times])
    assert (frames.source, frames.warnings) == ("a.mp4", ("cut short",))


def test_repr_shows_shape_and_times_but_no_pixels(pixels: torch.Tensor) -> None:
    expected = "Frames(pixels=(3, 3, 4, 5) uint8, pts_seconds=[0.000, 0.333, 1.000], source='a.mp4')"
    assert repr(Frames(pixels, [0, 1 / 3, 1], "a.mp4")) == expected


def test_frames_are_frozen(pixels: torch.Tensor) -> None:
    frames = Frames(pixels, [0, 1, 2])
    with pytest.raises(FrozenInstanceError):
        frames.source = "b.mp4"  # type: ignore[misc]


@pytest.mark.parametrize(
    "pixels, message",
    [
        (torch.zeros(3, 4, 5, dtype=torch.uint8), r"must be \(T, 3, H, W\) uint8, got \(3, 4, 5\) torch.uint8"),
        (torch.zeros(2, 4, 5, 3, dtype=torch.uint8), r"got \(2, 4, 5, 3\)"),
        (torch.zeros(2, 3, 4, 5), "got .* torch.float32"),
        (torch.zeros(0, 3, 4, 5, dtype=torch.uint8), "at least one frame and one pixel"),
        (torch.zeros(2, 3, 4, 0, dtype=torch.uint8), "at least one frame and one pixel"),
        (np.zeros((2, 3, 4, 5), np.uint8), "must be a torch tensor, got ndarray"),
    ],
)
def test_pixels_fail(pixels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frames(pixels, [0.0] * len(pixels))


@pytest.mark.parametrize(
    "times, message",
    [
        ([0.0, 1.0], r"pts_seconds must be \(3,\) for 3 frames, got \(2,\)"),
        ([[0.0], [1.0], [2.0]], r"got \(3, 1\)"),
        (0.0, r"got \(\)"),
        ([0.0, 2.0, 1.0], r"finite and non-decreasing, got \[0.0, 2.0, 1.0\]"),
        ([0.0, float("nan"), 1.0], "finite"),
        ([0.0, 1.0, float("inf")], "finite"),
    ],
)
def test_times_fail(pixels: torch.Tensor, times, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frames(pixels, times)
