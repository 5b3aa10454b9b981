"""RecordFile: append-only JSON lines of a run that may be killed at any time and goes on without loss or duplicate."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from salcap.strict_json import to_json

log = logging.getLogger(__name__)

Record = dict[str, Any]


class SettingsError(ValueError):
    """Records that are there were made with other settings than a run's, or by no run."""


class WindowTally:
    """Which items, cut into windows, have a record for each of them.

    The records of windows have the keys ``video``, the item's id, ``window``, a number from 1, and ``is_last_window``.
    """

    def __init__(self) -> None:
        self._ids: dict[str, dict[int, str]] = {}
        self._last: dict[str, int] = {}

    def add(self, record: Record) -> None:
        """Count a record; one that is of no window is passed over."""
        if "video" in record:
            self._ids.setdefault(record["video"], {})[record["window"]] = record["id"]
            if record["is_last_window"]:
                self._last[record["video"]] = record["window"]

    def __contains__(self, item: str) -> bool:
        return self.ids(item) is not None

    def ids(self, item: str) -> list[str] | None:
        """Ids of the records of an item's windows, in order; None as long as some are missing."""
        found = self._ids.get(item, {})
        return [found[number] for number in sorted(found)] if self._last.get(item) == len(found) else None


class RecordFile:
    """One record for each item, or each of its windows, by its ``id``; a failed one has an ``error_class``.

    Beside ``captions.jsonl`` lies ``captions.jsonl.settings``: the settings of the run, and the lock that keeps a
    second run away while this one works. Nothing is replaced or made before the first record is written.

    Args:
        settings: what decides the records, JSON-ready.
        overwrite: replace an existing file instead of going on with it.
        retry_failed: forget the failures of earlier runs.

    Attributes:
        outcomes: id -> None, or the class of its error, of every record.
        windows: of the items that were cut into windows.

    Raises:
        ValueError: the file is another run's at this moment, or was made with other settings, or is no run's at all.
        OSError: the file or its folder cannot be written.
    """

    def __init__(
        self, path: str | Path, settings: dict[str, Any], overwrite: bool = False, retry_failed: bool = False
    ) -> None:
        self.path, self.settings = Path(path), json.loads(to_json(settings))
        self.outcomes: dict[str, str | None] = {}
        self.windows = WindowTally()
        self._file: int | None = None
        self._size = 0
        self._fresh = overwrite or not self.path.exists()
        self._lock, _ = _locked(self.path)
        try:
            if not self._fresh:
                check_settings(self.path, self.settings)
                self._go_on(retry_failed)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and give it free to other runs; settings without a record are removed."""
        if self._file is not None:
            os.close(self._file)
        if not os.fstat(self._lock).st_size:  # nothing was begun
            settings_path(self.path).unlink(missing_ok=True)
        os.close(self._lock)

    def write(self, record: Record) -> None:
        """Append one record, whole or not at all.

        Raises:
            OSError: it could not be written, as on a full disk; what was written before stays.
        """
        if self._file is None:
            self._begin()
        assert self._file is not None
        line = to_line(record)
        try:
            _write_whole(self._file, line, self._size)
        except OSError as error:
            kept = f"its {len(self.outcomes)} records are whole, and the same command goes on with them"
            raise OSError(error.errno, f"cannot write {self.path}: {os.strerror(error.errno or 0)}; {kept}") from error
        self._size += len(line)
        self._note(record)

    def _note(self, record: Record) -> None:
        self.outcomes[record["id"]] = record["error_class"]
        self.windows.add(record)

    def sync(self) -> None:
        """Have the system write to the disk itself, against loss of power."""
        if self._file is not None:
            os.fsync(self._file)

    def _begin(self) -> None:
        if self._fresh:
            self.path.unlink(missing_ok=True)
            _write_settings(self._lock, self.settings, self.path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def _go_on(self, retry_failed: bool) -> None:
        """Take up the records that there are, without a last one that was torn."""
        with self.path.open("rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._size += len(line)
            file.truncate(self._size)
        for record in read_records(self.path):
            self._note(record)
        failed = {item for item, error in self.outcomes.items() if error is not None}
        if retry_failed and failed:
            kept = (record for record in read_records(self.path) if record["id"] not in failed)
            self._size = _replace_records(self.path, kept)
            self.outcomes, self.windows = {}, WindowTally()
            for record in read_records(self.path):
                self._note(record)


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of a file, one at a time.

    Raises:
        ValueError: a line that is no record; the message names it.
    """
    with Path(path).open(encoding="utf-8") as file:
        yield from parse_records(file, path)


def parse_records(lines: Iterable[str], name: str | Path) -> Iterator[Record]:
    """As `read_records`, of lines; ``name`` is for the message."""
    for number, line in enumerate(lines, 1):
        yield _parse(line, number, name)


def _parse(line: str | bytes, number: int, name: str | Path) -> Record:
    try:
        record: Record = json.loads(line)
        if not isinstance(record["id"], str) or "error_class" not in record:
            raise KeyError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{name}, line {number} is no record of a run: {line[:80]!r}") from None
    return record


def to_line(record: Record) -> bytes:
    """A record as a line of JSON, with its end of line; of what is no Unicode it has JSON's escapes."""
    return (to_json(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def as_text(name: str) -> str:
    """A file's name as any program can write it: bytes that are no UTF-8 are spelt out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def merge_records(parts: Sequence[Path], path: Path, ids: Collection[str]) -> bool:
    """Write the records of a run's parts to one file, in the order of the items' ``ids``, once all are there.

    Any part may call it when it is done; the last one finds all complete.

    Returns:
        False where a part still lacks records, or another process is merging.

    Raises:
        SettingsError: parts of different settings, or of none.
        ValueError: a line that is no record.
    """
    if not all(part.exists() for part in parts):
        return False
    settings = _read_settings(parts[0])
    places: dict[str, tuple[int, int]] = {}
    windows = WindowTally()
    files = [part.open("rb") for part in parts]
    try:
        for number, (part, file) in enumerate(zip(parts, files, strict=True)):
            check_settings(part, settings)
            at = 0
            for count, line in enumerate(file, 1):
                if line.endswith(b"\n"):  # another process may be writing
                    record = _parse(line, count, part)
                    places[record["id"]] = (number, at)
                    windows.add(record)
                at += len(line)
        ids = [name for item in ids for name in windows.ids(item) or [item]]
        if not places.keys() >= set(ids):
            return False
        try:
            lock, is_alone = _locked(path)
        except ValueError:
            return False

        def in_order() -> Iterator[Record]:
            for item in ids:
                number, at = places[item]
                files[number].seek(at)
                yield json.loads(files[number].readline())

        try:
            _replace_records(path, in_order(), "" if is_alone else f".{uuid4().hex}")
            _write_settings(lock, settings, path)
        finally:
            os.close(lock)
        return True
    finally:
        for file in files:
            file.close()


def count_errors(outcomes: Collection[str | None]) -> dict[str, int]:
    """How many items failed by class of error, the most frequent first."""
    return dict(Counter(error for error in outcomes if error is not None).most_common())


def _replace_records(path: Path, records: Iterator[Record], mark: str = "") -> int:
    """Put records in a file's place at once; returns its size.

    Args:
        mark: goes into the name of the partial file, if another process may be writing one too.
    """
    partial = path.with_name(f"{path.name}{mark}.partial")
    try:
        with partial.open("wb") as file:
            for record in records:
                file.write(to_line(record))
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return size


def settings_path(path: Path) -> Path:
    """Where the settings of a record file are kept: beside it."""
    return path.with_name(f"{path.name}.settings")


def _locked(path: Path) -> tuple[int, bool]:
    """The settings file of a record file, open and locked, and whether the file system could lock it.

    Raises:
        ValueError: another run has locked it.
    """
    import fcntl

    file = os.open(settings_path(path), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter is how some network file systems say the same
        os.close(file)
        raise ValueError(f"another run is writing {path} at this moment") from None
    except OSError as error:  # Lustre without the mount option flock, NFS without a lock daemon, some FUSE
        log.warning(
            "the file system of %s has no locks (%s): make sure yourself that no second run writes this file",
            path,
            error.strerror,
        )
        return file, False
    return file, True


def _write_settings(file: int, settings: dict[str, Any], path: Path) -> None:
    os.ftruncate(file, 0)
    try:
        _write_whole(file, to_json(settings, indent=1).encode() + b"\n", 0)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {settings_path(path)}: {os.strerror(error.errno or 0)}") from error


def _write_whole(file: int, data: bytes, size: int) -> None:
    """Write behind the ``size`` bytes that a file has, all or nothing."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.pwrite(file, left, size + len(data) - len(left)) :]
    except OSError:
        os.ftruncate(file, size)
        raise


def _read_settings(path: Path) -> dict[str, Any]:
    stored = settings_path(path)
    try:
        settings: dict[str, Any] = json.loads(stored.read_bytes())
    except (FileNotFoundError, ValueError):
        raise SettingsError(
            f"output {path} exists, and without its {stored.name} no run can go on with it; name another, or "
            "delete or overwrite it"
        ) from None
    return settings


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with a record file that was made with other settings, see `compare_settings`."""
    compare_settings(path, _read_settings(path), settings)


def compare_settings(output: Path | str, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to go on with an output that was made with other settings.

    Raises:
        SettingsError: the message names the first that differs.
    """
    missing = object()
    for name in sorted(stored.keys() | settings.keys()):
        before, now = stored.get(name, missing), settings.get(name, missing)
        if before != now:
            words = ", now ".join("none" if value is missing else repr(value) for value in (before, now))
            advice = "name another, or delete or overwrite it"
            raise SettingsError(f"output {output} was made with other settings ({name}: {words}); {advice}")
