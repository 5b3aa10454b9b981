"""A reader for tests of what reads ahead: frames drawn from the name of a file that need not exist, and odd ends."""

from __future__ import annotations

import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import torch

from salcap.frames import Frames
from salcap.video import VideoDecodeError


def read(path: str, count: int, start: float | None, end: float | None, *, limits: Any, **options: Any) -> Frames:
    name = Path(path).name
    if name.startswith("die"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("hang"):
        time.sleep(10_000)
    if name.startswith("broken"):
        raise VideoDecodeError(path, "made so")
    if name.startswith("loud"):
        print("not an answer", flush=True)
        os.write(1, b"nor this\n")
    if name.startswith("slow"):
        time.sleep(0.01)
    generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))
    pixels = torch.randint(0, 256, (count, 3, *options.get("size", (16, 24))), generator=generator, dtype=torch.uint8)
    return Frames(pixels, torch.arange(count) / 2, source=path, warnings=("odd",), clip_seconds=(0.0, count / 2))
