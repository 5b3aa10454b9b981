"""Render data/sample.mp4: a slow pan and zoom over a NASA photograph, so that a captioner sees a real picture.

    python scripts/make_sample_video.py [data/sample.mp4]

Needs scikit-image (the photograph is `skimage.data.astronaut()`), which nothing else here does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH, FPS, SECONDS = 240, 320, 24, 6
# The part of the 512 x 512 photograph that is seen (left, top, width; the height follows): from the whole to the face.
FROM, TO = (0.0, 0.0, 512.0), (90.0, 0.0, 320.0)


def crop_at(share: float) -> tuple[float, float, float]:
    """The part that is seen at a share 0..1 of the video; it starts and stops gently."""
    eased = (1 - np.cos(np.pi * share)) / 2
    left, top, width = ((1 - eased) * a + eased * b for a, b in zip(FROM, TO, strict=True))
    return left, top, width


def render(path: Path) -> None:
    """Write the video: H.264, one thread, so that the same x264 writes the same bytes."""
    from PIL import Image
    from skimage.data import astronaut

    photograph = Image.fromarray(astronaut())
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "24", "preset": "slow", "threads": "1"}
        total = FPS * SECONDS
        for number in range(total):
            left, top, width = crop_at(number / (total - 1))
            box = (left, top, left + width, top + width * HEIGHT / WIDTH)
            picture = photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {SECONDS} s of {WIDTH}x{HEIGHT} at {FPS} frames a second")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
    parser.add_argument("path", nargs="?", type=Path, default=default)
    render(parser.parse_args().path)
