"""Measure `salcap.shots` on cuts that are known: clips of a folder, joined in a drawn order and encoded as one video.

    python scripts/measure_cuts.py ../shared/data/clips --seeds 3

Frames keep their times, so frame rates are mixed as in the clips. Cuts inside of clips count as false. Ends with one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av

from salcap.video import stream_frames
from salcap.windows import MIN_SHOT_SECONDS, cut_windows, picture_seconds

SIZE = (144, 256)  # height and width of the joined video
TIME_BASE = Fraction(1, 12800)


def join(clips: Sequence[Path], path: Path, seconds: float | None = None) -> list[float]:
    """Write the clips, or their first ``seconds``, one after another; returns the times at which one follows another.

    Clips too short to be shots are left out.
    """
    joints: list[float] = []
    begin = 0.0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "bf": "2"})
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", TIME_BASE
        for clip in clips:
            length = min(picture_seconds(str(clip))[1], seconds or float("inf"))
            if length < MIN_SHOT_SECONDS:
                continue
            joints.append(begin)
            for shown, picture in stream_frames(clip, 0.0, length, size=SIZE):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = round((begin + shown) / TIME_BASE), TIME_BASE
                container.mux(stream.encode(frame))
            begin += length
        container.mux(stream.encode(None))
    return joints[1:]


def compare(found: Sequence[float], joints: Sequence[float]) -> tuple[int, list[float], list[float]]:
    """How many cuts were found to the frame, joints that were missed, and cuts that are none."""
    frame = 1 / 120
    missed = [joint for joint in joints if not any(abs(joint - cut) < frame for cut in found)]
    false = [cut for cut in found if not any(abs(joint - cut) < frame for joint in joints)]
    return len(joints) - len(missed), missed, false


def find(path: Path) -> list[float]:
    """The times at which the shots of a video begin, but the first."""
    return [start for start, _ in cut_windows(str(path), "shots") if start is not None]


def main(folder: Path, seeds: int, seconds: float | None) -> None:
    clips = sorted(folder.glob("*.mp4"))
    num_joints = num_right = num_false = 0
    length = spent = 0.0
    with tempfile.TemporaryDirectory() as room:
        for seed in range(seeds):
            joined = Path(room) / "joined.mp4"
            joints = join(random.Random(seed).sample(clips, len(clips)), joined, seconds)
            started = time.perf_counter()
            found = find(joined)
            spent += time.perf_counter() - started
            length += picture_seconds(str(joined))[1]
            right, missed, false = compare(found, joints)
            print(f"order {seed}: {len(joints)} joints, missed {missed}, false {false}", flush=True)
            num_joints, num_right, num_false = num_joints + len(joints), num_right + right, num_false + len(false)
    report = {
        "joints": num_joints,
        "recall": round(num_right / num_joints, 4),
        "precision": round(num_right / max(num_right + num_false, 1), 4),
        "video_seconds": round(length, 1),
        "seconds": round(spent, 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=1, help="Orders in which the clips are joined.")
    parser.add_argument("--seconds", type=float, help="Of each clip; default: all.")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.seeds, arguments.seconds)
