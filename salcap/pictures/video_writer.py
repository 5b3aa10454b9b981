"""Pictures written as an H.264 video that browsers play, each shown at its own time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MAX_SIDE = 16_384  # pixels: libx264's
_TIME_BASE = Fraction(1, 90_000)  # times are kept to 6 millionths of a second
_OPTIONS = {"crf": "20", "preset": "veryfast", "bf": "0"}  # without B-frames packets come in the order shown
_BT601, _LIMITED = 6, 1  # FFmpeg's AVCOL_SPC_SMPTE170M and AVCOL_RANGE_MPEG: what swscale makes of RGB


class VideoWriter:
    """A context that writes an mp4 file, holding no more than the encoder's few frames.

    Args:
        size: (height, width), both even.

    Raises:
        ValueError: a side that is too long.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        if max(size) > MAX_SIDE:
            raise ValueError(f"an mp4 has at most {MAX_SIDE} pixels a side, got {size[1]}x{size[0]}; a .png has any")
        # brought to the front at the end, the index lets a page play before all is loaded
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream("libx264", rate=30, options=_OPTIONS)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        codec = self._stream.codec_context
        codec.time_base = self._stream.time_base = _TIME_BASE
        codec.colorspace, codec.color_range = _BT601, _LIMITED
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def write(self, picture: np.ndarray, seconds: float) -> None:
        """Show an (H, W, 3) uint8 RGB picture from ``seconds`` on, later than the one before."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.time_base = _TIME_BASE
        frame.pts = self._last = max(round(seconds / _TIME_BASE), self._last + 1)
        self._container.mux(self._stream.encode(frame))

    def finish(self, seconds: float) -> None:
        """Show the last picture until ``seconds``."""
        for packet in self._stream.encode(None):
            if packet.pts == self._last:
                packet.duration = max(round(seconds / _TIME_BASE) - self._last, 1)
            self._container.mux(packet)
