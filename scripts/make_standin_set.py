"""Render small clips under the ids of MSR-VTT's test split, so that the whole of `salcap evaluate` can be run.

    python scripts/make_standin_set.py /tmp/standin --num-videos 2990
    salcap evaluate --dataset msrvtt --root /tmp/standin --split test --output /tmp/receipt.json

The clips show coloured shapes that move over a gradient and have nothing to do with MSR-VTT's: the scores mean
nothing. Each is a function of its id. Those that are there already are left, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import av
import numpy as np

from salcap.datasets.captioned_videos import find_file
from salcap.datasets.msrvtt import ANNOTATION_FOLDERS, load_msrvtt

FPS = 12
SIZES = ((96, 128), (120, 160), (160, 120), (90, 160))  # (height, width)


def draw_clip(seed: int) -> np.ndarray:
    """(T, H, W, 3) uint8: 1 to 2 s of one to three discs or boxes on straight ways, over a gradient."""
    random = np.random.default_rng(seed)
    height, width = SIZES[random.integers(len(SIZES))]
    time = np.linspace(0, 1, random.integers(FPS, 2 * FPS + 1))[:, None, None]
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    slope = (rows if random.random() < 0.5 else columns)[..., None]
    ground = slope * random.integers(256, size=3) + (1 - slope) * random.integers(256, size=3)
    clip = np.broadcast_to(ground, (len(time), height, width, 3)).astype(np.uint8)
    for _ in range(random.integers(1, 4)):
        (y, x), (to_y, to_x), radius = random.random(2), random.random(2), random.uniform(0.08, 0.25)
        down, right = rows - y - (to_y - y) * time, (columns - x - (to_x - x) * time) * width / height
        inside = np.hypot(down, right) < radius if random.random() < 0.5 else np.maximum(abs(down), abs(right)) < radius
        clip[inside] = random.integers(256, size=3)
    return clip


def write_clip(path: Path, clip: np.ndarray, fps: int = FPS, crf: int = 28) -> None:
    """Encode as H.264, at one stroke."""
    partial = path.with_name(f".{path.name}")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"preset": "ultrafast", "threads": "1", "crf": str(crf)}
        )
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    os.replace(partial, path)


def render_clips(folder: Path, num_clips: int) -> list[Path]:
    """Clips 0000.mp4, 0001.mp4, ... in a folder; those that are there already are left."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = [folder / f"{number:04d}.mp4" for number in range(num_clips)]
    for number, path in enumerate(clips):
        if not path.exists():
            write_clip(path, draw_clip(number))
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-videos", type=int, default=2990, help="the first of the split's ids")
    default = Path(__file__).resolve().parents[2] / "shared/data/captions/msrvtt"
    parser.add_argument("--annotations", type=Path, default=default, help="folder with test_videodatainfo.json")
    options = parser.parse_args()
    ids = [item.id for item in load_msrvtt(options.annotations, "test").items[: options.num_videos]]
    videos = options.folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    annotations = find_file(options.annotations, ("test_videodatainfo.json",), ANNOTATION_FOLDERS)
    shutil.copyfile(annotations, options.folder / annotations.name)
    todo = [key for key in ids if not (videos / f"{key}.mp4").exists()]
    for key in todo:
        write_clip(videos / f"{key}.mp4", draw_clip(int(key.removeprefix("video"))))
    size = sum(path.stat().st_size for path in videos.glob("*.mp4"))
    print(f"{options.folder}: {len(todo)} of {len(ids)} clips rendered, {size / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
