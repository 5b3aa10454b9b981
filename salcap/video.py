"""Video files in, `Frames` out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from salcap.frames import Frames
from salcap.video_info import Pictures, VideoDecodeError, VideoInfo, VideoLimits
from salcap.video_open import VideoPath
from salcap.video_probe import probe
from salcap.video_reader import DEFAULT_LIMITS, read_pictures, stream_frames

__all__ = [
    "DEFAULT_LIMITS",
    "VideoDecodeError",
    "VideoInfo",
    "VideoLimits",
    "probe",
    "read_frames",
    "stream_frames",
    "to_frames",
]


def read_frames(
    path: VideoPath,
    num_frames: int = 8,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    *,
    at_seconds: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    shortest_side: int | None = None,
    exact: bool = False,
    limits: VideoLimits = DEFAULT_LIMITS,
) -> Frames:
    """Read frames spread evenly in time over a clip, with the times at which they are really shown.

    The clip is cut into ``num_frames`` equal intervals, and of each the frame on screen at its middle is taken. No
    frame comes twice: one that stays on screen for several middles is joined by its neighbours, and a clip of fewer
    frames gives all it has, with a warning. The work grows with ``num_frames``, not with the length of the video: the
    reader seeks to the keyframe before each middle, or decodes on where two middles lie in one group of pictures.
    Only a container without index or times is read from its start.

    Args:
        path: a local file, a binary file object that can be read and can seek (also one opened for writing as well,
            which is only read), or a file's bytes.
        num_frames: at least 1.
        start_seconds: start of the clip, counted from the start of the file, sound included; None: the first picture.
        end_seconds: end of the clip, exclusive; None, or with a warning a later time: the end of the video. A frame
            that came on screen before ``start_seconds`` and is still there belongs to the clip, with its earlier time.
        at_seconds: rising times at which to take the frames on screen instead, none moved; overrides ``num_frames``.
        size: (height, width) in pixels to which frames are stretched, up or down.
        shortest_side: pixels to which the shorter side is scaled down, aspect kept; smaller frames stay as they are.
        exact: never move a frame. Otherwise a middle that costs more than 48 frames of decoding (never so in short
            clips) gives way to a keyframe, if one lies within a quarter of an interval.
        limits: what a file may cost.

    Returns:
        `Frames`: upright sRGB with square pixels, alpha dropped; ``warnings`` tells of damage, truncation and missing
        frames. What the container or the codec crops is cut off. Where stored pixels are not square, the height is kept
        and the width is scaled. PQ and HLG are tone-mapped, and BT.2020 and Display P3 are converted, see
        `salcap.video_colour.to_srgb`. HD video that does not state its colours is read as BT.709.

    Raises:
        ValueError: arguments out of range; a clip that starts after the end of the video, or ends before it starts.
        VideoDecodeError: no frame: missing, not a regular file, not a video, damaged, beyond ``limits``, a URL.
    """
    return to_frames(
        read_pictures(
            path,
            num_frames,
            start_seconds,
            end_seconds,
            at_seconds=at_seconds,
            size=size,
            shortest_side=shortest_side,
            exact=exact,
            limits=limits,
        )
    )


def to_frames(pictures: Pictures) -> Frames:
    """The pictures as tensors."""
    return Frames(
        pixels=torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2).contiguous(),
        pts_seconds=torch.tensor(pictures.pts_seconds, dtype=torch.float64),
        source=pictures.source,
        warnings=pictures.warnings,
        clip_seconds=pictures.clip_seconds,
    )
