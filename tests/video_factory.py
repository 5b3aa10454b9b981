"""Videos whose every frame says its own number, so that a test can tell which frame a reader really returned.

A frame is 2 rows of 8 big black or white cells: its number in binary, the most significant bit first. The cells survive
lossy compression, chroma subsampling, scaling and a palette.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np

from salcap.frames import Frames
from salcap.video_reader import _Video

ROOT = Path(__file__).resolve().parents[1]
ROWS, COLUMNS = 2, 8
TIME_BASE = Fraction(1, 12000)  # fits 24, 25 and 30 frames a second exactly


def draw_number(number: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB picture of ``number``."""
    bits = [(number >> bit) & 1 for bit in range(ROWS * COLUMNS - 1, -1, -1)]
    cells = np.array(bits, dtype=np.uint8).reshape(ROWS, COLUMNS) * 200 + 28
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(cells[np.ix_(rows, columns)][..., None], 3, axis=2)


def read_number(pixels: Any) -> int:
    """The number drawn into one (3, H, W) or (H, W, 3) picture."""
    picture = np.asarray(pixels, dtype=np.float32)
    picture = picture.mean(axis=0 if picture.shape[0] == 3 else 2)
    height, width = picture.shape
    bits = []
    for row in range(ROWS):
        for column in range(COLUMNS):  # the middle of the cell only: edges ring
            top, left = (row + 0.25) * height / ROWS, (column + 0.25) * width / COLUMNS
            bottom, right = (row + 0.75) * height / ROWS, (column + 0.75) * width / COLUMNS
            bits.append(int(picture[int(top) : int(bottom) + 1, int(left) : int(right) + 1].mean() > 128))
    return int("".join(map(str, bits)), 2)


def make_video(
    path: Path,
    num_frames: int = 48,
    *,
    codec: str = "libx264",
    format: str | None = None,
    size: tuple[int, int] = (96, 160),
    fps: int = 24,
    gop: int = 12,
    pix_fmt: str = "yuv420p",
    pts_seconds: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    mux_options: dict[str, str] | None = None,
    display_matrix: Sequence[int] | None = None,
    turn: int = 0,
    sample_aspect_ratio: Fraction | None = None,
    sound_seconds: float = 0.0,
    time_base: Fraction = TIME_BASE,
) -> Path:
    """Encode frames 0, 1, 2, ...: at ``fps``, or at ``pts_seconds`` where given.

    Args:
        size: (height, width) of a frame as it is stored.
        turn: quarter turns, counter-clockwise, by which the pictures are turned before they are stored.
        sound_seconds: length of a tone beside the pictures; 0 for none.
    """
    with av.open(str(path), "w", format=format, options=mux_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **(options or {})})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if gop:
            stream.gop_size = gop
            if codec == "libx264":
                stream.options = {"sc_threshold": "0", "preset": "veryfast", **stream.options}
        if pts_seconds is not None:
            stream.codec_context.time_base = time_base
        if sample_aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        sound = None
        if sound_seconds:
            sound = container.add_stream("libopus" if str(path).endswith(("webm", "mkv")) else "aac", rate=48000)
        for number in range(num_frames):
            upright = draw_number(number, *(size[::-1] if turn % 2 else size))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(upright, turn)), format="rgb24")
            if pts_seconds is None:
                frame.pts, frame.time_base = number, Fraction(1, fps)
            else:
                frame.pts, frame.time_base = round(pts_seconds[number] / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _add_sound(container, sound, sound_seconds)
    if display_matrix is not None:
        data = path.read_bytes()
        at = data.index(b"tkhd") + 44  # in the header of an MP4 file's first track
        path.write_bytes(data[:at] + struct.pack(">9i", *display_matrix) + data[at + 36 :])
    return path


def make_shots(path: Path, lengths: Sequence[int], *, fps: int = 25, size: tuple[int, int] = (64, 96)) -> Path:
    """Encode shots of so many frames, each a blurred pattern of its own that drifts."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"threads": "1", "preset": "veryfast"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for shot, length in enumerate(lengths):
            coarse = np.random.default_rng(shot).integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
            pattern = av.VideoFrame.from_ndarray(coarse, format="rgb24").reformat(*size[::-1]).to_ndarray()
            for number in range(length):
                picture = np.ascontiguousarray(np.roll(pattern, number, axis=1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _add_sound(container: Any, stream: Any, seconds: float) -> None:
    """Mux a quiet tone of ``seconds`` after the picture."""
    for start in range(0, int(seconds * 48000), 960):
        tone = (np.sin((start + np.arange(960)) / 20)[None].astype(np.float32)) * 0.1
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def decode_all(path: Path) -> list[tuple[int, int]]:
    """Brute force: (pts, number) of every frame, in the order shown."""
    with av.open(str(path)) as container:
        return [(frame.pts, read_number(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]


def numbers(frames: Frames) -> list[int]:
    """The number drawn into each frame."""
    return [read_number(picture) for picture in frames.pixels]


def load_script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CountedVideo(_Video):
    """Takes the reader's place and counts what is decoded, and how often the file is opened and closed."""

    decoded = opened = closed = 0

    @classmethod
    def reset(cls) -> None:
        cls.decoded = cls.opened = cls.closed = 0

    def decode_packet(self, packet: Any) -> Any:
        frames = super().decode_packet(packet)
        CountedVideo.decoded += len(frames or [])
        return frames

    def _open(self) -> None:
        try:
            super()._open()
        finally:
            CountedVideo.opened += self.container is not None

    def close(self) -> None:
        CountedVideo.closed += self.container is not None
        super().close()
