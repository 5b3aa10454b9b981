"""What all sets of captioned videos share: their items, the hash of a split, and where files are looked for."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from salcap.config import check_choice

# of files that are taken for videos, whatever their case; of two files with one name the earlier suffix wins
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp", ".ogv"),
    ".gif",
)


@dataclass(frozen=True)
class CaptionedItem:
    """One clip (or photograph) with what people wrote of it.

    Attributes:
        path: None where no file was found.
        captions: the references; a copy of a set may have none for some of its clips.
        start_seconds, end_seconds: the part of the file that the captions speak of; None for its start, for its end.
    """

    id: str
    path: Path | None
    captions: tuple[str, ...]
    start_seconds: float | None = None
    end_seconds: float | None = None

    @property
    def fault(self) -> str | None:
        """Why the item cannot be captioned and scored, None where it can."""
        if not self.captions:
            return "no reference captions"
        if self.path is None:
            return "no video file"
        start, end = self.start_seconds or 0.0, self.end_seconds
        if start < 0 or (end is not None and end <= start):
            return f"no time from {start:g} to {end if end is None else f'{end:g}'} s"
        return None


@dataclass(frozen=True)
class CaptionedSet:
    """One split of a data set, as `create_set` makes it.

    Attributes:
        items: all of the split, or its first ones, those that are missing included.
        sha256: `split_sha256` of the whole split.
        times_sha256: hash of its clips' times.
        num_in_split: items of the whole split.
        stills: whether the files are photographs, each a clip of one frame.
        untrimmed: whether the files are taken for the uncut sources, of which each clip is a part.
    """

    name: str
    split: str | None
    items: tuple[CaptionedItem, ...]
    sha256: str
    times_sha256: str
    num_in_split: int
    stills: bool = False
    untrimmed: bool = False

    @property
    def missing(self) -> dict[str, str]:
        """Ids of the items that cannot be scored -> why."""
        return {item.id: item.fault for item in self.items if item.fault is not None}

    @property
    def present(self) -> tuple[CaptionedItem, ...]:
        """The items that are not missing."""
        return tuple(item for item in self.items if item.fault is None)

    def resolve_num_frames(self, num_frames: int | None, frames: str = "uniform") -> int | None:
        """How many frames of a clip to look at: of a photograph one.

        Raises:
            ValueError: a choice of frames for photographs.
        """
        if self.stills and (num_frames not in (None, 1) or frames != "uniform"):
            raise ValueError(f"{self.name} holds photographs, clips of one frame: num_frames and frames do nothing")
        return 1 if self.stills else num_frames

    def first(self, count: int | None) -> CaptionedSet:
        """The set with its first items only; None for all."""
        return replace(self, items=self.items[:count])


def create_set(
    name: str, split: str | None, items: Iterable[CaptionedItem], *, stills: bool = False, untrimmed: bool = False
) -> CaptionedSet:
    """Make a set of all items of a split.

    Raises:
        ValueError: no items, two with the same id, or a caption that is no text.
    """
    items = tuple(items)
    if not items:
        raise ValueError(f"{name}, split {split}: no items")
    if odd := [item for item in items if not all(isinstance(caption, str) for caption in item.captions)]:
        raise ValueError(f"{name}: the captions of {odd[0].id!r} must be strings, got {odd[0].captions}")
    if double := [key for key, count in Counter(item.id for item in items).items() if count > 1]:
        raise ValueError(f"{name}, split {split}: {len(double)} ids stand for several items: {double[:3]}")
    times = json.dumps(sorted((item.id, item.start_seconds, item.end_seconds) for item in items)).encode()
    hashes = split_sha256(items), hashlib.sha256(times).hexdigest()
    return CaptionedSet(name, split, items, *hashes, len(items), stills, untrimmed)


def describe_missing(missing: Mapping[str, str], dataset: CaptionedSet) -> str:
    """How many items are missing and why, the first of them by name."""
    some = "; ".join(f"{key}: {why}" for key, why in list(missing.items())[:3])
    more = "; ..." if len(missing) > 3 else ""
    return f"{len(missing)} of {len(dataset.items)} items of {dataset.name} are missing: {some}{more}"


def split_sha256(items: Iterable[CaptionedItem]) -> str:
    """Hash of a split: of the JSON ``[[id, [caption, ...]], ...]``, ids and each one's captions sorted."""
    return captions_sha256({item.id: item.captions for item in items})


def captions_sha256(captions: Mapping[str, Any]) -> str:
    """SHA-256 of id -> caption or captions, as UTF-8 JSON of sorted pairs without spaces; order does not matter."""
    pairs = [[key, value if isinstance(value, str) else sorted(value)] for key, value in sorted(captions.items())]
    # a lone surrogate, which JSON files may hold, has no UTF-8
    text = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_captions(captions: Any, where: str) -> tuple[str, ...]:
    """The captions of one clip.

    Raises:
        ValueError: no list of strings.
    """
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"{where}: captions must be a list of strings, got {captions!r}")
    return tuple(captions)


def check_path(path: Any, kind: str, folder: Path, where: str) -> str:
    """A path that may be joined to a folder.

    Raises:
        ValueError: no text, or one that leads out of the folder.
    """
    windows = PureWindowsPath(path if isinstance(path, str) else "")  # splits at both kinds of separators
    leads_out = ".." in windows.parts or bool(windows.anchor)
    if not isinstance(path, str) or not path or leads_out or PurePosixPath(path).is_absolute() or "\0" in path:
        raise ValueError(f"{where}: {kind} must be a path inside {folder}, got {path!r}")
    return path


def check_split(dataset: str, split: str | None, allowed: Sequence[str]) -> str:
    """Raise a ValueError unless ``split`` is given, and one that the set has."""
    if split is None:
        raise ValueError(f"{dataset} needs a split, allowed: {', '.join(allowed)}")
    check_choice(f"split of {dataset}", split, allowed)
    return split


def check_id(name: Any, where: str | Path) -> str:
    """An id that may become part of a path: it must not lead out of the folder it is looked for in.

    Raises:
        ValueError: no text, empty, "." or "..", or with a separator, a drive or a NUL in it.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0") or PureWindowsPath(name).drive:
        raise ValueError(f"{where}: an id must be a plain file name without separators, got {name!r}")
    return name


def find_file(root: Path, names: Sequence[str], folders: Sequence[str] = (".",)) -> Path | None:
    """The first of ``names`` that is a file in the first of ``folders`` under ``root``, plain before .gz."""
    for folder in folders:
        for name in names:
            for path in (root / folder / name, root / folder / f"{name}.gz"):
                if path.is_file():
                    return path
    return None


def index_videos(root: Path, folders: Sequence[str]) -> dict[str, Path]:
    """Video files right inside ``folders`` under ``root``: name without suffix -> path; earlier folders win.

    Raises:
        FileNotFoundError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    found: dict[str, Path] = {}
    for folder in folders:
        inside = (root / folder).iterdir() if (root / folder).is_dir() else ()
        videos = [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
        for path in sorted(videos, key=lambda path: (VIDEO_SUFFIXES.index(path.suffix.lower()), path.name)):
            found.setdefault(path.stem, path)
    return found


def read_text(path: Path) -> str:
    """Content of a text file, gzipped or not.

    Raises:
        ValueError: it is not UTF-8, or a damaged archive.
    """
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Where in a file each line of JSON stands, for messages, and what it holds; empty lines are passed over.

    Raises:
        ValueError: a line that is not JSON, or as `read_text`.
    """
    for number, text in enumerate(read_text(path).split("\n"), 1):  # a caption may hold other ends of lines
        if text.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} is not JSON: {error}") from error


def read_json(path: Path) -> Any:
    """Content of a JSON file, gzipped or not.

    Raises:
        ValueError: it is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
