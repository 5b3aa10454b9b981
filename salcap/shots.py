"""Where a video changes from one shot to the next, by our own differences of small frames.

A library (PySceneDetect) would bring OpenCV and a second decoder, which knows neither `VideoLimits` nor the formats and
protocols that `salcap.video` keeps to; its detectors are differences of neighbouring frames as well.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from salcap.video_reader import DEFAULT_LIMITS, VideoLimits, stream_frames

SIZE = (18, 32)  # pixels to which frames are shrunk: motion is lost in them, another scene is not
CHANGE = 20.0  # of 255: mean difference of two frames, below which nothing is a cut
RATIO = 2.0  # a cut changes so many times as much as any frame near it does: motion goes on, a flash comes back
NEAR_FRAMES, NEAR_SECONDS = 6, 2.0  # on either side


def find_cuts(
    path: str, start_seconds: float, end_seconds: float, *, limits: VideoLimits = DEFAULT_LIMITS
) -> list[float]:
    """Times from ``start_seconds`` up to ``end_seconds`` at which the first frame of another shot comes on screen.

    All frames are decoded, one in memory at a time, those just before and after the part too: the parts of a video
    have the cuts of the whole. Dissolves and fades are no cuts.

    Raises:
        VideoDecodeError, ValueError: as `read_frames`.
    """
    times: list[float] = []
    changes: list[float] = []
    last: np.ndarray | None = None
    first = max(start_seconds - NEAR_SECONDS, 0.0)
    for seconds, picture in stream_frames(path, first, end_seconds + NEAR_SECONDS, size=SIZE, limits=limits):
        now = picture.astype(np.int16)
        if last is not None:
            times.append(seconds)
            changes.append(float(np.abs(now - last).mean()))
        last = now
    return [seconds for seconds in cut_times(times, changes) if start_seconds <= seconds < end_seconds]


def cut_times(times: Sequence[float], changes: Sequence[float]) -> list[float]:
    """Those of the rising ``times`` of frames at which one differs from the frame before it as only a cut makes it.

    Args:
        changes: mean absolute difference to the frame before, 0 to 255.
    """
    cuts = []
    for index, (seconds, change) in enumerate(zip(times, changes, strict=True)):
        if change < CHANGE:
            continue
        first = max(index - NEAR_FRAMES, bisect_left(times, seconds - NEAR_SECONDS))
        after = min(index + 1 + NEAR_FRAMES, bisect_right(times, seconds + NEAR_SECONDS))
        if change >= RATIO * max([*changes[first:index], *changes[index + 1 : after]], default=0.0):
            cuts.append(seconds)
    return cuts
