"""Which frames of a clip the captioner gets."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from salcap.frames import Frames
from salcap.timeline import spread_indices


def uniform_indices(pts_seconds: Tensor, num_frames: int) -> Tensor:
    """Indices of the frames on screen at the centres of ``num_frames`` equal parts of the time they span.

    Args:
        pts_seconds: (T,) non-decreasing.

    Returns:
        (min(T, num_frames),) int64, strictly increasing.
    """
    total = len(pts_seconds)
    if total <= num_frames:
        return torch.arange(total)
    # the last frame is shown for about as long as the others
    step = (pts_seconds[-1] - pts_seconds[0]) / (total - 1)
    span = pts_seconds[-1] - pts_seconds[0] + step
    centres = pts_seconds[0] + span * (torch.arange(num_frames, dtype=torch.float64) + 0.5) / num_frames
    return torch.from_numpy(spread_indices(pts_seconds.numpy(), centres.numpy()))


def take_frames(
    frames: Frames, num_frames: int, start_seconds: float | None = None, end_seconds: float | None = None
) -> Frames:
    """Cut frames in memory to a time window and to ``num_frames``, spread evenly over time.

    Raises:
        ValueError: no frame lies in the window, or fewer than one is asked for.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    times = frames.pts_seconds
    inside = torch.ones(len(times), dtype=torch.bool)
    if start_seconds is not None:
        inside &= times >= start_seconds
    if end_seconds is not None:
        inside &= times < end_seconds
    kept = inside.nonzero()[:, 0]
    if len(kept) == 0:
        raise ValueError(
            f"no frame between {start_seconds} and {end_seconds} s; the frames span {times[0]:.3f} to {times[-1]:.3f} s"
        )
    warnings = frames.warnings
    if len(kept) < num_frames:
        warnings = (*warnings, f"asked for {num_frames} frames, the clip gave {len(kept)}")
    kept = kept[uniform_indices(times[kept], num_frames)]
    first, last = frames.clip_seconds or (float(times[0]), float(times[-1]))
    clip = (
        first if start_seconds is None else max(first, start_seconds),
        last if end_seconds is None else min(last, end_seconds),
    )
    return replace(frames, pixels=frames.pixels[kept], pts_seconds=times[kept], clip_seconds=clip, warnings=warnings)
