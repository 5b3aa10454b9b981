"""Caption files: JSON lines, WebVTT and SRT."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from salcap.caption import Caption

SUFFIXES = (".jsonl", ".vtt", ".srt")


def check_output(path: str | Path, num_videos: int, overwrite: bool = False) -> Path:
    """Refuse, before any work is done, an output that cannot be written or would destroy one.

    Raises:
        ValueError: unknown suffix, missing folder, an existing file without ``overwrite``, or subtitles of
            several videos.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"output {path} has suffix {path.suffix!r}, allowed: {', '.join(SUFFIXES)}")
    if path.suffix != ".jsonl" and num_videos != 1:
        raise ValueError(f"{path.suffix} subtitles belong to one video, got {num_videos}; use .jsonl")
    if not path.parent.is_dir():
        raise ValueError(f"output folder {path.parent} does not exist")
    if path.exists() and not overwrite:
        raise ValueError(f"output {path} exists; name another or pass --overwrite")
    return path


class CaptionFile:
    """A caption file that is written as captions come, so that what was done before a crash is there after it.

    An existing file is replaced by the first caption only: settings that turn out wrong before it destroy nothing.

    Args:
        path: its suffix says the format; None writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._number = path, 0
        self._file: TextIO | None = None

    @classmethod
    @contextmanager
    def opened(cls, path: str | Path | None, num_videos: int, overwrite: bool = False) -> Iterator[CaptionFile]:
        """Check the path as `check_output` does, and close the file in the end."""
        file = cls(None if path is None else check_output(path, num_videos, overwrite))
        try:
            yield file
        finally:
            file.close()

    def write(self, caption: Caption) -> None:
        """Add one caption; subtitles leave out what failed."""
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8")
            self._file.write("WEBVTT\n\n" if self._path.suffix == ".vtt" else "")
        if self._path.suffix == ".jsonl":
            self._file.write(json.dumps(caption.to_dict(), ensure_ascii=False) + "\n")
        elif caption.text is not None:
            self._number += 1
            self._file.write(_CUES[self._path.suffix](caption, self._number))
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _vtt(caption: Caption, number: int) -> str:
    return f"{_cue_times(caption, '.')}\n{html.escape(caption.text or '', quote=False)}\n\n"


def _srt(caption: Caption, number: int) -> str:
    return f"{number}\n{_cue_times(caption, ',')}\n{caption.text}\n\n"


def _cue_times(caption: Caption, point: str) -> str:
    start = caption.start_seconds or 0.0
    end = max(caption.end_seconds or 0.0, start + 0.001)
    return f"{_clock(start, point)} --> {_clock(end, point)}"


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


_CUES: dict[str, Callable[[Caption, int], str]] = {".vtt": _vtt, ".srt": _srt}
