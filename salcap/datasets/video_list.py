"""One's own captioned videos: a file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from salcap.config import check_choice
from salcap.datasets.captioned_videos import CaptionedItem, CaptionedSet, create_set

_REQUIRED, _OPTIONAL = {"video", "captions"}, {"id", "start", "end", "split"}


def load_video_list(root: str | Path, split: str | None = None) -> CaptionedSet:
    """Read ``root/captions.jsonl``, or ``root`` itself where it is a file.

    A line: ``{"video": "clips/a.mp4", "captions": ["...", ...]}``, with "id" (the video's path where it is left out),
    "start" and "end" in seconds, and "split" where wanted. Videos are paths inside the file's folder.

    Args:
        split: keep the lines of this split only; None keeps all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of another form, a path that leads out of the folder, or a split that does not occur.
    """
    path = Path(root) / "captions.jsonl" if Path(root).is_dir() else Path(root)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected JSON lines with video and captions")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if text.strip():
            lines.append(_read_line(text, path.parent, f"{path}, line {number}"))
    if split is not None:
        check_choice(f"split of {path}", split, sorted({name for name, _ in lines if name is not None}))
    return create_set("videos", split, [item for name, item in lines if split is None or name == split])


def _read_line(text: str, folder: Path, where: str) -> tuple[str | None, CaptionedItem]:
    """The line's split and item."""
    try:
        line: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    keys = line.keys() if isinstance(line, dict) else set()
    if not keys >= _REQUIRED or keys - _REQUIRED - _OPTIONAL:
        expected = f"{sorted(_REQUIRED)} and maybe {sorted(_OPTIONAL)}"
        raise ValueError(f"{where}: expected the keys {expected}, got {sorted(keys) or text}")
    video, captions = line["video"], line["captions"]
    if not isinstance(video, str) or not video or _leads_out(video):
        raise ValueError(f"{where}: video must be a path inside {folder}, got {video!r}")
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"{where}: captions must be a list of strings, got {captions!r}")
    times = [line.get("start"), line.get("end")]
    if any(isinstance(time, bool) or not isinstance(time, (int, float, type(None))) for time in times):
        raise ValueError(f"{where}: start and end must be seconds, got {times}")
    start, end = (None if time is None else float(time) for time in times)
    file = folder / video
    item = CaptionedItem(str(line.get("id", video)), file if file.is_file() else None, tuple(captions), start, end)
    return line.get("split"), item


def _leads_out(path: str) -> bool:
    windows = PureWindowsPath(path)  # splits at both kinds of separators
    return ".." in windows.parts or bool(windows.anchor) or PurePosixPath(path).is_absolute() or "\0" in path
