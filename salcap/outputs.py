"""Caption files: JSON lines, WebVTT and SRT."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

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


def write_captions(path: str | Path, captions: Sequence[Caption]) -> None:
    """Write captions in the format of the path's suffix; the file appears whole or not at all."""
    path = Path(path)
    text = _FORMATS[path.suffix](captions)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _jsonl(captions: Sequence[Caption]) -> str:
    return "".join(json.dumps(caption.to_dict(), ensure_ascii=False) + "\n" for caption in captions)


def _vtt(captions: Sequence[Caption]) -> str:
    cues = "".join(f"{_cue_times(c, '.')}\n{html.escape(c.text or '', quote=False)}\n\n" for c in _shown(captions))
    return "WEBVTT\n\n" + cues


def _srt(captions: Sequence[Caption]) -> str:
    cues = enumerate(_shown(captions), start=1)
    return "".join(f"{number}\n{_cue_times(caption, ',')}\n{caption.text}\n\n" for number, caption in cues)


def _shown(captions: Sequence[Caption]) -> list[Caption]:
    return [caption for caption in captions if caption.text is not None]


def _cue_times(caption: Caption, point: str) -> str:
    start = caption.start_seconds or 0.0
    end = max(caption.end_seconds or 0.0, start + 0.001)
    return f"{_clock(start, point)} --> {_clock(end, point)}"


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


_FORMATS: dict[str, Callable[[Sequence[Caption]], str]] = {".jsonl": _jsonl, ".vtt": _vtt, ".srt": _srt}
