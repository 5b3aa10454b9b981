"""What is known of a video file, and the error of one that gives no frame."""

from __future__ import annotations

from dataclasses import dataclass


class VideoDecodeError(RuntimeError):
    """A file that gives no frame; the message names it and repeats the decoder's own words.

    Attributes:
        path: the file, as the caller named it.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)
        self.path, self.message = path, message

    def __str__(self) -> str:
        return f"cannot read video {self.path}: {self.message}"


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, measured where its header could lie.

    Attributes:
        duration_seconds: from the start of the stream to the end of its last frame.
        width, height: in pixels, of a frame as `read_frames` returns it (upright, sample aspect not applied).
        fps: frames a second on average; None where the container does not say.
        rotation: degrees, clockwise, by which stored frames are turned to be upright: 0, 90, 180 or 270.
        num_frames_stated: what the container claims; None where it claims nothing.
        sample_aspect_ratio: width of a stored pixel over its height.
        start_pts_seconds: start of the stream on the file's own clock; add it to get the times other tools print.
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
    start_pts_seconds: float
    warnings: tuple[str, ...]
