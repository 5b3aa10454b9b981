"""caption_corpus: many videos, a record of each, whatever happens on the way.

```
items ─ reading.py (processes, ahead of the model) ─> batches ─ pipeline.py ─> captions ─ records.py ─> JSON lines
```
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from salcap.caption import Caption
from salcap.datasets.captioned_videos import CaptionedSet
from salcap.frames import Frames
from salcap.manifest import Item, check_unique
from salcap.pipeline import ClipSource, SaliencyCaptioner
from salcap.reading import ReaderPool
from salcap.records import Record, RecordFile, check_settings, count_errors, merge_records, read_records
from salcap.stills import read_still
from salcap.video import DEFAULT_LIMITS, VideoLimits, read_frames

TIME_LIMIT = 300.0  # seconds for the reading of one clip
MEMORY_ERRORS = ("OutOfMemoryError", "MemoryError")
MEMORY_WORDS = ("out of memory", "can't allocate memory")  # of a RuntimeError, in lower case


@dataclass(frozen=True)
class CorpusSummary:
    """How a run ended.

    Attributes:
        num_items: of this run's shard, those of earlier runs on its output among them; of all shards, where it merged
            them.
        num_new: captioned or failed in this run.
        errors: how many failed, by class of error.
        records: the file with the records of all shards; None without output, and as long as other shards lack some.
    """

    num_items: int
    num_new: int
    errors: dict[str, int]
    records: Path | None

    @property
    def num_failed(self) -> int:
        return sum(self.errors.values())


def caption_corpus(
    captioner: SaliencyCaptioner | Callable[[], SaliencyCaptioner],
    items: Sequence[Item | str | os.PathLike[str]] | CaptionedSet,
    output: str | os.PathLike[str] | None = None,
    *,
    num_frames: int | None = None,
    frames: str = "uniform",
    batch_size: int = 1,
    num_workers: int | None = None,
    time_limit: float | None = None,
    limits: VideoLimits = DEFAULT_LIMITS,
    reader: Callable[..., Frames] = read_frames,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    retry_failed: bool = False,
    lessen: bool = True,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[Record, int, int], object] = lambda record, done, total: None,
    **generation: Any,
) -> CorpusSummary:
    """Caption many videos, and go on where an earlier run on the same output was ended, however it was.

    While the model works on one batch, other processes read the next clips. Each clip gets one record, in the order of
    ``items``, with the keys of `Caption.to_dict` and its ``id``; their ``read_ms`` is the time spent waiting for
    frames. A batch that is out of memory is halved, and so are those that follow; a single clip is tried again with
    half and a quarter of its visual tokens, then with fewer frames, and its warnings say so.

    Args:
        captioner: or a function that loads it, called when reading has begun.
        items: their ids must differ; of a data set those that are `present`.
        output: a .jsonl file, see `RecordFile`; None keeps no records.
        num_frames, frames, generation: as for `SaliencyCaptioner.caption`.
        num_workers: reading processes; None: half of the cores, at least 1, at most 8, for a set of photographs 0;
            0: none.
        time_limit: seconds for reading one clip, then it fails with ``ReadTimeout``; None: `TIME_LIMIT`, or without
            reading processes none; infinity: none.
        limits: what a file may cost.
        reader: in place of `read_frames`; a function that a new process can import. For a set of photographs it is
            `read_still`.
        shard: (i, n): the i-th of n parts, counted from 1. Each writes a file of its own (``captions.1-of-4.jsonl``);
            whichever is done last merges them into ``output``.
        overwrite: replace ``output``.
        retry_failed: caption again what failed in earlier runs.
        lessen: False: a clip that alone is out of memory fails, rather than be captioned from less than was asked for.
        settings: JSON-ready; what else an earlier run on the same output must have had in common with this one.
        progress: called after each record with it, how many are done in this run, and how many there are to do.

    Raises:
        ValueError: settings that fit no video or not the output's, ids that are not unique.
        OSError: records cannot be written; those written before are whole.
    """
    if isinstance(items, CaptionedSet):
        num_frames = items.resolve_num_frames(num_frames, frames)
        if items.stills:
            reader = read_still
            num_workers = 0 if num_workers is time_limit is None else num_workers
        items = [Item(str(each.path), each.id, each.start_seconds, each.end_seconds) for each in items.present]
    items = check_unique([item if isinstance(item, Item) else Item(os.fspath(item)) for item in items])
    part, parts = shard
    if not 1 <= part <= parts:
        raise ValueError(f"shard must be i of n with 1 <= i <= n, got {part} of {parts}")
    if parts > 1 and output is None:
        raise ValueError("shards need an output, in which they are merged")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    mine = items[part - 1 :: parts]
    if num_workers is None:
        num_workers = min(8, max(1, (os.cpu_count() or 1) // 2), max(len(mine), 1))
    if time_limit is None and num_workers:
        time_limit = TIME_LIMIT
    with ReaderPool(num_workers, None if time_limit == math.inf else time_limit, limits, reader) as pool:
        if not isinstance(captioner, SaliencyCaptioner):
            captioner = captioner()
        model = _BatchCaptioner(captioner, num_frames, frames, batch_size, lessen, generation)
        if output is None:
            outcomes: dict[str, str | None] = {}
            for record in model.run(mine, pool):
                outcomes[record["id"]] = record["error_class"]
                progress(record, len(outcomes), len(mine))
            return CorpusSummary(len(mine), len(outcomes), count_errors(outcomes.values()), None)

        output, settings = Path(output), {**model.settings, **(settings or {})}
        files = [part_path(output, number, parts) for number in range(1, parts + 1)]
        if parts > 1 and output.exists() and not overwrite:
            check_settings(output, settings)
        with RecordFile(files[part - 1], settings, overwrite, retry_failed) as file:
            model.succeeded = None in file.outcomes.values()
            todo = [item for item in mine if item.id not in file.outcomes]
            for done, record in enumerate(model.run(todo, pool), 1):
                file.write(record)
                if done % batch_size == 0 or done == len(todo):
                    file.sync()
                progress(record, done, len(todo))
            errors = count_errors([file.outcomes[item.id] for item in mine])
    if parts == 1:
        return CorpusSummary(len(mine), len(todo), errors, output)
    if not merge_records(files, output, [item.id for item in items]):
        return CorpusSummary(len(mine), len(todo), errors, None)
    errors = count_errors([record["error_class"] for record in read_records(output)])
    return CorpusSummary(len(items), len(todo), errors, output)


def part_path(output: Path, part: int, parts: int) -> Path:
    """The file of a shard: ``captions.1-of-4.jsonl``; of the only one, the output itself."""
    return output if parts == 1 else output.with_name(f"{output.stem}.{part}-of-{parts}{output.suffix}")


class _BatchCaptioner:
    """Captions batches, and smaller ones or with less to see where memory runs out.

    Attributes:
        settings: what decides the captions, JSON-ready.
        succeeded: some clip was captioned: a ValueError is then no longer one of settings that fit no video.
    """

    def __init__(
        self,
        captioner: SaliencyCaptioner,
        num_frames: int | None,
        frames: str,
        batch_size: int,
        lessen: bool,
        generation: dict[str, Any],
    ) -> None:
        self.captioner, self.frames, self.lessen, self.generation = captioner, frames, lessen, generation
        self.num_frames = captioner.resolve_num_frames(num_frames)
        self.first_read = captioner.first_read(num_frames, frames)
        self.batch_size = self.full_batch = batch_size
        self.succeeded = False
        self.settings = {
            **captioner.describe(frames),
            "strength": captioner.weighting.strength,
            "seed": captioner.weighting.seed,
            "num_frames": self.num_frames,
            **generation,
        }

    def run(self, items: Sequence[Item], pool: ReaderPool) -> Iterator[Record]:
        """Records of all items; meanwhile the pool reads as many as two batches ahead."""
        coming = iter(items)
        ahead: deque[tuple[Item, ClipSource]] = deque()
        while True:
            room = 2 * self.batch_size + pool.num_workers - len(ahead)
            ahead.extend((item, self._source(item, pool)) for item in islice(coming, max(room, 0)))
            if not ahead:
                return
            batch = [ahead.popleft() for _ in range(min(self.batch_size, len(ahead)))]
            for (item, _), caption in zip(batch, self.caption([clip for _, clip in batch]), strict=True):
                yield {"id": item.id, **caption.to_dict()}

    def _source(self, item: Item, pool: ReaderPool) -> ClipSource:
        count, options = self.first_read
        start, end = item.start_seconds, item.end_seconds
        future = pool.submit(item.path, count, start, end, **options)

        def read(other_count: int, **others: Any) -> Frames:
            if (other_count, others) == (count, options):
                return future.result()
            return pool.submit(item.path, other_count, start, end, **others).result()

        return ClipSource(item.path, read, start, end)

    def caption(self, clips: Sequence[ClipSource]) -> list[Caption]:
        """A caption for each clip, failed ones too."""
        captions = self._attempt(self.captioner, clips, self.num_frames)
        if isinstance(captions, Exception):
            if isinstance(captions, TypeError | ValueError) and not self.succeeded:
                raise captions
            failed = [self.captioner.failed(clip, captions, self.frames) for clip in clips]
            if len(clips) > 1:
                half = (len(clips) + 1) // 2
                if _out_of_memory(failed[0]):
                    self.batch_size = min(self.batch_size, half)
                return self.caption(clips[:half]) + self.caption(clips[half:])
            captions = failed
        captions = [
            self._with_less(clip, caption) if self.lessen and _out_of_memory(caption) else caption
            for clip, caption in zip(clips, captions, strict=True)
        ]
        self.succeeded |= any(caption.error is None for caption in captions)
        if self.batch_size < self.full_batch:
            captions = [_warned(caption, f"batch_size {self.batch_size}") for caption in captions]
        return captions

    def _with_less(self, clip: ClipSource, failed: Caption) -> Caption:
        """Caption a clip that alone takes too much memory; ``failed`` where nothing helps."""
        for captioner, num_frames, words in self._lesser():
            captions = self._attempt(captioner, [clip], num_frames)
            if isinstance(captions, list) and captions[0].error is None:
                return _warned(captions[0], words)
        return failed

    def _lesser(self) -> Iterator[tuple[SaliencyCaptioner, int, str]]:
        """Ways to see less: half and a quarter of the tokens where the model can prune, then ever fewer frames."""
        captioner, words = self.captioner, ""
        weighting, num_frames = captioner.weighting, self.num_frames
        for parts in (2, 4) if "prune" in captioner.captioner.modes else ():
            if weighting.max_visual_tokens is None:
                budget: dict[str, Any] = {"keep_ratio": weighting.keep_ratio / parts}
            else:
                budget = {"max_visual_tokens": max(weighting.max_visual_tokens // parts, 1)}
            captioner = self.captioner.with_weighting(**budget)
            words = "".join(f"{name} {value:g}" for name, value in budget.items())
            yield captioner, num_frames, words
        while num_frames > 1:
            num_frames //= 2
            yield captioner, num_frames, ", ".join(filter(None, (words, f"num_frames {num_frames}")))

    def _attempt(
        self, captioner: SaliencyCaptioner, clips: Sequence[ClipSource], num_frames: int
    ) -> list[Caption] | Exception:
        """Captions, or the error that stopped the batch, without the frames of the stack that hold its memory."""
        try:
            return captioner.caption_clips(clips, num_frames, self.frames, **self.generation)
        except Exception as error:
            failure = error.with_traceback(None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return failure


def _out_of_memory(caption: Caption) -> bool:
    words = (caption.error or "").lower()
    return caption.error_class in MEMORY_ERRORS or any(known in words for known in MEMORY_WORDS)


def _warned(caption: Caption, words: str) -> Caption:
    return replace(caption, warnings=(*caption.warnings, f"out of memory: captioned with {words}"))
