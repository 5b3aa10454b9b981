"""Captions as they come, kept in a file, so that an evaluation that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

Record = dict[str, Any]  # of `Caption.to_dict`


class CaptionLog:
    """JSON lines, only ever added to: the settings of each row, then ``{"row", "id", ...}`` for every caption.

    Args:
        path: None keeps nothing.
        settings: of each row; JSON-ready.

    Attributes:
        done: of each row, id -> record of the captions that the file held; failures are left out, to be tried again.

    Raises:
        ValueError: the file is of other settings, or no such file.
    """

    def __init__(self, path: Path | None, settings: Sequence[Mapping[str, Any]]) -> None:
        self._file: TextIO | None = None
        self.done: list[dict[str, Record]] = [{} for _ in settings]
        if path is None:
            return
        header = json.loads(json.dumps({"settings": list(settings)}))
        if path.exists():
            self._read(path, header["settings"])
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._write([header])

    @classmethod
    @contextmanager
    def opened(cls, path: Path | None, settings: Sequence[Mapping[str, Any]]) -> Iterator[CaptionLog]:
        """A log that is closed in the end."""
        log = cls(path, settings)
        try:
            yield log
        finally:
            if log._file is not None:
                log._file.close()

    def add(self, row: int, records: Mapping[str, Record]) -> None:
        """Keep a batch of records, id -> record, at once."""
        self._write([{"row": row, "id": key, **record} for key, record in records.items()])

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self._file is not None:
            self._file.write("".join(json.dumps(line) + "\n" for line in lines))
            self._file.flush()

    def _read(self, path: Path, settings: list[dict[str, Any]]) -> None:
        """Take up what the file holds; a last line that a kill cut off is cut away."""
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        changes: list[str] = []
        try:
            for number, line in enumerate(map(json.loads, whole.splitlines())):
                if number == 0:
                    changes = _differences(line["settings"], settings)
                elif not changes:
                    row, key = line.pop("row"), line.pop("id")
                    if line["caption"] is not None:
                        self.done[row][key] = line
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}; delete it to start anew") from error
        if changes:
            raise ValueError(
                f"{path} is of other settings: {'; '.join(changes)}. Name another output, or delete that file"
            )
        if len(whole) < len(raw):
            with path.open("r+b") as file:
                file.truncate(len(whole))


def _differences(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """What two runs' settings differ in, in words."""
    if len(before) != len(now):
        return [f"{len(before)} rows before, {len(now)} now"]
    found = {
        f"{key} {old.get(key)!r} before, {new.get(key)!r} now"
        for old, new in zip(before, now, strict=True)
        for key in old.keys() | new.keys()
        if old.get(key) != new.get(key)
    }
    return sorted(found)
