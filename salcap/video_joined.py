"""Recordings laid end to end in one file: what the file's bytes and its index say of them.

What the times of packets say is found by `salcap.timeline.Timeline.find_end`.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from itertools import islice, pairwise
from typing import Any

from salcap.video_crop import mp4_boxes
from salcap.video_info import local_file, opened

_TAIL_BYTES = 2**20  # behind the last packet, where the index of a file and then the head of another may be
_ENTRIES, _MOST_BOXES = 256, 100_000
_END_BYTES = 5  # FLV marks the end of H.264 by a tag so short, with the time of the last frame
_HEADS = {  # FFmpeg's name of the container -> how its files begin, and where in their first bytes
    "asf": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", 0),
    "avi": (b"RIFF", 0),
    "flv": (b"FLV\x01", 0),
    "matroska,webm": (b"\x1a\x45\xdf\xa3", 0),
    "mov,mp4,m4a,3gp,3g2,mj2": (b"ftyp", 4),
    "ogg": (b"OggS\x00\x02", 0),
}


def index_goes_back(container: Any, stream: Any, first: Any) -> bool:
    """Whether times go back in the index that FFmpeg made of a file while reading it.

    Either later times are found earlier in the file, or the index is in the order of the file and its times go back, or
    a later packet has taken the place of the first one. At most `_ENTRIES` places of the index are looked at. That of
    an MP4 file without fragments is part of the file and may be in any order, and that of ASF is not of packets.

    Args:
        first: the first packet of the stream.
    """
    kind, entries = container.format.name, stream.index_entries
    if kind in ("asf", "avi") or (kind.startswith("mov") and stream.frames) or not len(entries):
        return False
    step = max(1, len(entries) // _ENTRIES)
    looked = [entries[number] for number in [*range(0, len(entries), step), len(entries) - 1]]
    for one, other in pairwise(looked):
        if other.pos < one.pos or other.timestamp < one.timestamp:
            return True
    if kind == "flv" and looked[0].size <= _END_BYTES:
        return False
    return first.dts == looked[0].timestamp and looked[0].pos > (first.pos or 0) + first.size > first.size


def another_file_follows(path: Any, format_name: str, last_byte: int) -> bool:
    """Whether a file of the same kind begins behind the last packet.

    Reads at most a megabyte, and next to nothing of most files: their last packet is nearly at their end.

    Args:
        path: the file, or a file object, which is left where it was.
        format_name: FFmpeg's name of the container.
        last_byte: where the last packet ends; 0 if that is not known.
    """
    if not last_byte or format_name not in _HEADS:
        return False
    head, offset = _HEADS[format_name]
    with suppress(OSError, ValueError), opened(path) as file:
        file.seek(last_byte)
        tail = file.read(_TAIL_BYTES)
        found = tail.find(head)
        while found >= 0:
            if format_name != "avi" or tail[found + 8 : found + 12] == b"AVI ":
                return found >= offset
            found = tail.find(head, found + 1)
    return False


def unreadable_from(path: Any) -> int | None:
    """Find where a second MP4 file begins, if its fragments cannot be found any more; None otherwise.

    Fragments may state where their samples lie from the start of their own file (ISO/IEC 14496-12, section 8.8.7). In
    a second file that is wrong, and its samples would be read from the first one.
    """
    with suppress(OSError, ValueError), opened(path) as file:
        for number, (kind, (start, _)) in enumerate(islice(mp4_boxes(file), _MOST_BOXES)):
            if number and kind == b"ftyp":
                file.seek(start)
                content = file.read(_TAIL_BYTES)
                track = content.find(b"tfhd")
                return start - 8 if track >= 0 and content[track + 7] & 1 else None
    return None


class FirstBytes(io.RawIOBase):
    """The first bytes of a file as a file of their own."""

    def __init__(self, path: Any, length: int) -> None:
        super().__init__()
        self._own, self._length = not hasattr(path, "read"), length
        self._file = open(local_file(path), "rb") if self._own else path  # noqa: SIM115  # closed by `close`

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._length}[whence]
        return int(self._file.seek(start + offset))

    def read(self, size: int = -1) -> bytes:
        """Read as any file does, but nothing after the first bytes."""
        left = max(self._length - self.tell(), 0)
        return bytes(self._file.read(left if size < 0 else min(size, left)))

    def close(self) -> None:
        if self._own and not self.closed:
            self._file.close()
        super().close()
