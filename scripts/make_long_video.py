"""Render a long 720p video cheaply, to check that reading costs by the frame and not by the minute.

    python scripts/make_long_video.py /tmp/long.mp4 --minutes 20

Half a minute of a moving, textured pattern is encoded (H.264, B-frames, a keyframe every 250 frames, as encoders do by
default); its packets are then written over and over with later times, which is as good as encoding all of it.
"""

from __future__ import annotations

import argparse
import io
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH, FPS, GOP = 720, 1280, 25, 250
LOOP_FRAMES = 3 * GOP


def draw(number: int, texture: np.ndarray) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: a texture that drifts, with a disc on an ellipse before it."""
    picture = np.roll(texture, (number // 2, number * 2), axis=(0, 1)).copy()
    angle = 2 * math.pi * number / LOOP_FRAMES * 5
    y, x = round(HEIGHT / 2 + 200 * math.sin(angle)), round(WIDTH / 2 + 400 * math.cos(angle))
    rows, columns = np.ogrid[-90:90, -90:90]
    picture[y - 90 : y + 90, x - 90 : x + 90][rows**2 + columns**2 < 90**2] = (230, 60, 40)
    return picture


def encode_loop() -> bytes:
    """The loop as a Matroska file in memory."""
    coarse = np.random.default_rng(0).integers(40, 216, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    texture = av.VideoFrame.from_ndarray(coarse, format="rgb24").reformat(WIDTH, HEIGHT, "rgb24").to_ndarray()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", GOP
        stream.options = {"preset": "veryfast", "crf": "23", "keyint_min": str(GOP), "sc_threshold": "0"}
        for number in range(LOOP_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(number, texture), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def render(path: Path, minutes: float) -> None:
    """Write the loop as often as it takes to fill ``minutes``."""
    loop = encode_loop()
    wanted = round(minutes * 60 * FPS)
    written = 0
    with av.open(str(path), "w") as target:
        stream = None
        while written < wanted:
            with av.open(io.BytesIO(loop)) as source:
                if stream is None:
                    stream = target.add_stream_from_template(source.streams.video[0])
                for number, packet in enumerate(source.demux(video=0)):
                    if packet.size == 0 or written + number >= wanted:
                        break
                    tick = Fraction(1, FPS) / packet.time_base
                    packet.pts = round((round(packet.pts / tick) + written) * tick)
                    packet.dts = round((number - 3 + written) * tick)  # 3: more than frames are ever reordered by
                    packet.stream = stream
                    target.mux(packet)
            written += LOOP_FRAMES
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB, {wanted / FPS / 60:g} min of {WIDTH}x{HEIGHT}, GOP {GOP}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    arguments = parser.parse_args()
    render(arguments.path, arguments.minutes)
