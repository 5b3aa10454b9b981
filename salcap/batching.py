"""Which clips go through the model together: as many as were asked for, or as many as fit a budget of visual tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from salcap.caption import Caption
from salcap.frames import Frames
from salcap.manifest import Item
from salcap.sources import ClipSource

HORIZON = 4  # batches' worth of clips among which those that go together are looked for


@dataclass(eq=False)
class ComingClip:
    """A clip that is being read ahead.

    Attributes:
        reading: its first read.
        waited_ms: how long `shape` waited for that.
    """

    item: Item
    source: ClipSource
    reading: Future[Frames]
    waited_ms: float = 0.0

    @cached_property
    def shape(self) -> tuple[int, int, int] | None:
        """(T, H, W) of what was read; None where that failed. Waits for it."""
        started = time.perf_counter()
        try:
            frames = self.reading.result()
        except Exception:  # the caption will tell
            return None
        finally:
            self.waited_ms = (time.perf_counter() - started) * 1000
        return len(frames), *frames.pixels.shape[2:]


class BySize:
    """Batches of a number of clips, in their order."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}")
        self.size = self._asked = size

    def wants(self, waiting: Sequence[ComingClip], num_workers: int) -> bool:
        """Whether one more clip is to be read ahead."""
        return len(waiting) < 2 * self.size + num_workers

    def choose(self, waiting: Iterator[ComingClip]) -> list[ComingClip]:
        """The next batch, the first clip always in it. What it takes from ``waiting`` is read ahead as well."""
        return list(islice(waiting, self.size))

    def learn(self, clip: ComingClip, caption: Caption) -> None:
        """Be told what became of a clip."""

    def shrink(self, clips: Sequence[ComingClip]) -> None:
        """Make no batches larger than this one any more."""
        self.size = min(self.size, len(clips))

    @property
    def shrunk(self) -> str | None:
        """What is left of the budget, in words; None where that is all of it."""
        return None if self.size == self._asked else f"batch_size {self.size}"


class ByTokens:
    """Batches of clips with about as many visual tokens each, up to a budget.

    A batch counts as its number of clips times the tokens of the largest, to which the others may be padded; a clip
    above the budget goes alone. How many tokens a clip will have is known from earlier ones of its shape. Of another
    shape a frame counts as much as any did so far, and before the first caption each clip goes alone.

    The first clip that waits is in every batch; of those behind it the likest ones go along, so each waits for as many
    batches as there are clips before it at most. What goes together depends on the clips alone, not on the time that
    it takes to read them.

    Args:
        tokens: the budget.
        size: most clips of a batch; None: any number.
        mixes_lengths: see `Captioner`.
        num_frames: most frames of a clip.
        max_visual_tokens: of a clip; None: no limit.
    """

    def __init__(
        self, tokens: int, size: int | None, mixes_lengths: bool, num_frames: int, max_visual_tokens: int | None
    ) -> None:
        if tokens < 1 or (size is not None and size < 1):
            raise ValueError(f"batch_tokens and batch_size must be at least 1, got {tokens} and {size}")
        self.tokens = self._asked = tokens
        self._size, self._mixes_lengths, self._num_frames = size or math.inf, mixes_lengths, num_frames
        self._most = max_visual_tokens or math.inf
        self._known: dict[tuple[int, int, int], int] = {}
        self._per_frame = 0.0

    def wants(self, waiting: Sequence[ComingClip], num_workers: int) -> bool:
        """Whether one more clip is to be read ahead: until enough are known to choose among."""
        if len(waiting) <= num_workers:
            return True
        enough = (HORIZON + 1) * self.tokens
        return self._per_frame > 0 and sum(self._expected(clip) for clip in waiting) < enough

    def choose(self, waiting: Iterator[ComingClip]) -> list[ComingClip]:
        """The next batch: the first clip, and of those that wait behind it the likest that fit with it."""
        first = next(waiting)
        if first.shape is None or not self._per_frame:
            return [first]
        seen, others = self._tokens_of(first), []
        while seen < HORIZON * self.tokens and (clip := next(waiting, None)) is not None:
            seen += self._tokens_of(clip)
            if clip.shape is not None and (self._mixes_lengths or self._length(clip) == self._length(first)):
                others.append(clip)
        batch = [first]
        for clip in sorted(others, key=lambda clip: abs(self._tokens_of(clip) - self._tokens_of(first))):
            if len(batch) < self._size and self._cost([*batch, clip]) <= self.tokens:
                batch.append(clip)
        return batch

    def learn(self, clip: ComingClip, caption: Caption) -> None:
        """Be told how many tokens a clip had, for those of its shape that follow."""
        if clip.shape is not None and caption.visual_tokens:
            self._known[clip.shape] = max(caption.visual_tokens, self._known.get(clip.shape, 0))
            self._per_frame = max(self._per_frame, caption.visual_tokens / self._length(clip))

    def shrink(self, clips: Sequence[ComingClip]) -> None:
        """Make no batches that cost more than this one any more."""
        self.tokens = min(self.tokens, int(self._cost(clips)))

    @property
    def shrunk(self) -> str | None:
        """What is left of the budget, in words; None where that is all of it."""
        return None if self.tokens == self._asked else f"batch_tokens {self.tokens}"

    def _length(self, clip: ComingClip) -> int:
        """Frames that the captioner will see of it: of more that were read, they are chosen."""
        return self._num_frames if clip.shape is None else min(clip.shape[0], self._num_frames)

    def _tokens_of(self, clip: ComingClip) -> float:
        """Of a clip that cannot be read: as of a full one, so that the search for others ends."""
        known = None if clip.shape is None else self._known.get(clip.shape)
        return min(self._length(clip) * self._per_frame, self._most) if known is None else known

    def _expected(self, clip: ComingClip) -> float:
        """As `_tokens_of`, without waiting: a clip that has not been read is a full one."""
        return self._tokens_of(clip) if clip.reading.done() else min(self._num_frames * self._per_frame, self._most)

    def _cost(self, clips: Sequence[ComingClip]) -> float:
        return len(clips) * max(map(self._tokens_of, clips))
