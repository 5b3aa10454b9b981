"""A video in, its saliency as a video or a contact sheet out; of a video of any length, few frames at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image

from salcap.config import check_choice
from salcap.frames import Frames
from salcap.outputs import check_output, whole_file
from salcap.pictures.contact_sheet import TILE_SIDE, ContactSheet
from salcap.pictures.painters import HeatPainter, Painter, PatchPainter, Size
from salcap.pictures.video_writer import VideoWriter
from salcap.saliency import SaliencyModel, create_saliency
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.video import DEFAULT_LIMITS, VideoDecodeError, VideoInfo, VideoLimits, probe, read_frames, stream_frames
from salcap.video_open import VideoPath, plain_file

SHOWS = ("overlay", "heat", "patches")
SUFFIXES = (".mp4", ".png")

_VIDEO_SIDE = 720  # pixels of a written video's shorter side, at most

Timed = tuple[float, np.ndarray]  # a picture after its time
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Drawing:
    """What was drawn.

    Attributes:
        num_frames: frames of the file.
        start_seconds, end_seconds: times in the video of the first of them, and at which the last one goes.
        warnings: what could not be done as asked, see `Frames`.
    """

    path: Path
    num_frames: int
    start_seconds: float
    end_seconds: float
    warnings: tuple[str, ...]


def draw_saliency(
    video: VideoPath,
    output: str | os.PathLike[str],
    saliency: str | SaliencyModel | SaliencyCaptioner = "uva_net",
    show: str = "overlay",
    *,
    num_frames: int | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    limits: VideoLimits = DEFAULT_LIMITS,
) -> Drawing:
    """Draw where people look in a video, or what a captioner keeps of it.

    Pictures are upright, their pixels square. Colours are those of one scale for all videos: how many times as much as
    the average spot of its frame a spot is looked at.

    Args:
        video: a path, a binary file that can seek, or a file's bytes.
        output: ``.mp4``: every frame at its own time, counted from the part's start; the shorter side is 720 pixels at
            most, both are even, there is no sound. ``.png``: a contact sheet of frames with their times in the video.
        saliency: a backbone, or with ``show`` "patches" a captioner that prunes.
        show: "overlay", the heat map over grey frames; "heat", the map alone; "patches", what the captioner keeps:
            merged patches are grey, dropped ones dark. On the sheet the frames are the captioner's clip; in a video
            each frame is shown as if it were among a clip's, of its neighbours.
        num_frames: of the contact sheet; None: 8, or as many as the captioner takes where that is fewer.
        start_seconds, end_seconds: the part of the video; None: from its start, to its end.
        progress: called with the seconds of video done since the last call, and those in all.

    Raises:
        ValueError: another suffix, an output that exists without ``overwrite`` or is the video, settings that do not
            fit.
        VideoDecodeError: the file gives no frame. Nothing is written then.
    """
    source: VideoPath = io.BytesIO(video) if isinstance(video, bytes) else plain_file(video)
    output = check_output(Path(output), SUFFIXES, 1, overwrite, _files(source))
    check_choice("show", show, SHOWS)
    is_sheet = output.suffix.lower() == ".png"
    if num_frames is not None and not is_sheet:
        raise ValueError(f"num_frames {num_frames} is for contact sheets (.png): {output.suffix} has every frame")
    painter = _painter(saliency, show)
    info = probe(source, limits)
    clip: dict[str, Any] = {"start_seconds": start_seconds, "end_seconds": end_seconds, "limits": limits}
    with whole_file(output) as partial:
        if is_sheet:
            frames = read_frames(source, painter.resolve_num_frames(num_frames), **painter.read_options, **clip)
            times = frames.pts_seconds.tolist()
            _sheet(painter, frames, info).image.save(partial, "PNG", optimize=True)
            drawn = len(times), times[0], frames.clip_seconds[1] if frames.clip_seconds else times[-1], frames.warnings
        else:
            warnings: list[str] = []
            span = _write_video(partial, painter, source, info, clip, warnings, progress)
            drawn = (*span, tuple(warnings))
    return Drawing(output, *drawn)


def _files(source: VideoPath) -> list[str | os.PathLike[str] | int]:
    """The file that is read, by its path or descriptor; none behind what is held in memory."""
    if isinstance(source, str | os.PathLike):
        return [source]
    try:
        return [cast(BinaryIO, source).fileno()]
    except (AttributeError, OSError):
        return []


def _painter(saliency: str | SaliencyModel | SaliencyCaptioner, show: str) -> Painter:
    if isinstance(saliency, str):
        saliency = create_saliency(saliency)
    if show == "patches":
        if not isinstance(saliency, SaliencyCaptioner):
            raise ValueError(f"show 'patches' needs a captioner, got a {type(saliency).__name__}")
        return PatchPainter(saliency)
    if not isinstance(saliency, SaliencyModel):
        raise ValueError(f"show {show!r} needs a saliency backbone, got a {type(saliency).__name__}")
    return HeatPainter(saliency, show == "overlay")


def picture_size(info: VideoInfo, most: int) -> Size:
    """(height, width) of a video's pictures, the shorter side ``most`` pixels at most."""
    share = min(1.0, most / min(info.height, info.width))
    return max(1, round(info.height * share)), max(1, round(info.width * share))


def _sheet(painter: Painter, frames: Frames, info: VideoInfo) -> ContactSheet:
    height, width = size = picture_size(info, TILE_SIDE)
    pictures = []
    for pixels, brush in zip(frames.pixels.permute(0, 2, 3, 1).numpy(), painter.look(frames, size), strict=True):
        tile = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BICUBIC)
        pictures.append(brush(np.asarray(tile)))
    title = "" if frames.source is None else f"{Path(frames.source).name}, "
    heading = f"{title}{info.duration_seconds:.2f} s. {painter.describe()}"
    sheet = ContactSheet(pictures, frames.pts_seconds.tolist(), heading)
    painter.add_legend(sheet)
    return sheet


def _write_video(
    path: Path,
    painter: Painter,
    source: VideoPath,
    info: VideoInfo,
    clip: dict[str, Any],
    warnings: list[str],
    progress: Progress | None,
) -> tuple[int, float, float]:
    """Returns the number of frames, the time of the first one, and when the last one goes."""
    height, width = picture_size(info, _VIDEO_SIDE)
    size = height + height % 2, width + width % 2  # yuv420p halves both
    first, last, count = None, 0.0, 0
    start, end = clip["start_seconds"] or 0.0, min(info.duration_seconds, clip["end_seconds"] or info.duration_seconds)
    known: list[Timed] = []
    with VideoWriter(path, size) as writer:
        for part in _parts(_stream(painter, source, info, size, clip, warnings), painter.part):
            seen = [*known, *((seconds, pixels) for seconds, _, pixels in part)]
            brushes = painter.look(_frames(seen, info.path), size)[len(known) :]
            for (seconds, picture, _), brush in zip(part, brushes, strict=True):
                if first is None:
                    first, last = seconds, seconds
                writer.write(brush(picture), max(seconds - start, 0.0))  # the first may have been there before
            known = seen[-painter.context :] if painter.context else []
            count += len(part)
            if progress is not None:
                progress(part[-1][0] - last, end - start)
            last = part[-1][0]
        if first is None:
            raise VideoDecodeError(info.path, "no frame of the clip could be decoded")
        writer.finish(end - start)
    return count, first, end


def _stream(
    painter: Painter, source: VideoPath, info: VideoInfo, size: Size, clip: dict[str, Any], warnings: list[str]
) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Each frame's time, its picture, and the pixels that the painter looks at."""
    seen_size = painter.seen_size((info.height, info.width))
    if seen_size is None:
        for seconds, picture in stream_frames(source, size=size, warnings=warnings, **clip):
            yield seconds, picture, picture
        return
    first, second = (_reopened(source, info.path) for _ in range(2))
    pictures = stream_frames(first, size=size, warnings=warnings, **clip)
    pixels = stream_frames(second, size=seen_size, **clip)
    for (seconds, picture), (_, seen) in zip(pictures, pixels, strict=True):
        yield seconds, picture, seen


def _reopened(source: VideoPath, name: str) -> VideoPath:
    """What two readers can read in turns: of a file object a view with a place of its own."""
    return cast(BinaryIO, _View(cast(BinaryIO, source), name)) if hasattr(source, "read") else source


class _View:
    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file, self._place = file, 0

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset, whence = offset + self._place, io.SEEK_SET
        self._place = self._file.seek(offset, whence)
        return self._place

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._place)
        found = self._file.read(size)
        self._place += len(found)
        return found


def _parts(frames: Iterator[Any], count: int) -> Iterator[list[Any]]:
    while part := list(islice(frames, count)):
        yield part


def _frames(timed: list[Timed], source: str) -> Frames:
    times = torch.tensor([seconds for seconds, _ in timed], dtype=torch.float64)
    return Frames(torch.from_numpy(np.stack([pixels for _, pixels in timed])).permute(0, 3, 1, 2), times, source)
