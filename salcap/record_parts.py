"""RecordParts: records in a folder of part files, as JSON lines or Parquet, on any file system that fsspec reaches.

Object stores append to no file, so records are gathered and put there a part at a time.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import fsspec

from salcap.caption import Caption
from salcap.outputs import import_pyarrow, to_arrow
from salcap.records import Record, compare_settings, parse_records, to_line
from salcap.strict_json import to_json

SUFFIXES = (".jsonl", ".parquet")
PART_RECORDS, PART_SECONDS = 1000, 60.0  # a part is written when it holds so many, or when its first is so old


class RecordParts:
    """The records of a run that is resumed as one into a `RecordFile` is.

    The folder holds ``part-000000.jsonl`` (or ``.parquet``) and so on, each whole from the moment it is there, and the
    run's settings in ``_settings.json``. A run that finds the part it is about to write ends: another one is at work.

    Args:
        folder: path or URL (``s3://bucket/captions.parquet``); its suffix is the parts' format.

    Attributes:
        outcomes: id -> None, or the class of its error, of every record.

    Raises:
        ValueError: another suffix, or a file in the folder's place.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        self._files, self._root, self._suffix = _open_folder(self.folder)
        self.outcomes: dict[str, str | None] = {}
        self._gathered: list[Record] = []
        self._since = 0.0
        self._next = 0

    def begin(self, settings: dict[str, Any], overwrite: bool = False, retry_failed: bool = False) -> None:
        """Take up the records that there are.

        Args:
            settings: what decides the records, JSON-ready.
            overwrite: delete them instead.
            retry_failed: delete those of failures.

        Raises:
            ValueError: parts that were made with other settings, or by no run.
            OSError: the folder cannot be written.
        """
        settings = json.loads(to_json(settings))
        parts = _list_parts(self._files, self._root, self._suffix)
        if overwrite:
            for part in parts:
                self._files.rm_file(part)
            parts = []
        if parts:
            compare_settings(self.folder, self._read_settings(), settings)
        self._files.makedirs(self._root, exist_ok=True)
        self._files.pipe_file(f"{self._root}/_settings.json", to_json(settings, indent=1).encode() + b"\n")
        for part in parts:
            self.outcomes.update(self._take_up(part, retry_failed))
        self._next = max((int(_stem(part).removeprefix("part-")) for part in parts), default=-1) + 1

    def __enter__(self) -> RecordParts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None or not issubclass(kind, OSError):  # one that came of writing comes again
            self.flush()

    def add(self, record: Record) -> None:
        """Take a record, and write a part where it is time.

        Raises:
            OSError, ValueError: see `flush`.
        """
        if not self._gathered:
            self._since = time.monotonic()
        self._gathered.append(record)
        self.outcomes[record["id"]] = record["error_class"]
        if len(self._gathered) >= PART_RECORDS or time.monotonic() - self._since >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the records gathered so far.

        Raises:
            OSError: they cannot be written; the parts written before are whole.
            ValueError: another run has written the part.
        """
        if not self._gathered:
            return
        path = f"{self._root}/part-{self._next:06d}{self._suffix}"
        self._files.invalidate_cache(self._root)
        if self._files.exists(path):
            raise ValueError(f"another run is writing {self.folder} at this moment: it has written {path}")
        self._put(path, self._gathered)
        self._gathered, self._next = [], self._next + 1

    def _put(self, path: str, records: Sequence[Record]) -> None:
        """Put a part in its place at once."""
        partial = f"{self._root}/.{path.rsplit('/', 1)[1]}.partial"
        try:
            self._files.pipe_file(partial, _WRITERS[self._suffix](records))
            self._files.mv(partial, path)
        except OSError as error:
            kept = "the parts before are whole, and the same call goes on with them"
            raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}; {kept}") from error

    def _read_settings(self) -> dict[str, Any]:
        try:
            settings: dict[str, Any] = json.loads(self._files.cat_file(f"{self._root}/_settings.json"))
        except (FileNotFoundError, ValueError):
            raise ValueError(
                f"output {self.folder} holds parts, and without its _settings.json no run can go on with them; name "
                "another, or delete or overwrite it"
            ) from None
        return settings

    def _take_up(self, part: str, retry_failed: bool) -> dict[str, str | None]:
        records = list(_READERS[self._suffix](self._files, part, None if retry_failed else ["id", "error_class"]))
        kept = [record for record in records if not retry_failed or record["error_class"] is None]
        if kept and len(kept) < len(records):
            self._put(part, kept)
        elif not kept:
            self._files.rm_file(part)
        return {record["id"]: record["error_class"] for record in kept}


def read_parts(folder: str | os.PathLike[str]) -> Iterator[Record]:
    """The records in a folder of parts, in the order in which they were written.

    Raises:
        ValueError: no such folder, or a part that is none of a run's.
    """
    files, root, suffix = _open_folder(os.fspath(folder))
    parts = _list_parts(files, root, suffix)
    if not parts:
        raise ValueError(f"{folder} holds no parts of records")
    for part in parts:
        yield from _READERS[suffix](files, part, None)


def _open_folder(folder: str) -> tuple[Any, str, str]:
    files, root = fsspec.core.url_to_fs(folder)
    suffix = os.path.splitext(root)[1]
    if suffix not in SUFFIXES:
        raise ValueError(f"output {folder} has suffix {suffix!r}, allowed: {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        import_pyarrow()
    if files.isfile(root):
        raise ValueError(f"output {folder} is a file; name a folder for parts, or one that does not exist")
    return files, root, suffix


def _list_parts(files: Any, root: str, suffix: str) -> list[str]:
    if not files.isdir(root):
        return []
    found = (str(path) for path in files.ls(root, detail=False))
    return sorted(path for path in found if path.endswith(suffix) and _stem(path).startswith("part-"))


def _stem(path: str) -> str:
    return os.path.splitext(path.rsplit("/", 1)[1])[0]


def _to_lines(records: Sequence[Record]) -> bytes:
    return b"".join(map(to_line, records))


def _read_lines(files: Any, path: str, columns: list[str] | None) -> Iterator[Record]:
    with files.open(path, "r", encoding="utf-8") as file:
        yield from parse_records(file, path)


def _to_parquet(records: Sequence[Record]) -> bytes:
    arrow, parquet = import_pyarrow()
    rows = [{name: to_arrow(value) for name, value in json.loads(to_line(record)).items()} for record in records]
    buffer = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows, _schema(arrow)), buffer)
    return buffer.getvalue()


def _read_parquet(files: Any, path: str, columns: list[str] | None) -> Iterator[Record]:
    _, parquet = import_pyarrow()
    with files.open(path, "rb") as file:
        records = parquet.read_table(file, columns=columns).to_pylist()
    for record in records:
        maps = {name: dict(record[name]) for name in ("timings",) if record.get(name) is not None}  # read as pairs
        yield record | maps


def _schema(arrow: Any) -> Any:
    """The columns of a record: its id, and what `Caption.to_dict` gives."""
    simple = {str: arrow.string(), float: arrow.float64(), int: arrow.int64()}

    def kind(hint: Any) -> Any:
        if hint in simple:
            return simple[hint]
        inner = [kind(part) for part in get_args(hint) if part not in (NoneType, Ellipsis)]
        if get_origin(hint) is dict:
            return arrow.map_(*inner)
        return arrow.list_(inner[0]) if get_origin(hint) is tuple else inner[0]  # X | None is X: all may be null

    kinds = get_type_hints(Caption)
    names = Caption(text=None).to_dict()
    return arrow.schema([("id", arrow.string()), *((name, kind(kinds.get(name, str))) for name in names)])


_WRITERS = {".jsonl": _to_lines, ".parquet": _to_parquet}
_READERS = {".jsonl": _read_lines, ".parquet": _read_parquet}
