"""Mutate small videos of every container that is read, and put them through the reader and the corpus runner.

    python scripts/fuzz_reader.py /tmp/fuzz --num-videos 2000 [--seed 0]

Mutant number n is a function of --seed and n, and stays in the folder. First each is read in the processes of a
`ReaderPool`, with its time taken; then `caption_corpus` captions all of them with salcap-mini. Files that crash a
reading process or reach the time limit are named. Ends with one JSON line; the exit status is 1 where a record is
missing, comes twice, or has another outcome than the reader gave.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from make_hostile_folder import flip

import salcap
from salcap.reading import ReaderPool, ReadError
from salcap.records import count_errors, read_records

NUM_FRAMES = 10
FIELDS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


class Kind(NamedTuple):
    """How a seed is written: FFmpeg's names of container, codec and pixels; size is (width, height)."""

    format: str
    codec: str
    pixels: str = "yuv420p"
    size: tuple[int, int] = (64, 48)


KINDS = {
    "mp4": Kind("mp4", "libx264"),
    "hevc.mp4": Kind("mp4", "libx265"),
    "av1.mp4": Kind("mp4", "libsvtav1"),
    "mov": Kind("mov", "mjpeg", "yuvj420p"),
    "prores.mov": Kind("mov", "prores_ks", "yuv422p10le"),
    "3gp": Kind("3gp", "h263", size=(176, 144)),
    "mkv": Kind("matroska", "libx264"),
    "ffv1.mkv": Kind("matroska", "ffv1"),
    "webm": Kind("webm", "libvpx-vp9"),
    "avi": Kind("avi", "mpeg4"),
    "raw.avi": Kind("avi", "rawvideo"),
    "ts": Kind("mpegts", "libx264"),
    "mpg": Kind("mpeg", "mpeg1video"),
    "m2v": Kind("mpeg2video", "mpeg2video"),
    "flv": Kind("flv", "flv"),
    "wmv": Kind("asf", "wmv2"),
    "ogv": Kind("ogg", "libvpx"),
    "gif": Kind("gif", "gif", "rgb8"),
    "apng": Kind("apng", "apng", "rgb24"),
    "webp": Kind("image2pipe", "libwebp"),
    "nut": Kind("nut", "mpeg4"),
    "mxf": Kind("mxf", "mpeg2video"),
    "rm": Kind("rm", "rv20"),
    "wtv": Kind("wtv", "mpeg2video"),
    "dv": Kind("dv", "dvvideo", size=(720, 576)),
    "ivf": Kind("ivf", "libvpx"),
    "obu": Kind("obu", "libsvtav1"),
    "h264": Kind("h264", "libx264"),
    "hevc": Kind("hevc", "libx265"),
    "m4v": Kind("m4v", "mpeg4"),
    "h263": Kind("h263", "h263", size=(176, 144)),
    "mjpeg": Kind("mjpeg", "mjpeg", "yuvj420p"),
    "y4m": Kind("yuv4mpegpipe", "wrapped_avframe"),
    "png": Kind("image2pipe", "png", "rgb24"),
    "tiff": Kind("image2pipe", "tiff", "rgb24"),
    "bmp": Kind("image2pipe", "bmp", "bgr24"),
}


def write_seed(kind: Kind) -> bytes:
    """A drifting pattern in a container, a keyframe every fifth frame."""
    width, height = kind.size
    rows, columns = np.mgrid[:height, :width]
    buffer = io.BytesIO()
    os.environ["SVT_LOG"] = "0"  # two encoders write their settings to standard error
    quiet = {"x265-params": "log-level=none"} if kind.codec == "libx265" else {}
    with av.open(buffer, "w", format=kind.format) as container:
        stream = container.add_stream(kind.codec, rate=25, options={"threads": "1", **quiet})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, kind.pixels, 5
        for number in range(NUM_FRAMES):
            picture = np.stack([rows * 4 + number * 9, columns * 3, (rows + columns) * 2 - number * 5], 2) % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _block(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Start and length of a part of at most a third."""
    length = rng.randint(1, max(1, min(len(data) // 3, 4096)))
    return rng.randint(0, len(data) - length), length


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    return flip(data, 10 ** -rng.uniform(2, 5), rng)


def cut(data: bytes, rng: random.Random) -> bytes:
    """An end, a beginning or a block in the middle is lost."""
    start, length = _block(data, rng)
    return rng.choice([data[: start + 1], data[start:], data[: start + 1] + data[start + length :]])


def swap_blocks(data: bytes, rng: random.Random) -> bytes:
    swapped = bytearray(data)
    start, length = _block(data, rng)
    other = rng.randint(0, len(data) - length)
    swapped[start : start + length], swapped[other : other + length] = (
        data[other : other + length],
        data[start : start + length],
    )
    return bytes(swapped)


def duplicate_block(data: bytes, rng: random.Random) -> bytes:
    start, length = _block(data, rng)
    at = rng.randint(0, len(data))
    return data[:at] + data[start : start + length] * rng.choice([1, 2, 50]) + data[at:]


def set_field(data: bytes, rng: random.Random) -> bytes:
    """An extreme number in the first bytes, or soon after one of the four-letter tags that name parts of a file."""
    tags = [found.end() for found in re.finditer(rb"[A-Za-z][A-Za-z0-9 ]{3}", data[:65536])]
    after = rng.choice(tags) if tags and rng.random() < 0.7 else rng.randint(0, min(len(data), 256))
    at, size = after + rng.randint(-8, 24), rng.choice([1, 2, 4, 8])
    at = min(max(at, 0), max(len(data) - size, 0))
    value = rng.choice([*FIELDS, rng.getrandbits(64)]) & (1 << size * 8) - 1
    return data[:at] + value.to_bytes(size, rng.choice(["big", "little"])) + data[at + size :]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": flip_bits,
    "cut": cut,
    "swap": swap_blocks,
    "duplicate": duplicate_block,
    "field": set_field,
}


def mutants(seeds: dict[str, bytes], num_videos: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(file name, content): the kinds in turns, each mutated once, twice or three times."""
    suffixes = list(seeds)
    for number in range(num_videos):
        rng, suffix = random.Random(f"{seed} {number}"), suffixes[number % len(suffixes)]
        names = rng.choices(list(MUTATIONS), k=rng.choice([1, 1, 2, 3]))
        data = seeds[suffix]
        for name in names:
            data = MUTATIONS[name](data, rng)
        yield f"{number:05d}-{'-'.join(names)}.{suffix}", data


def read_each(paths: list[Path], pool: ReaderPool, num_frames: int) -> dict[str, tuple[str | None, float]]:
    """path -> class of its error or None, and the seconds that its reading took."""

    def read(path: Path) -> tuple[str | None, float]:
        started, error_class = time.monotonic(), None
        try:
            pool.submit(str(path), num_frames, None, None, size=(64, 64)).result()
        except ReadError as error:
            error_class = error.error_class
        return error_class, time.monotonic() - started

    with ThreadPoolExecutor(pool.num_workers) as threads:  # one waits for one process
        return dict(zip(map(str, paths), threads.map(read, paths), strict=True))


def fuzz(
    captioner: salcap.SaliencyCaptioner,
    folder: Path,
    num_videos: int,
    *,
    seed: int = 0,
    num_frames: int = 4,
    num_workers: int = 2,
    time_limit: float = 60.0,
    **generation: Any,
) -> dict[str, Any]:
    """Write the mutants and read and caption each; the result is JSON-ready.

    Raises:
        ValueError: a seed that cannot be read as it is.
    """
    seeds = {suffix: write_seed(kind) for suffix, kind in KINDS.items()}
    for name in ("seeds", "mutants"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    files = {Path("seeds", f"seed.{suffix}"): data for suffix, data in seeds.items()}
    files |= {Path("mutants", name): data for name, data in mutants(seeds, num_videos, seed)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    whole, paths = ([folder / name for name in files if name.parts[0] == part] for part in ("seeds", "mutants"))

    with ReaderPool(num_workers, time_limit) as pool:
        if bad := {path: found[0] for path, found in read_each(whole, pool, num_frames).items() if found[0]}:
            raise ValueError(f"seeds must be read before they are mutated, got {bad}")
        started = time.monotonic()
        outcomes = read_each(paths, pool, num_frames)
        read_seconds = time.monotonic() - started
    for path, (error_class, seconds) in outcomes.items():
        if error_class in ("ReaderDied", "ReadTimeout"):
            print(f"{path}: {error_class} after {seconds:.1f} s", file=sys.stderr)

    started, output = time.monotonic(), folder / "records.jsonl"
    salcap.caption_corpus(
        captioner, paths, output, num_frames=num_frames, num_workers=num_workers, time_limit=time_limit,
        overwrite=True, **generation,
    )  # fmt: skip
    found = list(read_records(output))
    records = {record["id"]: record["error_class"] for record in found}
    return {
        "videos": len(paths),
        "containers": len(KINDS),
        "records": len(found),
        "duplicates": len(found) - len(records),
        "missing": len(outcomes.keys() - records.keys()),
        "captioned": sum(error_class is None for error_class in records.values()),
        "error_classes": count_errors(list(records.values())),
        "other_outcome_than_reader": sum(outcomes[name][0] != error_class for name, error_class in records.items()),
        "read_seconds": round(read_seconds, 1),
        "largest_read_seconds": round(max(seconds for _, seconds in outcomes.values()), 2),
        "corpus_seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-videos", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-frames", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for one video")
    options = parser.parse_args()
    captioner = salcap.SaliencyCaptioner.from_pretrained("salcap-mini")
    result = fuzz(
        captioner, options.folder, options.num_videos, seed=options.seed, num_frames=options.num_frames,
        num_workers=options.workers, time_limit=options.time_limit, max_new_tokens=4,
    )  # fmt: skip
    print(json.dumps(result))
    sys.exit(any(result[name] for name in ("missing", "duplicates", "other_outcome_than_reader")))


if __name__ == "__main__":
    main()
