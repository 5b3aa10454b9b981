"""Records of captions as files for other programs: COCO results, CSV, Parquet, WebVTT and SRT."""

from __future__ import annotations

import csv
import html
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salcap.hashing import file_sha256
from salcap.records import Record, as_text, read_records
from salcap.strict_json import to_json

SUBTITLES = (".vtt", ".srt")
COLUMNS = ("id", "path", "start_seconds", "end_seconds", "caption", "score", "error_class", "error")


def check_output(
    path: str | Path,
    allowed: tuple[str, ...],
    num_items: int,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str] | int] = (),
) -> Path:
    """Refuse, before any work is done, an output that cannot be written or would destroy a file.

    Args:
        allowed: suffixes, in small letters; the output's may be in capitals.
        inputs: what is read: paths, or descriptors of open files; those that are no files are passed over.

    Raises:
        ValueError: a suffix that is not allowed, missing folder, a file that is read, one (other than records, which a
            run goes on with) that exists, without ``overwrite``, or subtitles of several items.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in allowed:
        raise ValueError(f"output {path} has suffix {path.suffix!r}, allowed: {', '.join(allowed)}")
    if suffix in SUBTITLES and num_items != 1:
        raise ValueError(f"{suffix} subtitles belong to one video, got {num_items}; use .jsonl")
    if not path.parent.is_dir():
        raise ValueError(f"output folder {path.parent} does not exist")
    goes_on = suffix == ".jsonl" and not overwrite
    for written in (path, _partial(path)):
        if written.exists() and not goes_on and _is_one_of(written, inputs):
            raise ValueError(f"output {path} would overwrite {written}, which is read; name another")
    if path.exists() and not overwrite and not goes_on:
        raise ValueError(f"output {path} exists; name another or pass --overwrite")
    if suffix == ".parquet":
        import_pyarrow()
    return path


def _is_one_of(path: Path, inputs: Iterable[str | os.PathLike[str] | int]) -> bool:
    own = path.stat()
    for each in inputs:
        try:
            found = os.stat(each)
        except (OSError, ValueError):  # a URL, a pattern, a name that no file can have
            continue
        if os.path.samestat(own, found):
            return True
    return False


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which takes its place if nothing is raised, and is removed otherwise."""
    partial = _partial(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def export_records(records: Iterable[Record], path: str | Path) -> None:
    """Write records in the format of the path's suffix (one of ``EXPORTS``, or in capitals), all or nothing.

    COCO results and subtitles leave out what failed.
    """
    path = Path(path)
    with whole_file(path) as partial:
        EXPORTS[path.suffix.lower()](records, partial)


def export_file(records: Path, path: Path) -> None:
    """Export a file of records, and note beside it, in ``captions.jsonl.exports``, what was written."""
    notes, name = _read_notes(records), _name_beside(records, path)
    with whole_file(path) as partial:
        EXPORTS[path.suffix.lower()](read_records(records), partial)
        notes[name] = [*notes.get(name, [])[-1:], file_sha256(partial)]  # a kill may leave the former one there
        with whole_file(_notes_path(records)) as partial_notes:
            partial_notes.write_text(to_json(notes, indent=1) + "\n", encoding="utf-8")


def check_export(path: Path, records: Path, overwrite: bool) -> bool:
    """Whether an export that is there may be replaced: where it is as `export_file` wrote it.

    Raises:
        ValueError: it is something else, and not to ``overwrite``.
    """
    if overwrite or not path.exists():
        return overwrite
    if path.is_file() and file_sha256(path) in _read_notes(records).get(_name_beside(records, path), []):
        return True
    raise ValueError(f"output {path} exists, and is not as it was exported from {records}; name another, or delete it")


def _notes_path(records: Path) -> Path:
    return records.with_name(f"{records.name}.exports")


def _read_notes(records: Path) -> dict[str, list[str]]:
    """SHA-256 of what was exported from a file of records, by name."""
    try:
        notes: dict[str, list[str]] = json.loads(_notes_path(records).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return notes


def _name_beside(records: Path, path: Path) -> str:
    return as_text(os.path.relpath(path, records.parent))


def _coco(records: Iterable[Record], path: Path) -> None:
    """A list of ``image_id`` and ``caption``; ids that are whole numbers become such, as COCO's are."""
    said = [record for record in records if record["caption"] is not None]
    results = [{"image_id": _number_or_name(record["id"]), "caption": record["caption"]} for record in said]
    path.write_text(to_json(results, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")


def _number_or_name(name: str) -> int | str:
    return int(name) if name.isdecimal() and str(int(name)) == name else name


def _csv(records: Iterable[Record], path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([_inert(record.get(name)) for name in COLUMNS] for record in records)


def _inert(cell: Any) -> Any:
    """Text that a spreadsheet would take for a formula, quoted with the apostrophe that spreadsheets hide (OWASP)."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


def _parquet(records: Iterable[Record], path: Path) -> None:
    arrow, parquet = import_pyarrow()
    kinds = {name: arrow.string() for name in COLUMNS} | dict.fromkeys(
        ("start_seconds", "end_seconds", "score"), arrow.float64()
    )
    rows = [{name: to_arrow(record.get(name)) for name in COLUMNS} for record in records]
    parquet.write_table(arrow.Table.from_pylist(rows, arrow.schema(list(kinds.items()))), path)


def to_arrow(value: Any) -> Any:
    """A value of a record as Arrow, whose strings are all Unicode, takes it."""
    if isinstance(value, str):
        return as_text(value)
    return [to_arrow(each) for each in value] if isinstance(value, list) else value


def import_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet, or an ImportError that names the extra to install."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'salcap[parquet]'") from error
    return pyarrow, pyarrow.parquet


def _vtt(records: Iterable[Record], path: Path) -> None:
    said = _in_time(records)
    cues = (f"{_cue_times(r, '.')}\n{html.escape(_one_line(r), quote=False)}\n\n" for r in said)
    path.write_text("WEBVTT\n\n" + "".join(cues), encoding="utf-8")


def _srt(records: Iterable[Record], path: Path) -> None:
    said = enumerate(_in_time(records), 1)
    cues = (f"{number}\n{_cue_times(r, ',')}\n{_one_line(r)}\n\n" for number, r in said)
    path.write_text("".join(cues), encoding="utf-8")


def _in_time(records: Iterable[Record]) -> list[Record]:
    """What was said, in the order of its times: a window that was tried again has its record at the end."""
    return sorted(
        (record for record in records if _one_line(record)), key=lambda record: record["start_seconds"] or 0.0
    )


def _one_line(record: Record) -> str:
    """The caption without line breaks: an empty line would end its cue."""
    return " ".join((record["caption"] or "").split())


def _cue_times(record: Record, point: str) -> str:
    start = record["start_seconds"] or 0.0
    end = max(record["end_seconds"] or 0.0, start + 0.001)
    return f"{clock(start, point)} --> {clock(end, point)}"


def clock(seconds: float, point: str) -> str:
    """Hours, minutes and seconds as subtitles write them, thousandths after ``point``."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


EXPORTS: dict[str, Callable[[Iterable[Record], Path], None]] = {
    ".csv": _csv,
    ".json": _coco,
    ".parquet": _parquet,
    ".srt": _srt,
    ".vtt": _vtt,
}
