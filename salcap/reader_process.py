"""A reading process: requests as JSON lines on standard input, answers as a JSON line, and raw pixels where it has read
frames.

It ends when its input does, in the middle of a file too, so that none outlives a run that is killed. It imports no
torch, unless the function that it is told to call does: its start would take seconds.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from contextlib import suppress
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np

from salcap.video_info import Pictures, VideoLimits


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    options = {name: tuple(value) if name == "size" else value for name, value in request["options"].items()}
    module, _, name = request["function"].partition(":")
    try:
        function = getattr(import_module(module), name)
        found = function(*request["args"], limits=VideoLimits(**request["limits"]), **options)
    except Exception as error:
        return {"error_class": type(error).__name__, "message": str(error) or type(error).__name__}, b""
    if not hasattr(found, "pixels"):
        return {"result": found}, b""
    pixels = found.pixels if isinstance(found, Pictures) else np.moveaxis(np.asarray(found.pixels), 1, 3)  # of `Frames`
    header = {
        "num_bytes": pixels.nbytes,
        "shape": pixels.shape,
        "pts_seconds": [float(seconds) for seconds in found.pts_seconds],
        "source": found.source,
        "warnings": found.warnings,
        "clip_seconds": found.clip_seconds,
    }
    return header, pixels.tobytes()


def _serve(answers: BinaryIO) -> None:
    """Answer requests until standard input ends, which ends the process at once."""
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def take() -> None:
        for line in sys.stdin.buffer:
            requests.put(line)
        os._exit(0)

    threading.Thread(target=take, daemon=True).start()
    answers.write(b"ready\n")
    answers.flush()
    for line in iter(requests.get, None):
        header, pixels = _answer(json.loads(line))
        try:
            answers.write(json.dumps(header).encode() + b"\n")
            answers.write(pixels)
            answers.flush()
        except BrokenPipeError:  # the run was killed, and its end of this pipe closed first
            os._exit(0)


def _main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints goes to standard error
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
    with suppress(Exception):  # which each clip will tell
        import_module(sys.argv[2])  # of the reader, before any clip's time begins
    _serve(answers)


if __name__ == "__main__":
    _main()
