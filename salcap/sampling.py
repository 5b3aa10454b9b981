"""Which frames of a clip the captioner gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from salcap.frames import Frames
from salcap.timeline import spread_indices
from salcap.video_info import shortage

FRAME_CHOICES = ("uniform", "saliency")
PRESAMPLE_FRAMES = 64  # about as many frames are looked at for a choice by saliency
SPACING = 0.1  # what it costs to be one even interval away, beside 1 for a gaze that is wholly elsewhere
STILL = 0.01  # share of the gaze: where no two maps differ by more, it is noise of codecs and rounding
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
    """Indices of the frames that best stand for the others, by where people look and by time.

    Every frame that is passed over costs its weight times its distance to the nearer of the chosen frames before and
    after it; dynamic programming finds the cheapest choice. The distance is the total variation between the two maps
    (0 to 1) plus ``SPACING`` for each interval of an even choice between them. The weight is the share of the clip
    that the frame is on screen, plus how far the gaze moved since the frame before, as a share of all moves (of one
    whole gaze, where all of them are less). So frames go where the gaze moves, and no stretch is left out: between two
    chosen frames, those passed over fill less than 2 / num_frames of the time, before the first and after the last
    less than 1 / num_frames. Where no map differs from another it is the choice of `uniform_indices`.

    Args:
        log_density: (T, h, w), exp sums to 1 over each frame.
        pts_seconds, span: as for `uniform_indices`.

    Returns:
        (min(T, num_frames),) int64, strictly increasing; of equally cheap choices the first.
    """
    density = log_density.detach().double().exp().flatten(1).cpu()
    apart = torch.cdist(density, density, p=1).numpy() / 2
    if len(pts_seconds) <= num_frames or apart.max() <= STILL:
        return uniform_indices(pts_seconds, num_frames, span)
    start, end = span or _span(pts_seconds)
    shown = np.diff([start, *pts_seconds[1:].tolist(), end]).clip(0.0)
    shown = shown / shown.sum() if shown.any() else np.full(len(shown), 1 / len(shown))
    edges = np.concatenate([[0.0], shown.cumsum()])
    middles = (edges[:-1] + edges[1:]) / 2
    moves = np.append(0.0, apart.diagonal(1))
    weight = shown + moves / max(moves.sum(), 1.0)
    distance = apart + SPACING * num_frames * np.abs(middles[:, None] - middles)
    cost = weight[:, None] * distance  # of frame t where frame i stands for it
    # between[i, j]: of the frames passed over if j is chosen next after i
    between = np.stack([np.triu(np.minimum(row[:, None], cost), 1)[i + 1 :].sum(0) for i, row in enumerate(cost.T)])
    allowed = np.triu(edges[:-1] - edges[1:, None] < 2 / num_frames, 1)
    between = np.where(allowed, between, np.inf)
    best = np.where(edges[:-1] < 1 / num_frames, np.triu(cost, 1).sum(0), np.inf)  # up to i, chosen last
    rest = np.where(1 - edges[1:] < 1 / num_frames, np.tril(cost, -1).sum(0), np.inf)
    steps = []
    for _ in range(num_frames - 1):
        paths = best[:, None] + between
        steps.append(paths.argmin(0))
        best = paths.min(0)
    chosen = [int((best + rest).argmin())]
    for step in reversed(steps):
        chosen.append(int(step[chosen[-1]]))
    return torch.tensor(chosen[::-1])


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
