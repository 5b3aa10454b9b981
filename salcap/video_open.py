"""Opening a video file: local, in a known format, and nothing that it names; and FFmpeg's words on failures."""

from __future__ import annotations

import io
import math
import os
import threading
import time
from fractions import Fraction
from inspect import iscoroutinefunction
from itertools import islice
from textwrap import shorten
from typing import Any, BinaryIO, TypeAlias

import av
from av.stream import Disposition

from salcap.video_contents import HEAD_BYTES, describe_contents
from salcap.video_info import FORMATS, local_file, opened

# What PyAV raises on broken files; IndexError where a stream turns up late
FAILURES = (av.FFmpegError, ArithmeticError, LookupError, MemoryError, OSError, ValueError)

VideoPath: TypeAlias = "str | os.PathLike[str] | BinaryIO | bytes"
_log_lock = threading.Lock()


def open_container(path: VideoPath, max_pixels: int) -> Any:
    """Open a local file: the formats of FORMATS, no other protocol, no data that it keeps in other files."""
    source: Any = path
    if hasattr(path, "read"):
        _check_file(source)
        source.seek(0)
    else:
        source = f"file:{local_file(path)}"  # so that a colon in the name is no protocol
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(max_pixels)}
    # PyAV takes a file object's own mode otherwise, and would write into one that was opened to read and write
    return av.open(source, mode="r", options=options, metadata_errors="replace")


def main_stream(container: Any) -> Any | None:
    """The video stream of a container that a player shows; None if it has none."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    best = container.streams.best("video")
    return max(streams, key=lambda stream: stream is best, default=None)


def stated_end(container: Any, stream: Any, step: Fraction) -> int | None:
    """Ticks at which a video stream ends by what its container states; None if it states nothing.

    Args:
        step: ticks that a frame lasts.
    """
    stated: int | None = stream.duration
    if stated is not None:
        stated += stream.start_time or 0
    elif container.duration is not None:  # of the longest stream; some count it from 0, some from the start
        stated = int(Fraction(container.duration, av.time_base) / stream.time_base)
    if container.format.name == "avi" and stated is not None:
        stated = max(stated, math.floor(stream.frames * step))  # FFmpeg guesses the duration of a file that is cut
    return stated


def undiscarded(packet: av.Packet) -> av.Packet:
    """The packet without the mark by which the edit list of a file that is joined to another hides its frame."""
    copy = av.Packet(bytes(packet))
    copy.stream, copy.time_base = packet.stream, packet.time_base
    copy.pts, copy.dts, copy.duration, copy.is_keyframe = packet.pts, packet.dts, packet.duration, packet.is_keyframe
    return copy


def name_of(video: Any) -> str | None:
    """The name of a path or a file object; None for an object without one, or with a number (a descriptor)."""
    name = video
    if hasattr(video, "read"):
        name = getattr(video, "name", None) or getattr(video, "filename", None)  # that of an upload
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else None


def plain_file(video: Any) -> Any:
    """The file inside an upload whose own methods are coroutines (FastAPI's ``UploadFile``); all else as it is."""
    file = getattr(video, "file", None)
    return file if hasattr(file, "read") and iscoroutinefunction(getattr(video, "read", None)) else video


def _check_file(file: Any) -> None:
    """Refuse a file object that cannot be read from its start, in words that say what to do."""
    try:
        nothing = file.read(0)
    except io.UnsupportedOperation:
        raise ValueError("a file object opened only for writing; open it with mode 'rb'") from None
    if isinstance(nothing, str):
        raise ValueError("a file opened as text; open it with mode 'rb'")
    if not isinstance(nothing, bytes | bytearray | memoryview):
        raise ValueError(f"a file object whose read() returns {type(nothing).__name__}, not bytes; pass its bytes")
    if not hasattr(file, "seek") or (hasattr(file, "seekable") and not file.seekable()):
        raise ValueError("a file object that cannot seek, such as a pipe or a download; read it and pass its bytes")


def contents_of(path: VideoPath) -> str | None:
    """What a file without a readable frame shows itself to be; None if it may be a video or cannot be read."""
    try:
        with opened(path) as file:
            file.seek(0)
            return describe_contents(file.read(HEAD_BYTES))
    except (*FAILURES, AttributeError, TypeError):
        return None


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
