"""Frames out of a decoder that is open already, such as ``datasets`` makes of its ``Video`` column."""

from __future__ import annotations

from typing import Any

import torch

from salcap.frames import Frames
from salcap.video_info import shortage

_ROUNDING = 1e-9  # seconds


def is_decoder(value: Any) -> bool:
    """Whether a value has the interface of torchcodec's ``VideoDecoder``."""
    return hasattr(value, "get_frames_played_at") and hasattr(value, "metadata")


def read_decoded(
    decoder: Any, num_frames: int = 8, start_seconds: float | None = None, end_seconds: float | None = None
) -> Frames:
    """Take frames spread evenly in time over a clip, as `salcap.video.read_frames` does of a file.

    Args:
        decoder: with the interface of torchcodec's ``VideoDecoder``.
        num_frames: at least 1; a frame that is on screen at several of these times is taken once, with a warning.
        start_seconds, end_seconds: the part of it, counted from the first frame, as a decoder does not tell when the
            file starts; None: from its start, to its end.

    Raises:
        ValueError: a clip that starts after the end, or frames of another kind than uint8 RGB.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    metadata = decoder.metadata
    origin = metadata.begin_stream_seconds
    length = metadata.end_stream_seconds - origin
    start, end = start_seconds or 0.0, length if end_seconds is None else min(end_seconds, length)
    if start >= end:
        raise ValueError(f"the clip starts at {start:g} s, but the video ends after {length:.3f} s")
    centres = start + (end - start) * (torch.arange(num_frames, dtype=torch.float64) + 0.5) / num_frames
    batch = decoder.get_frames_played_at((origin + centres + _ROUNDING).tolist())
    first = torch.ones(num_frames, dtype=torch.bool)
    first[1:] = batch.pts_seconds.diff() > 0  # one that is still on screen does not come twice
    pixels = batch.data[first].cpu()
    if pixels.ndim == 4 and pixels.shape[1] != 3:
        pixels = pixels.permute(0, 3, 1, 2)  # a decoder may be told to give NHWC
    return Frames(
        pixels.contiguous(),
        batch.pts_seconds[first].double() - origin,
        source=getattr(metadata, "path", None),
        warnings=(shortage(num_frames, len(pixels)),) if len(pixels) < num_frames else (),
        clip_seconds=(start, end),
    )
