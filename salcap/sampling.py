"""Which frames of a clip the captioner gets."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from salcap.frames import Frames, shortage
from salcap.timeline import spread_indices
from salcap.weighting.apportion import bounded_shares

FRAME_CHOICES = ("uniform", "saliency")
PRESAMPLE_FRAMES = 64  # about as many frames are looked at for a choice by saliency
STILL = 0.01  # share of the gaze: a smaller move from one frame to the next is noise, of codecs and rounding
_ROUNDING = 1e-9  # seconds


Span = tuple[float, float]  # start and end of a clip in seconds


def uniform_indices(pts_seconds: Tensor, num_frames: int, span: Span | None = None) -> Tensor:
    """Indices of the frames on screen at the centres of ``num_frames`` equal parts of the time they span.

    Args:
        pts_seconds: (T,) non-decreasing.
        span: of the clip; None: from the first frame on, the last one being shown for about as long as the others.

    Returns:
        (min(T, num_frames),) int64, strictly increasing.
    """
    total = len(pts_seconds)
    if total <= num_frames:
        return torch.arange(total)
    start, end = span or _span(pts_seconds)
    centres = start + (end - start) * (torch.arange(num_frames, dtype=torch.float64) + 0.5) / num_frames
    return torch.from_numpy(spread_indices(pts_seconds.numpy(), (centres + _ROUNDING).numpy()))


def saliency_indices(log_density: Tensor, pts_seconds: Tensor, num_frames: int, span: Span | None = None) -> Tensor:
    """Indices of the frames to look at: more where the gaze moves, but no stretch of the clip left out.

    Systematic sampling, as the "stratified" policy does it among patches. A frame weighs the share of the clip that it
    is on screen, plus how far the gaze moved since the frame before: the total variation between the two maps, as a
    share of all moves of the clip (of one whole gaze, where all of them are less). The slots are shared out in
    proportion, at most one a frame, and laid end to end; the frames at the middles of the slots are chosen.

    So moves get half of the slots at most, and coverage is at worst that of half as many frames: between two chosen
    frames that follow each other, frames that were passed over fill less than 2 / num_frames of the time, before the
    first and after the last less than 1 / num_frames. Where no map moves it is the choice of `uniform_indices`.

    Args:
        log_density: (T, h, w), exp sums to 1 over each frame.
        pts_seconds, span: as for `uniform_indices`.

    Returns:
        (min(T, num_frames),) int64, strictly increasing.
    """
    density = log_density.detach().double().exp().flatten(1).cpu()
    moves = density.diff(dim=0).abs().sum(-1) / 2
    moves = moves.where(moves > STILL, 0.0)
    if len(pts_seconds) <= num_frames or not moves.any():
        return uniform_indices(pts_seconds, num_frames, span)
    start, end = span or _span(pts_seconds)
    edges = torch.cat([torch.tensor([start]), pts_seconds[1:], torch.tensor([end])]).double()
    seconds = edges.diff().clamp_min(0.0)
    shown = seconds / seconds.sum() if seconds.any() else torch.full_like(seconds, 1 / len(seconds))
    weights = shown + torch.nn.functional.pad(moves, (1, 0)) / moves.sum().clamp_min(1.0)
    slots = bounded_shares(weights, num_frames, _ROUNDING, 1.0)
    middles = torch.arange(num_frames, dtype=torch.float64) + 0.5
    return torch.from_numpy(spread_indices((slots.cumsum(0) - slots).numpy(), middles.numpy()))


def _span(pts_seconds: Tensor) -> Span:
    first, last = float(pts_seconds[0]), float(pts_seconds[-1])
    return first, last + (last - first) / max(len(pts_seconds) - 1, 1)


def presample_size(num_frames: int) -> int:
    """How many frames, evenly spread, to choose ``num_frames`` from by saliency: about 64, three for each at least.

    An odd multiple, so that the frames of an even choice are among them.
    """
    return num_frames * max(3, (PRESAMPLE_FRAMES // num_frames - 1) | 1)


def choose_frames(presample: Frames, log_density: Tensor, num_frames: int, span: Span | None = None) -> Frames:
    """The frames of a clip that a captioner gets, by `saliency_indices`.

    Args:
        presample: `presample_size` frames, or all that the clip has.
        log_density: (T, h, w), their maps.
        span: as for `uniform_indices`.
    """
    asked, given = presample_size(num_frames), len(presample)
    times = presample.pts_seconds
    if given == asked:  # each stands for an equal part of the clip, whatever the time at which it came on screen
        times, span = torch.arange(given, dtype=torch.float64), None
    warnings = tuple(warning for warning in presample.warnings if warning != shortage(asked, given))
    if given < num_frames:
        warnings += (shortage(num_frames, given),)
    return replace(presample.take(saliency_indices(log_density, times, num_frames, span)), warnings=warnings)


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
        warnings = (*warnings, shortage(num_frames, len(kept)))
    kept = kept[uniform_indices(times[kept], num_frames)]
    first, last = frames.clip_seconds or (float(times[0]), float(times[-1]))
    clip = (
        first if start_seconds is None else max(first, start_seconds),
        last if end_seconds is None else min(last, end_seconds),
    )
    return replace(frames.take(kept), clip_seconds=clip, warnings=warnings)
