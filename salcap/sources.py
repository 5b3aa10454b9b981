"""A clip as it is handed over (a path, a file, its bytes, frames), and how its frames are read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike, fsdecode
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from salcap.decoded import is_decoder, read_decoded
from salcap.frames import Frames
from salcap.sampling import take_frames
from salcap.video import read_frames
from salcap.video_open import name_of

Video: TypeAlias = (
    str | PathLike[str] | BinaryIO | bytes | bytearray | memoryview | Frames | np.ndarray | Tensor | Mapping[str, Any]
)


@dataclass(frozen=True, eq=False)
class ClipSource:
    """A clip that is still to be read.

    Attributes:
        name: its video's, for the record.
        read: ``read(count, **options)``, as `read_frames` with the video and the times of the clip filled in.
        start_seconds, end_seconds: as they were asked for; None: from its start, to its end.
        from_file: it is scaled while decoding, and can be read again at other sizes.
    """

    name: str | None
    read: Callable[..., Frames]
    start_seconds: float | None = None
    end_seconds: float | None = None
    from_file: bool = True


def is_video(value: Any) -> bool:
    """Whether a value is one video, rather than several (as an array of five dimensions is) or none."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim != 5
    if isinstance(value, Mapping):
        return bool(value) and value.keys() <= {"path", "bytes"}
    kinds = str | PathLike | bytes | bytearray | memoryview | Frames | ClipSource
    return isinstance(value, kinds) or hasattr(value, "read") or is_decoder(value) or hasattr(value, "_hf_encoded")


def open_column(video: Any) -> tuple[Any, str | None]:
    """A video of a ``Video`` column of ``datasets`` as its file or bytes, and its name.

    Such a video is ``{"path": ..., "bytes": ...}``, or a decoder that has these as ``_hf_encoded``: salcap reads the
    file itself where it can. Any other video is given back as it is.
    """
    held = video if isinstance(video, Mapping) else getattr(video, "_hf_encoded", None)
    if not isinstance(held, Mapping):
        return video, None
    path, data = held.get("path"), held.get("bytes")
    if data is not None:
        return data, path
    if path is not None and (held is video or os.path.isfile(path)):
        return path, path
    return video, path


def clip_source(video: Any, start_seconds: float | None = None, end_seconds: float | None = None) -> ClipSource:
    """A clip of a video, not read yet; a value that is not a video fails when it is read.

    Args:
        video: a path, a binary file that can seek, a file's bytes, `Frames`, uint8 RGB frames (T, H, W, 3) taken to be
            one second apart, or what a ``Video`` column of ``datasets`` holds; a `ClipSource` is given back.
        start_seconds, end_seconds: the part of it; None: from its start, to its end.

    Raises:
        ValueError: a clip that starts before 0 s, or ends before it starts.
    """
    start, end = start_seconds, end_seconds
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        raise ValueError(f"a clip must start at 0 s or later and end after its start, got {start} to {end} s")
    if isinstance(video, ClipSource):
        return video
    video, name = open_column(video) if is_video(video) else (video, None)
    if isinstance(video, bytes | bytearray | memoryview):
        stream: Any = io.BytesIO(video)
        if name is not None:
            stream.name = name
        video = stream
    if isinstance(video, str | PathLike):
        return ClipSource(
            fsdecode(video), partial(read_frames, video, start_seconds=start, end_seconds=end), start, end
        )
    if hasattr(video, "read"):
        read = partial(read_frames, cast(BinaryIO, video), start_seconds=start, end_seconds=end)
        return ClipSource(name_of(video), read, start, end)

    def take(count: int, **_: Any) -> Frames:
        if is_decoder(video):
            return read_decoded(video, count, start, end)
        return take_frames(video if isinstance(video, Frames) else _frames_of(video), count, start, end)

    return ClipSource(name, take, start, end, from_file=False)


def _frames_of(array: np.ndarray | Tensor) -> Frames:
    if not isinstance(array, np.ndarray | Tensor):
        given = repr(array) if isinstance(array, Mapping) else type(array).__name__
        raise TypeError(
            "a video is a path, an open binary file, a file's bytes, salcap.Frames, uint8 frames (T, H, W, 3), or what"
            f" a Video column of datasets holds, got {given}"
        )
    # a copy where torch would warn of memory that cannot be written
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if tensor.ndim != 4 or tensor.shape[-1] != 3 or tensor.dtype != torch.uint8:
        raise ValueError(f"frames must be (T, H, W, 3) uint8 RGB, got {tuple(tensor.shape)} {tensor.dtype}")
    return Frames(tensor.permute(0, 3, 1, 2), torch.arange(len(tensor), dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class ReadClip:
    """A video that was read, on its way to the captioner.

    Attributes:
        frames: what the captioner sees: the frames, or two views of each.
        log_density: (T, h, w), one for each of ``frames``; None where the mode is "none".
        boxes: (T / 2, 4) of the crops, see `zoom_boxes`; None without mode "zoom".
    """

    index: int
    frames: Frames
    log_density: Tensor | None
    timings: dict[str, float]
    boxes: Tensor | None = None
