"""What is known of a video file, which files may be one, and the error of one that gives no frame."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

# Containers that are read. Not among them: playlists (hls, concat, dash) read other files or wait for ever, tty draws
# any text, image2 takes patterns for names. Sound is, to say of it that it has no video stream.
FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,gif,apng,nut,mxf,rm,wtv,dv,ivf,obu,av1,h264,"
    "hevc,vvc,m4v,h263,vc1,mjpeg,yuv4mpegpipe,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,gif_pipe,jpegxl_pipe,"
    "jpegxl_anim,mp3,aac,ac3,flac,wav"
)


@dataclass(frozen=True)
class VideoLimits:
    """What one file may cost before it is given up with a `VideoDecodeError`: headers and compressed data can lie.

    Attributes:
        max_pixels: of a decoded frame.
        max_bytes: of all frames that are handed out together.
        max_seconds: length of the video.
        max_decoded_frames: frames decoded to find those asked for.
    """

    max_pixels: int = 8192 * 8192
    max_bytes: int = 2**31
    max_seconds: float = 30 * 86400.0
    max_decoded_frames: int = 1_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


class VideoDecodeError(RuntimeError):
    """A file that gives no frame; the message names it and repeats the decoder's own words.

    Attributes:
        path: the file, as the caller named it.
        message: what is wrong with it.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)
        self.path, self.message = path, message

    def __str__(self) -> str:
        return f"cannot read video {self.path}: {self.message}"


@dataclass(frozen=True, eq=False)
class Pictures:
    """As `Frames`, as arrays.

    Attributes:
        pixels: (T, H, W, 3) uint8 RGB.
        pts_seconds, source, warnings, clip_seconds: see `Frames`.
    """

    pixels: np.ndarray
    pts_seconds: list[float]
    source: str | None
    warnings: tuple[str, ...]
    clip_seconds: tuple[float, float] | None


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, measured where its header could lie.

    Attributes:
        duration_seconds: from second 0, the start of the file, to the end of the last frame.
        width, height: in pixels, of a frame as `read_frames` returns it (cropped, upright, with square pixels).
        fps: frames a second on average; None where the container does not say.
        rotation: degrees, clockwise, by which stored frames are turned to be upright: 0, 90, 180 or 270.
        num_frames_stated: what the container claims; None where it claims nothing.
        sample_aspect_ratio: width of a stored pixel over its height, as the file states it; already applied to
            ``width``.
        first_frame_seconds: when the first frame is shown; later than 0 if the sound starts before the picture.
        start_pts_seconds: second 0 on the file's own clock. Add it to get the times stored in the file.
        warnings: as in `Frames`.
    """

    path: str
    duration_seconds: float
    width: int
    height: int
    fps: float | None
    codec: str
    container: str
    pixel_format: str
    rotation: int
    num_frames_stated: int | None
    sample_aspect_ratio: float
    first_frame_seconds: float
    start_pts_seconds: float
    warnings: tuple[str, ...]


@contextmanager
def opened(path: Any) -> Iterator[Any]:
    """Open a file to read its bytes; a file object is left at the place where it was."""
    if hasattr(path, "read"):
        place = path.tell()
        try:
            yield path
        finally:
            path.seek(place)
    else:
        with open(local_file(path), "rb") as file:
            yield file


def local_file(path: str | bytes | os.PathLike[str]) -> str:
    """The absolute path of a file, if it is a regular one on this machine.

    Raises:
        OSError: there is no such file, or it is a directory.
        ValueError: it is a URL, a pipe, a device or a socket.
    """
    name = os.fsdecode(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        raise ValueError("only local files are read, not URLs: download it first")
    mode = os.stat(name).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise ValueError("not a regular file")
    return os.path.abspath(name)


def shortage(asked: int, given: int) -> str:
    """The warning of a clip that has fewer frames than were asked for."""
    return f"asked for {asked} frames, the clip gave {given}"
