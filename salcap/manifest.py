"""What to caption: items from folders, glob patterns and manifests (.txt, .jsonl, .csv)."""

from __future__ import annotations

import csv
import difflib
import glob
import json
import logging
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from salcap.records import as_text

MANIFESTS = (".txt", ".jsonl", ".csv")
COMPANIONS = (  # files that often lie beside videos, including our own, and are not videos
    ".ass", ".csv", ".exports", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".nfo", ".parquet", ".part",
    ".partial", ".pdf", ".py", ".settings", ".sh", ".srt", ".sub", ".tsv", ".txt", ".url", ".vtt", ".xml", ".yaml",
    ".yml", ".zip",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One clip of a corpus.

    Attributes:
        id: its name in the records, see `as_text`; "": the path, with the clip's times as a media fragment
            (``a.mp4#t=5,10``).
        start_seconds, end_seconds: the part of the video; None: from its start, to its end.
    """

    path: str
    id: str = ""
    start_seconds: float | None = None
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        start, end = self.start_seconds or 0.0, math.inf if self.end_seconds is None else self.end_seconds
        if not 0 <= start < end:
            times = f"{self.start_seconds} to {self.end_seconds} s"
            raise ValueError(f"a clip must start at 0 s or later and end after its start, got {times}")
        name = self.id
        if not name:
            ends = [f"{seconds:.10g}" if seconds else "" for seconds in (self.start_seconds, self.end_seconds)]
            name = f"{self.path}#t={','.join(ends).rstrip(',')}" if any(ends) else self.path
        object.__setattr__(self, "id", as_text(name))

    @property
    def labels(self) -> dict[str, Any]:
        """What its record says beside its id and caption."""
        return {}


def find_items(
    sources: Iterable[str | os.PathLike[str]],
    recursive: bool = False,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
) -> list[Item]:
    """Items of video files, folders, glob patterns (``**`` for any depth) and manifests.

    Folders give the files right inside them, with ``recursive`` also those of folders below, linked ones too, by name
    and without hidden ones. `COMPANIONS`, and folders below that cannot be read, are left out, and a warning says so.
    ``start_seconds`` and ``end_seconds`` are for items that name no times of their own.

    Raises:
        ValueError: a folder or pattern that holds no files, a wrong manifest, an id that comes twice.
        OSError: a folder that cannot be read.
    """
    items: list[Item] = []
    for named in sources:
        source = os.fspath(named)
        path = Path(source)
        if path.is_dir():
            items += [Item(str(file)) for file in _files_in(path, recursive)]
        elif path.suffix.lower() in MANIFESTS and path.is_file():
            items += read_manifest(path)
        elif glob.has_magic(source) and not path.exists():
            found = sorted(file for file in glob.glob(source, recursive=True) if not os.path.isdir(file))
            if not found:
                raise ValueError(f"no file matches {source}")
            items += map(Item, found)
        else:
            items.append(Item(str(path) if "://" not in source else source))
    if start_seconds is not None or end_seconds is not None:
        items = [
            Item(item.path, item.id if item.id != as_text(item.path) else "", start_seconds, end_seconds)
            if (item.start_seconds, item.end_seconds) == (None, None)
            else item
            for item in items
        ]
    return check_unique(items)


def check_unique(items: Sequence[Item]) -> list[Item]:
    """The items as a list; a ValueError where two have one id."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"item {item.id!r} comes twice; ids must differ")
        seen.add(item.id)
    return list(items)


def _files_in(folder: Path, recursive: bool) -> list[Path]:
    files = sorted(_walk(folder, recursive))
    if companions := [path.name for path in files if path.suffix.lower() in COMPANIONS]:
        log.warning(
            "left out of %s: %d files that are no videos by name, as %s", folder, len(companions), companions[0]
        )
        files = [path for path in files if path.suffix.lower() not in COMPANIONS]
    if not files:
        below = "" if recursive or not any(folder.iterdir()) else " (those in folders below need --recursive)"
        raise ValueError(f"folder {folder} holds no videos{below}")
    return files


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    """Files that are not hidden, each folder's once: by its own name rather than that of a link to it."""
    seen: set[Path] = set()
    folders, links = [folder], deque[Path]()
    while folders or links:
        here = folders.pop() if folders else links.popleft()
        if here.resolve() in seen:
            continue
        seen.add(here.resolve())
        try:
            found = sorted(here.iterdir())
        except PermissionError as error:
            if here == folder:
                raise
            log.warning("left out of %s: folder %s, which cannot be read (%s)", folder, here, error.strerror)
            continue
        for path in found:
            if path.name.startswith("."):
                continue
            if not path.is_dir():
                yield path
            elif recursive:
                (links if path.is_symlink() else folders).append(path)


def read_manifest(path: str | Path) -> list[Item]:
    """Read the items of a manifest: a .txt file with one path per line, or a .jsonl or .csv file with named columns.

    The columns are ``path`` (or ``video``) and, if wanted, ``id``, ``start_seconds`` (or ``start``) and ``end_seconds``
    (or ``end``), as in the data set ``videos``. Paths are relative to the manifest's folder. Blanks around names and
    values are stripped, unless a file has them in its name. A column that nearly matches one of these is an error. A
    warning names the other columns, which are not read.

    Raises:
        ValueError: the file is not a manifest; the message names the line or the column.
    """
    path = Path(path)
    kind = path.suffix.lower()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: list[tuple[int, Any]]
            if kind == ".csv":
                rows = _csv_rows(file)
            elif kind == ".jsonl":
                rows = [(number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip()]
            else:
                names = ((number, line.rstrip("\r\n")) for number, line in enumerate(file, 1))
                rows = [(number, {"path": name}) for number, name in names if name.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"manifest {path} cannot be read as {kind}: {error}") from error
    if not rows:
        raise ValueError(f"manifest {path} names no videos")
    items, unread = [], dict[str, None]()
    for number, row in rows:
        item, others = _item(row, path.parent, f"manifest {path}, line {number}")
        items.append(item)
        unread |= dict.fromkeys(others)
    if unread:
        log.warning("manifest %s: these columns are not read: %s", path, _listed(unread))
    return items


def _csv_rows(file: Iterable[str]) -> list[tuple[int, Any]]:
    """The rows of a CSV file by column name, each with the number of its last line."""
    lines = csv.reader(file, skipinitialspace=True)
    header = next(filter(None, lines), [])
    _match_columns(tuple(header))  # a dict would hide columns that have the same name
    rows: list[tuple[int, Any]] = []
    for line in lines:
        if not any(cell.strip() for cell in line):  # spreadsheets write rows of empty cells
            continue
        if any(cell.strip() for cell in line[len(header) :]):
            raise ValueError(
                f"line {lines.line_num} has {len(line)} values for {len(header)} columns: {line}; a value with a comma"
                " needs quotation marks"
            )
        rows.append((lines.line_num, dict(zip(header, line, strict=False))))
    return rows


def _item(row: Any, folder: Path, where: str) -> tuple[Item, tuple[str, ...]]:
    """The item of a row, and the columns that were not read."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with a path, got {row!r}")
    try:
        columns, others = _match_columns(tuple(row))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    values = {field: row.get(name) for field, name in columns.items()}
    name = values["path"]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: expected a path, got {row!r}")
    if name != name.strip() and not (folder / name).exists():
        name = name.strip()
    times: list[float | None] = []
    for field in ("start_seconds", "end_seconds"):
        value = values.get(field)
        if isinstance(value, str):
            value = value.strip() or None
        try:
            if isinstance(value, bool):
                raise TypeError
            times.append(None if value is None or float(value) == math.inf else float(value))
        except (TypeError, ValueError):
            raise ValueError(f"{where}: {columns[field]} must be a number of seconds, got {value!r}") from None
    identity = values.get("id")
    if isinstance(identity, float) and identity.is_integer():  # pandas makes numbers of a column with gaps floats
        identity = int(identity)
    if identity is None or identity != identity:  # NaN stands for a missing id
        identity = ""
    if not isinstance(identity, str | int | float) or isinstance(identity, bool):
        raise ValueError(f"{where}: id must be text or a number, got {identity!r}")
    try:
        item = Item(name if "://" in name else str(folder / name), str(identity).strip(), *times)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return item, others


# What an item is made of, by the names that a column may have. Only the first name that occurs is read for "path", as
# records of windows have a ``video`` beside it.
_COLUMNS = {
    "path": ("path", "video"),
    "id": ("id",),
    "start_seconds": ("start_seconds", "start"),
    "end_seconds": ("end_seconds", "end"),
}
_ALLOWED = "path (or video), id, start_seconds (or start), end_seconds (or end)"


@lru_cache(maxsize=64)  # the rows of a file mostly have the same columns
def _match_columns(names: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...]]:
    """For each part of an item the column that gives it, and the columns that give none.

    Raises:
        ValueError: no path, two columns for one thing, or a column that may have been meant for one that is not there.
    """
    columns: dict[str, str] = {}
    for field, spellings in _COLUMNS.items():
        given = [name for name in names if name.strip() in spellings]
        if field == "path" and any(name.strip() == "path" for name in given):
            given = [name for name in given if name.strip() == "path"]
        if len(given) > 1:
            raise ValueError(f"the columns {_listed(given)} are for the same thing; give one of them")
        columns |= dict.fromkeys([field] if given else [], *given)
    others = tuple(name for name in names if name not in columns.values())
    if len(names) == 1 and not columns and re.search(r"[;\t|]", names[0]):
        raise ValueError(f"columns must be separated by commas, got {names[0]!r}")
    for name in others:
        if (meant := _nearest(name)) is not None and meant not in columns:
            hint = f"unknown column {name!r}; did you mean {meant!r}? Rename or remove it"
            raise ValueError(f"{hint}; allowed: {_ALLOWED}")
    if "path" not in columns:
        raise ValueError(f"expected a path, but none of the columns {_listed(names)} contains it; allowed: {_ALLOWED}")
    return columns, tuple(name for name in others if name.strip())


_MOMENTS = {"start": "start_seconds", "begin": "start_seconds", "end": "end_seconds", "stop": "end_seconds"}
# words that may stand beside a moment in the name of a time; others make it another thing, such as stop_reason
_UNITS = frozenset(
    (
        *("s", "ms", "sec", "secs", "second", "seconds", "time", "times", "timestamp", "ts", "pts", "frame", "frames"),
        *("clip", "video", "segment", "t", "at", "in"),
    )
)
_WHOLE = {"path": "path", "paths": "path", "video": "path", "id": "id", "from": "start_seconds", "to": "end_seconds"}


def _nearest(name: str) -> str | None:
    """What a column may have been meant for, if it has other capitals, marks or units, or a typing mistake."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    if (meant := _WHOLE.get("".join(words))) is not None:
        return meant
    for place, word in enumerate(words):
        if not _UNITS.issuperset(words[:place] + words[place + 1 :]):
            continue
        for moment, meant in _MOMENTS.items():
            swapped = {moment[:i] + moment[i + 1] + moment[i] + moment[i + 2 :] for i in range(len(moment) - 1)}
            unit = r"(s|ms|secs?|seconds?|times?|timestamps?|ts|pts|frames?)?"
            if re.fullmatch(moment + unit, word) or word in swapped:
                return meant
        if close := difflib.get_close_matches(word, ("start", "begin"), 1, 0.9):
            return _MOMENTS[close[0]]
    close = difflib.get_close_matches("".join(words), ("startseconds", "endseconds"), 1, 0.85)
    return f"{close[0].removesuffix('seconds')}_seconds" if close else None


def _listed(names: Iterable[str], most: int = 8) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")
