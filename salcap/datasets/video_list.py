"""One's own captioned videos: a file of JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from salcap.config import check_choice
from salcap.datasets.captioned_videos import (
    CaptionedItem,
    CaptionedSet,
    check_captions,
    check_path,
    create_set,
    read_json_lines,
)

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
    for where, line in read_json_lines(path):
        lines.append(_read_line(line, path.parent, where))
    if split is not None:
        check_choice(f"split of {path}", split, sorted({name for name, _ in lines if name is not None}))
    return create_set("videos", split, [item for name, item in lines if split is None or name == split])


def _read_line(line: Any, folder: Path, where: str) -> tuple[str | None, CaptionedItem]:
    """The line's split and item."""
    keys = line.keys() if isinstance(line, dict) else set()
    if not keys >= _REQUIRED or keys - _REQUIRED - _OPTIONAL:
        expected = f"{sorted(_REQUIRED)} and maybe {sorted(_OPTIONAL)}"
        raise ValueError(f"{where}: expected the keys {expected}, got {sorted(keys) or line}")
    video = check_path(line["video"], "video", folder, where)
    captions = check_captions(line["captions"], where)
    if not captions:
        raise ValueError(f"{where}: captions must be a list of strings, got {line['captions']!r}")
    split = line.get("split")
    if not isinstance(split, str | None):
        raise ValueError(f"{where}: split must be a name, got {split!r}")
    start, end = (_seconds(line.get(name), name, where) for name in ("start", "end"))
    file, identity = folder / video, line.get("id")
    name = video if identity is None else str(identity)
    return split, CaptionedItem(name, file if file.is_file() else None, captions, start, end)


def _seconds(value: Any, name: str, where: str) -> float | None:
    if value is None:
        return None
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not -1e9 < value < 1e9:  # nor NaN
        raise ValueError(f"{where}: {name} must be seconds, got {value!r}")
    return float(value)
