"""What to caption: items from folders, glob patterns and manifests (.txt, .jsonl, .csv)."""

from __future__ import annotations

import csv
import glob
import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salcap.records import as_text

MANIFESTS = (".txt", ".jsonl", ".csv")
COMPANIONS = (  # what lies beside videos, our own files too, and is none
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
        elif path.suffix in MANIFESTS and path.is_file():
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
    """Items of a file: .txt with a path a line; .jsonl or .csv with ``path`` and, where they are given, ``id``,
    ``start_seconds`` and ``end_seconds``. Other keys are left alone; paths are relative to the manifest's folder.

    Raises:
        ValueError: not such a file; the message names the line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: list[tuple[int, Any]]
            if path.suffix == ".csv":
                reader = csv.DictReader(file)
                rows = [(reader.line_num, row) for row in reader]
            elif path.suffix == ".jsonl":
                rows = [(number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip()]
            else:
                names = ((number, line.rstrip("\r\n")) for number, line in enumerate(file, 1))
                rows = [(number, {"path": name}) for number, name in names if name.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"manifest {path} cannot be read as {path.suffix}: {error}") from error
    if not rows:
        raise ValueError(f"manifest {path} names no videos")
    return [_item(row, path.parent, f"manifest {path}, line {number}") for number, row in rows]


def _item(row: Any, folder: Path, where: str) -> Item:
    name = row.get("path") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: expected a path, got {row!r}")
    times: list[float | None] = []
    for key in ("start_seconds", "end_seconds"):
        value = row.get(key)
        try:
            times.append(None if value in (None, "") else float(value))
        except (TypeError, ValueError):
            raise ValueError(f"{where}: {key} must be a number of seconds, got {value!r}") from None
    try:
        identity = row.get("id")
        return Item(name if "://" in name else str(folder / name), "" if identity is None else str(identity), *times)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
