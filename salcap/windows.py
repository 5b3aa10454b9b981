"""A long video cut into windows, each to be captioned by itself: of equal length, or from one cut to the next.

Windows are found on the way: those of the first minute are there before the second one has been looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from salcap.manifest import Item
from salcap.shots import find_cuts
from salcap.video_open import VideoPath
from salcap.video_probe import probe
from salcap.video_reader import DEFAULT_LIMITS, VideoLimits

SHOTS = "shots"
MIN_SHOT_SECONDS = 1.0  # a shorter shot is part of the one before it, at the end of the video too
MIN_REST = 0.1  # of a window: what is left at the end and shorter is part of the last one
PART_SECONDS = 60.0  # searched for cuts by one call, which a time limit is for

Windows = float | str  # seconds, or SHOTS
Call = Callable[..., Any]  # call(function, *args): what the function returns, in whatever process it ran


@dataclass(frozen=True)
class Window(Item):
    """A part of an item, with a record of its own; its id is the item's with its number, ``talk.mp4#3``.

    Attributes:
        video: the item's id.
        number: counted from 1.
        is_last: of the item.
        error: why no more windows were found; this one then stands for the rest, and fails with it.
    """

    video: str = ""
    number: int = 1
    is_last: bool = True
    error: Exception | None = None

    @property
    def labels(self) -> dict[str, Any]:
        return {"video": self.video, "window": self.number, "is_last_window": self.is_last}


def check_windows(windows: Any) -> Windows:
    """Raises a ValueError unless it is a number of seconds above 0, or "shots"."""
    if windows == SHOTS:
        return SHOTS
    try:
        seconds = float(windows)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise ValueError(f"windows must be a number of seconds above 0, or {SHOTS!r}, got {windows!r}")
    return seconds


def cut_windows(
    path: VideoPath,
    windows: Windows,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    call: Call = lambda function, *args: function(*args),
) -> Iterator[tuple[float | None, float | None]]:
    """Start and end of each window of a clip, one after another without gaps; together they are the clip.

    Windows of equal length are as long as asked for but the last one, which may be shorter. Shots begin with the frame
    that `find_cuts` names, and last `MIN_SHOT_SECONDS` or longer.

    Args:
        path: as for `salcap.video.read_frames`.
        windows: seconds, or "shots".
        start_seconds, end_seconds: of the clip, as for `read_frames`; they are those of its first and last window.

    Raises:
        VideoDecodeError: as `read_frames`.
    """
    windows = check_windows(windows)
    pictures, end = call(picture_seconds, path)
    first = max(start_seconds or 0.0, pictures)  # sound may start earlier
    end = end if end_seconds is None else min(end, end_seconds)
    start = start_seconds if first == (start_seconds or 0.0) else first
    for boundary in _shot_starts(path, first, end, call) if windows == SHOTS else _every(float(windows), first, end):
        yield start, boundary
        start = boundary
    yield start, end_seconds


def _every(seconds: float, first: float, end: float) -> Iterator[float]:
    for number in count(1):
        if end - (first + number * seconds) < MIN_REST * seconds:
            return
        yield first + number * seconds


def _shot_starts(path: VideoPath, first: float, end: float, call: Call) -> Iterator[float]:
    last = first
    for number in range(math.ceil((end - first) / PART_SECONDS)):
        begin = first + number * PART_SECONDS
        for cut in call(find_cuts, path, begin, min(begin + PART_SECONDS, end)):
            if cut - last >= MIN_SHOT_SECONDS and end - cut >= MIN_SHOT_SECONDS:
                yield cut
                last = cut


def picture_seconds(path: VideoPath, *, limits: VideoLimits = DEFAULT_LIMITS) -> tuple[float, float]:
    """When the first frame of a video is shown, and when its last one ends."""
    info = probe(path, limits)
    return info.first_frame_seconds, info.duration_seconds


def item_windows(item: Item, windows: Windows, call: Call) -> Iterator[Window]:
    """The windows of an item; where it cannot be cut (further), the last one says why."""
    number, start = 1, item.start_seconds

    def window(end: float | None, error: Exception | None = None) -> Window:
        is_last = end == item.end_seconds
        return Window(item.path, f"{item.id}#{number}", start, end, item.id, number, is_last, error)

    try:
        for _, end in cut_windows(item.path, windows, item.start_seconds, item.end_seconds, call):
            yield window(end)
            number, start = number + 1, end
    except Exception as error:  # concerns this item only
        yield window(item.end_seconds, error)
