"""ReaderPool: videos are read ahead, in processes that can be killed, so that a codec's crash costs one video.

Nothing that a process answers is unpickled (`salcap.reader_process`): a codec taken over by a crafted file has no way
into this one.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, cast

import numpy as np

from salcap.frames import Frames
from salcap.video import DEFAULT_LIMITS, VideoLimits, read_frames, to_frames
from salcap.video_info import Pictures
from salcap.video_reader import read_pictures

CLIPS_A_PROCESS = 200  # then it is replaced, which takes tenths of a second: FFmpeg's threads leave memory in pieces
MEMORY_BYTES = 4 * 2**30  # of data that a reading process may hold, where the system can say so (Linux)


class ReadError(RuntimeError):
    """A clip that could not be read.

    Attributes:
        error_class: name of the error raised in the reading process; ``ReadTimeout`` or ``ReaderDied`` where the
            process itself was ended.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class ReaderPool:
    """Reads clips ahead of their use.

    Args:
        num_workers: processes; 0 reads in a thread of this process, which nothing can kill.
        time_limit: seconds for each clip, then its process is killed; None: no limit.
        reader: as `read_frames`; a function that a new process can import.

    Raises:
        ValueError: a time limit without a process.
    """

    def __init__(
        self,
        num_workers: int,
        time_limit: float | None = None,
        limits: VideoLimits = DEFAULT_LIMITS,
        reader: Callable[..., Frames] = read_frames,
    ) -> None:
        if num_workers == 0 and time_limit is not None:
            raise ValueError(f"a time limit of {time_limit} s needs num_workers of at least 1, got 0")
        self._limits, self._reader = limits, cast(Callable[..., Any], reader)
        if num_workers and reader is read_frames:
            self._reader = read_pictures  # without torch, which takes seconds to start
        self.num_workers = num_workers
        self._threads = ThreadPoolExecutor(max(num_workers, 1))
        self._workers = [_Worker(time_limit, limits.max_bytes, self._reader.__module__) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> ReaderPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop what was asked for, and end the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()

    def submit(self, path: str, count: int, start: float | None, end: float | None, **options: Any) -> Future[Frames]:
        """Read ``count`` frames of a clip; the future raises a `ReadError` where that fails."""
        return self.call(self._reader, path, count, start, end, **options)

    def call(self, function: Callable[..., Any], path: str, *args: Any, **options: Any) -> Future[Any]:
        """Have another function look at a file, under the same limits: it takes them as ``limits``.

        Args:
            function: one that a new process can import, whose arguments and result, unless that is `Frames`, are
                JSON-ready.
        """
        if not self._workers:
            return self._threads.submit(function, path, *args, limits=self._limits, **options)
        request = {
            "function": f"{function.__module__}:{function.__qualname__}",
            "args": [path, *args],
            "options": options,
            "limits": asdict(self._limits),
        }
        return self._threads.submit(self._read, request)

    def _read(self, request: dict[str, Any]) -> Any:
        worker = self._idle.get()
        try:
            return worker.read(request)
        finally:
            self._idle.put(worker)


class _Worker:
    """One reading process, started again after its death."""

    def __init__(self, time_limit: float | None, max_bytes: int, module: str) -> None:
        self._time_limit, self._max_bytes, self._module = time_limit, max_bytes, module
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._ready, self._num_read = False, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "salcap.reader_process", str(MEMORY_BYTES), self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C is for the run, which ends its workers
        )
        if self._closed:
            self._process.kill()

    def close(self) -> None:
        self._closed = True
        self._process.kill()
        self._process.wait()

    def read(self, request: dict[str, Any]) -> Any:
        if self._process.poll() is not None:
            self._start()
        answers, requests = self._process.stdout, self._process.stdin
        assert answers is not None
        assert requests is not None
        if not self._ready and not answers.readline():
            raise ReadError("ReaderDied", f"the reading process did not start ({self._death()})")
        self._ready = True
        expired = threading.Event()
        timer = threading.Timer(self._time_limit or 0, self._expire, [expired])
        if self._time_limit is not None:
            timer.start()
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            requests.flush()
            answer = json.loads(answers.readline())
            pixels = bytearray()
            if "num_bytes" in answer:
                pixels = _read_exactly(answers, answer.pop("num_bytes"), self._max_bytes)
        except (EOFError, OSError, ValueError):  # no whole answer: the process is gone
            self._process.kill()
            if expired.is_set():
                words = f"not read within the time limit of {self._time_limit:g} s"
                raise ReadError("ReadTimeout", f"{request['args'][0]}: {words}") from None
            words = f"the reading process died ({self._death()})"
            raise ReadError("ReaderDied", f"{request['args'][0]}: {words}") from None
        finally:
            timer.cancel()
            if self._time_limit is not None:
                timer.join()
            if expired.is_set():
                self._process.wait()
        self._num_read += 1
        if self._num_read == CLIPS_A_PROCESS:
            self._process.kill()
            self._process.wait()
        if "error_class" in answer:
            raise ReadError(answer["error_class"], answer["message"])
        if "result" in answer:
            return answer["result"]
        answer["pixels"] = np.frombuffer(pixels, np.uint8).reshape(answer.pop("shape"))
        for name in ("warnings", "clip_seconds"):
            answer[name] = None if answer[name] is None else tuple(answer[name])
        return to_frames(Pictures(**answer))

    def _expire(self, expired: threading.Event) -> None:
        expired.set()
        self._process.kill()

    def _death(self) -> str:
        code = self._process.wait()
        return f"exit status {code}" if code >= 0 else signal.Signals(-code).name


def _read_exactly(file: Any, num_bytes: int, max_bytes: int) -> bytearray:
    if num_bytes > max_bytes:
        raise ValueError(f"{num_bytes} bytes, at most {max_bytes} are taken")
    buffer = bytearray(num_bytes)
    view = memoryview(buffer)
    while view:
        count = file.readinto(view)
        if not count:
            raise EOFError(f"{len(view)} bytes are missing")
        view = view[count:]
    return buffer
