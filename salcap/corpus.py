"""caption_corpus: many videos, a record of each, whatever happens on the way.

```
items ─ windows.py ─> clips ─ reading.py ─> frames ─ batch_captioner.py ─> captions ─ records.py
        (both in processes, ahead of the model)     (two batches at once)
```
"""

from __future__ import annotations

import logging
import math
import os
import reprlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salcap.batch_captioner import BatchCaptioner
from salcap.datasets.captioned_videos import CaptionedSet
from salcap.frames import Frames
from salcap.manifest import Item, check_unique
from salcap.reading import ReaderPool
from salcap.records import (
    Record,
    RecordFile,
    SettingsError,
    check_settings,
    count_errors,
    merge_records,
    read_records,
)
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.stills import read_still
from salcap.video import DEFAULT_LIMITS, VideoLimits, read_frames
from salcap.windows import Windows, check_windows, item_windows

TIME_LIMIT = 300.0  # seconds for the reading of one clip
WINDOWS_AHEAD = 32  # windows that are found before they are to be read

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusSummary:
    """How a run ended.

    Attributes:
        num_items: of this run's shard, those of earlier runs on its output among them; of all shards, where it merged
            them. Of items that are cut into windows, the windows.
        num_new: captioned or failed in this run.
        errors: how many failed, by class of error.
        records: the file with the records of all shards; None without output, and as long as other shards lack some. Of
            `salcap.ray.caption_dataset` the folder.
    """

    num_items: int
    num_new: int
    errors: dict[str, int]
    records: Path | str | None

    @property
    def num_failed(self) -> int:
        """Items that failed, of whatever class of error."""
        return sum(self.errors.values())


def caption_corpus(
    captioner: SaliencyCaptioner | Callable[[], SaliencyCaptioner],
    items: Sequence[Item | str | os.PathLike[str]] | CaptionedSet,
    output: str | os.PathLike[str] | None = None,
    *,
    num_frames: int | None = None,
    frames: str = "uniform",
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    num_streams: int | None = None,
    windows: Windows | None = None,
    num_workers: int | None = None,
    time_limit: float | None = None,
    limits: VideoLimits = DEFAULT_LIMITS,
    reader: Callable[..., Frames] = read_frames,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    retry_failed: bool = False,
    lessen: bool = True,
    min_score: float | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[Record, int, int], object] = lambda record, done, total: None,
    **generation: Any,
) -> CorpusSummary:
    """Caption many videos, and go on where an earlier run on the same output was ended, however it was.

    While the model works on one batch, other processes read the next clips. Each clip gets one record, in the order of
    ``items``, with the keys of `Caption.to_dict` and its ``id``; their ``read_ms`` is the time spent waiting for
    frames. A batch that is out of memory is halved, and so are those that follow; a single clip is tried again with
    half and a quarter of its visual tokens, then with fewer frames, and its warnings say so.

    With ``windows`` each item is cut (`cut_windows`) while its first windows are captioned already, and each window has
    a record; its ``id`` is the item's with a number (``talk.mp4#3``), and ``video``, ``window`` and ``is_last_window``
    tell its place.

    Args:
        captioner: or a function that loads it, called when reading has begun.
        items: their ids must differ; of a data set those that are `present`.
        output: a .jsonl file, see `RecordFile`; None keeps no records.
        num_frames, frames, generation: as for `SaliencyCaptioner.caption`.
        batch_size: most clips at work at once, over all streams; None: 1 a stream, with ``batch_tokens`` any number.
        batch_tokens: most visual tokens at work at once, padding among them, see `ByTokens`.
        num_streams: batches at work at once, in threads that share the model's weights and torch's threads; the times
            of a record are those of a batch beside others. None: 2 on a CPU, see `fitting_streams`, else 1. A clip with
            more visual tokens than a stream's share goes alone.
        windows: seconds, or "shots"; None: each item is one clip.
        num_workers: reading processes; None: half of the cores, at least 1, at most 8, for a set of photographs 0;
            0: none.
        time_limit: seconds for reading one clip, or for finding the cuts of one minute, then it fails with
            ``ReadTimeout``; None: `TIME_LIMIT`, or without reading processes none; infinity: none.
        limits: what a file may cost.
        reader: in place of `read_frames`; a function that a new process can import. For a set of photographs it is
            `read_still`.
        shard: (i, n): the i-th of n parts, counted from 1. Each writes a file of its own (``captions.1-of-4.jsonl``);
            whichever is done last merges them into ``output``.
        overwrite: replace ``output``.
        retry_failed: caption again what failed in earlier runs.
        lessen: False: a clip that alone is out of memory fails, rather than be captioned from less than was asked for.
        min_score: adds ``low_confidence`` to each record: whether the caption's score is below this (None if it has no
            score).
        settings: JSON-ready; what else an earlier run on the same output must have had in common with this one.
        progress: called after each record with it, how many are done in this run, and how many there are to do.

    Returns:
        How many clips were captioned and how many failed, and where the records are.

    Raises:
        TypeError: items that are not paths.
        ValueError: settings that fit no video or not the output's, ids that are not unique.
        OSError: records cannot be written; those written before are whole.
    """
    if isinstance(items, CaptionedSet):
        num_frames = items.resolve_num_frames(num_frames, frames)
        if items.stills:
            if windows is not None:
                raise ValueError(f"{items.name} holds photographs, which have no windows, got {windows!r}")
            reader = read_still
            num_workers = 0 if num_workers is time_limit is None else num_workers
        items = [Item(str(each.path), each.id, each.start_seconds, each.end_seconds) for each in items.present]
    if isinstance(items, str | bytes | os.PathLike):
        raise TypeError(f"caption_corpus takes a list of items, got one: {reprlib.repr(items)}")
    items = check_unique([item if isinstance(item, Item) else Item(_path(item)) for item in items])
    part, parts = shard
    if not 1 <= part <= parts:
        raise ValueError(f"shard must be i of n with 1 <= i <= n, got {part} of {parts}")
    if parts > 1 and output is None:
        raise ValueError("shards need an output, in which they are merged")
    if min_score is not None and not math.isfinite(min_score):
        raise ValueError(f"min_score must be a finite number, got {min_score}")
    windows = None if windows is None else check_windows(windows)
    mine = items[part - 1 :: parts]
    if num_workers is None:
        num_workers = min(8, max(1, (os.cpu_count() or 1) // 2), max(len(mine), 1))
    with open_readers(num_workers, time_limit, limits, reader) as pool:
        if not isinstance(captioner, SaliencyCaptioner):
            captioner = captioner()
        if num_streams is None and windows is None and len(mine) < 2:
            num_streams = 1
        model = BatchCaptioner(captioner, num_frames, frames, batch_size, batch_tokens, lessen, generation, num_streams)
        if output is None:
            outcomes: dict[str, str | None] = {}
            todo = _Todo(mine, windows, pool)
            for record in _marked(model.run(todo, pool), min_score):
                outcomes[record["id"]] = record["error_class"]
                progress(record, len(outcomes), todo.total)
            return CorpusSummary(len(outcomes), len(outcomes), count_errors(outcomes.values()), None)

        asked = {"windows": windows, "min_score": min_score}
        asked = {name: value for name, value in asked.items() if value is not None}
        output, settings = Path(output), {**model.settings, **asked, **(settings or {})}
        files = [part_path(output, number, parts) for number in range(1, parts + 1)]
        if parts > 1 and output.exists() and not overwrite:
            check_settings(output, settings)
        with RecordFile(files[part - 1], settings, overwrite, retry_failed) as file:
            model.succeeded = None in file.outcomes.values()
            todo, done = _Todo(mine, windows, pool, file), 0
            for done, record in enumerate(_marked(model.run(todo, pool), min_score), 1):
                file.write(record)
                if done % (batch_size or 1) == 0 or done == todo.total:
                    file.sync()
                progress(record, done, todo.total)
            found = [file.outcomes[name] for item in mine for name in file.windows.ids(item.id) or [item.id]]
    if parts == 1:
        return CorpusSummary(len(found), done, count_errors(found), output)
    try:
        merged = merge_records(files, output, [item.id for item in items])
    except SettingsError as error:  # another part's file is of the run that is being overwritten
        if not overwrite:
            raise
        log.warning("not merged: %s", error)
        merged = False
    if not merged:
        return CorpusSummary(len(found), done, count_errors(found), None)
    found = [record["error_class"] for record in read_records(output)]
    return CorpusSummary(len(found), done, count_errors(found), output)


def _marked(records: Iterator[Record], min_score: float | None) -> Iterator[Record]:
    """The records, each with ``low_confidence`` if there is a ``min_score``."""
    for record in records:
        if min_score is not None:
            score = record["score"]
            record["low_confidence"] = None if score is None else score < min_score
        yield record


def _path(item: Any) -> str:
    if isinstance(item, str | os.PathLike):
        return os.fspath(item)
    raise TypeError(
        f"an item is a path or a salcap.manifest.Item, got {type(item).__name__}; others take salcap.pipeline"
    )


def open_readers(
    num_workers: int,
    time_limit: float | None,
    limits: VideoLimits = DEFAULT_LIMITS,
    reader: Callable[..., Frames] = read_frames,
) -> ReaderPool:
    """A pool of reading processes; arguments as for `caption_corpus`."""
    if time_limit is None and num_workers:
        time_limit = TIME_LIMIT
    return ReaderPool(num_workers, None if time_limit == math.inf else time_limit, limits, reader)


def part_path(output: Path, part: int, parts: int) -> Path:
    """The file of a shard: ``captions.1-of-4.jsonl``; of the only one, the output itself."""
    return output if parts == 1 else output.with_name(f"{output.stem}.{part}-of-{parts}{output.suffix}")


class _Todo:
    """What there are no records of yet, windows of items being found on the way.

    Attributes:
        total: how many, as far as is known: of an item that was not looked at yet, one window.
    """

    def __init__(
        self, items: Sequence[Item], windows: Windows | None, pool: ReaderPool, file: RecordFile | None = None
    ) -> None:
        self._windows, self._pool = windows, pool
        self._done = {} if file is None else file.outcomes
        whole = self._done if file is None or windows is None else file.windows
        self._items = [item for item in items if item.id not in whole]
        self.total = len(self._items)

    def __iter__(self) -> Iterator[Item]:
        if self._windows is None:
            yield from self._items
            return
        found = self._find(self._windows)
        thread = ThreadPoolExecutor(1)
        try:
            coming = deque(thread.submit(next, found, None) for _ in range(WINDOWS_AHEAD))
            while (window := coming.popleft().result()) is not None:
                coming.append(thread.submit(next, found, None))
                yield window
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    def _find(self, windows: Windows) -> Iterator[Item]:
        def call(function: Callable[..., Any], *args: Any) -> Any:
            return self._pool.call(function, *args).result()

        for item in self._items:
            self.total -= 1
            for window in item_windows(item, windows, call):
                if window.id not in self._done:
                    self.total += 1
                    yield window
