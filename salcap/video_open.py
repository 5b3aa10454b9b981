"""Opening a video file: local, in a known format, and nothing that it names; and FFmpeg's words on failures."""

from __future__ import annotations

import io
import os
import threading
import time
from itertools import islice
from textwrap import shorten
from typing import Any, BinaryIO, TypeAlias

import av

from salcap.video_info import FORMATS, local_file

# What PyAV raises on broken files; IndexError where a stream turns up late
FAILURES = (av.FFmpegError, ArithmeticError, LookupError, MemoryError, OSError, ValueError)

VideoPath: TypeAlias = "str | os.PathLike[str] | BinaryIO | bytes"
_log_lock = threading.Lock()


def open_container(path: VideoPath, max_pixels: int) -> Any:
    """Open a local file: the formats of FORMATS, no other protocol, no data that it keeps in other files."""
    source: Any = path
    if isinstance(path, io.TextIOBase):
        raise ValueError("a file opened as text; open it with mode 'rb'")
    if hasattr(path, "read"):
        source.seek(0)
    else:
        source = f"file:{local_file(path)}"  # so that a colon in the name is no protocol
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(max_pixels)}
    return av.open(source, options=options, metadata_errors="replace")


def words_of(error: Exception) -> str:
    """What an error says, its type's name where that is nothing."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def decoder_log(path: VideoPath, max_pixels: int, most: int = 3) -> list[str]:
    """What FFmpeg logs as errors when it opens a file that failed and decodes its beginning."""
    # off otherwise: each line of a codec thread would wait for the interpreter; what other threads log is dropped
    with _log_lock, av.logging.Capture(local=False), av.logging.Capture() as lines:
        level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
        av.logging.set_skip_repeated(False)  # it compares with whatever line came last, of any thread
        av.logging.set_level(av.logging.ERROR)
        try:
            with open_container(path, max_pixels) as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                for packet in islice(container.demux(stream), 8):
                    packet.decode()
        except (*FAILURES, AttributeError):
            pass
        finally:
            if level is None:  # by way of FFmpeg's own callback, kept quiet, until lines of other threads have passed
                av.logging.set_libav_level(av.logging.PANIC)
                av.logging.restore_default_callback()
                time.sleep(0.005)
                av.logging.set_libav_level(av.logging.INFO)
            av.logging.set_level(level)
            av.logging.set_skip_repeated(skips)
    return list(dict.fromkeys(shorten(f"{name}: {text}", 160) for _, name, text in lines))[:most]
