"""BatchCaptioner: clips that are being read become batches, several of them at work at once, and those captions."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import chain, count
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch import nn

from salcap.batching import BySize, ByTokens, ComingClip
from salcap.caption import Caption
from salcap.frames import Frames
from salcap.hashing import weights_sha256
from salcap.manifest import Item
from salcap.reading import ReaderPool
from salcap.records import Record
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.sources import ClipSource
from salcap.windows import Window

logger = logging.getLogger(__name__)

Refusal = (TypeError, ValueError)  # of the model; where no clip was captioned before, of settings that fit no video
Result = TypeVar("Result")

MEMORY_ERRORS = ("OutOfMemoryError", "MemoryError")
MEMORY_WORDS = ("out of memory", "can't allocate memory")  # of a RuntimeError, in lower case


class BatchCaptioner:
    """Captions batches, and smaller ones or with less to see where memory runs out.

    Args:
        batch_size, batch_tokens: of all batches at work together; each stream gets its share.
        num_streams: batches at work at once; None: see `fitting_streams`, at most ``batch_size``.

    Attributes:
        succeeded: some clip was captioned: a ValueError is then no longer one of settings that fit no video.
    """

    def __init__(
        self,
        captioner: SaliencyCaptioner,
        num_frames: int | None,
        frames: str,
        batch_size: int | None,
        batch_tokens: int | None,
        lessen: bool,
        generation: dict[str, Any],
        num_streams: int | None = None,
    ) -> None:
        self.captioner, self.frames, self.lessen, self.generation = captioner, frames, lessen, generation
        self.num_frames = captioner.resolve_num_frames(num_frames)
        self.first_read = captioner.first_read(num_frames, frames)
        self._captioners = _in_streams(captioner, num_streams, generation, batch_size, batch_tokens)
        self.num_streams = num_streams = len(self._captioners)
        size, tokens = (_share(limit, num_streams) for limit in (batch_size, batch_tokens))
        self.batches: BySize | ByTokens
        if tokens is None:
            self.batches = BySize(1 if size is None else size)
        else:
            mixes, most = captioner.captioner.mixes_lengths, captioner.weighting.max_visual_tokens
            self.batches = ByTokens(tokens, size, mixes, self.num_frames, most)
        self.succeeded = self._broken_off = False

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the captions, JSON-ready; hashes tell models and backbones of one name apart."""
        captioner, described = self.captioner, self.captioner.describe(self.frames)
        model = getattr(captioner.captioner, "model", None)
        if captioner.captioner.revision is not None or not isinstance(model, nn.Module):
            model = None  # one of the hub has its revision for that
        return {
            **described,
            "strength": captioner.weighting.strength,
            "seed": captioner.weighting.seed,
            "num_frames": self.num_frames,
            "weights_sha256": None if model is None else weights_sha256(model),
            "saliency_sha256": None if described["saliency"] is None else weights_sha256(captioner.saliency),
            **self.generation,
        }

    def run(self, items: Iterable[Item], pool: ReaderPool) -> Iterator[Record]:
        """Records of all items, in their order; meanwhile the pool reads ahead, as far as the batches want it."""
        coming = (self._read(item, pool) for item in items)
        waiting: list[ComingClip] = []
        order: deque[Item] = deque()
        done: dict[str, Caption] = {}

        def read_on() -> bool:
            if (clip := next(coming, None)) is not None:
                waiting.append(clip)
                order.append(clip.item)
            return clip is not None

        def one_by_one() -> Iterator[ComingClip]:
            for number in count():
                if number == len(waiting) and not read_on():
                    return
                yield waiting[number]

        def read_ahead() -> None:
            while self.batches.wants(waiting, pool.num_workers) and read_on():
                pass

        at_work: deque[tuple[list[ComingClip], Future[list[Caption]]]] = deque()
        with _Streams(self._captioners) as streams, self._ending_early(pool):
            while True:
                while len(at_work) < self.num_streams:
                    read_ahead()
                    if not waiting:
                        break
                    batch = self.batches.choose(one_by_one())
                    waiting = [clip for clip in waiting if clip not in batch]
                    at_work.append((batch, streams.submit(self.caption, batch, self.succeeded)))
                if not at_work:
                    return
                read_ahead()
                batch, captioned = at_work.popleft()
                try:
                    captions = captioned.result()
                except Refusal:
                    if not self.succeeded:
                        raise
                    captions = streams.submit(self.caption, batch, True).result()
                self.succeeded |= _any_succeeded(captions)
                for clip, caption in zip(batch, captions, strict=True):
                    self.batches.learn(clip, caption)
                    read_ms = caption.timings.get("read_ms", 0.0) + clip.waited_ms
                    done[clip.item.id] = replace(caption, timings={**caption.timings, "read_ms": read_ms})
                while order and order[0].id in done:
                    item = order.popleft()
                    yield {"id": item.id, **item.labels, **done.pop(item.id).to_dict()}

    @contextmanager
    def _ending_early(self, pool: ReaderPool) -> Iterator[None]:
        """Where the run is broken off, the streams end with what the model is at: they wait for no clip any more."""
        self._broken_off = False
        try:
            yield
        except BaseException:
            self._broken_off = True
            pool.close()
            raise

    def _read(self, item: Item, pool: ReaderPool) -> ComingClip:
        count, options = self.first_read
        start, end = item.start_seconds, item.end_seconds
        future: Future[Frames] = Future()
        if isinstance(item, Window) and item.error is not None:
            future.set_exception(item.error)
        else:
            future = pool.submit(item.path, count, start, end, **options)

        def read(other_count: int, **others: Any) -> Frames:
            if (other_count, others) == (count, options):
                return future.result()
            return pool.submit(item.path, other_count, start, end, **others).result()

        return ComingClip(item, ClipSource(item.path, read, start, end), future)

    def caption(self, captioner: SaliencyCaptioner, clips: Sequence[ComingClip], succeeded: bool) -> list[Caption]:
        """A caption for each clip, failed ones too; of the run's captioner, or a replica.

        Raises:
            TypeError, ValueError: of the model, unless a clip ``succeeded`` before.
        """
        shrunk = self.batches.shrunk
        captions = self._attempt(captioner, clips, self.num_frames)
        if isinstance(captions, Exception):
            if isinstance(captions, Refusal) and not succeeded:
                raise captions
            failed = [captioner.failed(clip.source, captions, self.frames) for clip in clips]
            if len(clips) > 1:
                half = (len(clips) + 1) // 2
                if _out_of_memory(failed[0]):
                    self.batches.shrink(clips[:half])
                first = self.caption(captioner, clips[:half], succeeded)
                return first + self.caption(captioner, clips[half:], succeeded or _any_succeeded(first))
            captions = failed
        captions = [
            self._with_less(captioner, clip, caption) if self.lessen and _out_of_memory(caption) else caption
            for clip, caption in zip(clips, captions, strict=True)
        ]
        return captions if shrunk is None else [_warned(caption, shrunk) for caption in captions]

    def _with_less(self, captioner: SaliencyCaptioner, clip: ComingClip, failed: Caption) -> Caption:
        """Caption a clip that alone takes too much memory; ``failed`` where nothing helps."""
        for lesser, num_frames, words in self._lesser(captioner):
            captions = self._attempt(lesser, [clip], num_frames)
            if isinstance(captions, list) and captions[0].error is None:
                return _warned(captions[0], words)
        return failed

    def _lesser(self, captioner: SaliencyCaptioner) -> Iterator[tuple[SaliencyCaptioner, int, str]]:
        """Ways to see less: half and a quarter of the tokens where the model can prune, then ever fewer frames."""
        lesser, words = captioner, ""
        weighting, num_frames = captioner.weighting, self.num_frames
        for parts in (2, 4) if "prune" in captioner.captioner.modes else ():
            if weighting.max_visual_tokens is None:
                budget: dict[str, Any] = {"keep_ratio": weighting.keep_ratio / parts}
            else:
                budget = {"max_visual_tokens": max(weighting.max_visual_tokens // parts, 1)}
            lesser = captioner.with_weighting(**budget)
            words = "".join(f"{name} {value:g}" for name, value in budget.items())
            yield lesser, num_frames, words
        while num_frames > 1:
            num_frames //= 2
            yield lesser, num_frames, ", ".join(filter(None, (words, f"num_frames {num_frames}")))

    def _attempt(
        self, captioner: SaliencyCaptioner, clips: Sequence[ComingClip], num_frames: int
    ) -> list[Caption] | Exception:
        """Captions, or the error that stopped the batch, without the frames of the stack that hold its memory."""
        if self._broken_off:
            raise RuntimeError("the run was broken off")
        try:
            sources = [clip.source for clip in clips]
            return captioner.caption_clips(sources, num_frames, self.frames, **self.generation)
        except Exception as error:
            failure = error.with_traceback(None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return failure


def fitting_streams(captioner: SaliencyCaptioner, generation: dict[str, Any]) -> int:
    """How many batches are best at work at once: two on a CPU where torch has two threads, for these do little together
    that they do not do faster apart. Else one: on other devices, where words are drawn at random, and where a replica
    might not stand on its own: of plug-ins, of models with hooks or another ``forward``, with objects for ``generate``.
    """
    model, generator = (getattr(captioner.captioner, name, None) for name in ("model", "generator"))
    config = getattr(generator, "generation_config", None)
    ours = all(type(part).__module__.startswith("salcap.") for part in (captioner.captioner, captioner.saliency))
    if model is None or config is None or not ours or generation.get("do_sample", config.do_sample):
        return 1
    modules = [*model.modules(), *captioner.saliency.modules()]
    if any(each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in modules):
        return 1
    if not all(isinstance(value, str | int | float | list | None) for value in generation.values()):
        return 1
    places = {tensor.device.type for tensor in chain(model.parameters(), captioner.saliency.buffers())}
    return 2 if places == {"cpu"} and torch.get_num_threads() > 1 else 1


def replicate(captioner: SaliencyCaptioner) -> SaliencyCaptioner:
    """A copy for another thread: parameters are shared, modules, hooks, buffers and sessions its own.

    Functions stay what they are: one that a hook or an object holds is still bound to the original's variables.
    """
    modules = [captioner.saliency, getattr(captioner.captioner, "model", captioner.saliency)]
    return copy.deepcopy(captioner, {id(each): each for module in modules for each in module.parameters()})


def _in_streams(
    captioner: SaliencyCaptioner, num_streams: int | None, generation: dict[str, Any], *limits: int | None
) -> list[SaliencyCaptioner]:
    """The captioner, and replicas for the streams asked for, or else for those that fit and have something to do."""
    count = num_streams
    if count is None:
        count = max(1, min([fitting_streams(captioner, generation), *(limit for limit in limits if limit is not None)]))
    if count < 1:
        raise ValueError(f"num_streams must be at least 1, got {num_streams}")
    if limits[0] is not None and 1 <= limits[0] < count:
        raise ValueError(f"num_streams must be at most batch_size, {limits[0]}, got {num_streams}")
    try:
        return [captioner, *(replicate(captioner) for _ in range(count - 1))]
    except Exception as error:  # whatever stands against a copy of a plug-in
        message = f"{captioner.captioner.name} with {captioner.saliency.name} cannot be copied: {error}"
        if num_streams is not None:
            raise ValueError(f"num_streams must be 1, got {num_streams}: {message}") from error
        logger.warning("one batch at a time: %s", message)
        return [captioner]


class _Streams:
    """Threads with a captioner each, among which torch's threads are divided; one stream is the calling thread."""

    def __init__(self, captioners: Sequence[SaliencyCaptioner]) -> None:
        self._idle: SimpleQueue[SaliencyCaptioner] = SimpleQueue()
        for captioner in captioners:
            self._idle.put(captioner)
        count, self._threads = len(captioners), torch.get_num_threads()
        share = max(1, self._threads // count)
        self._pool = ThreadPoolExecutor(count, "stream", torch.set_num_threads, (share,)) if count > 1 else None

    def __enter__(self) -> _Streams:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            try:
                self._pool.shutdown(cancel_futures=True)
            finally:
                torch.set_num_threads(self._threads)  # what new threads begin with is torch's, not a thread's

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Call it with a captioner of its own, and ``args``."""

        def run() -> Result:
            captioner = self._idle.get()
            try:
                return function(captioner, *args)
            finally:
                self._idle.put(captioner)

        if self._pool is not None:
            return self._pool.submit(run)
        done: Future[Result] = Future()
        done.set_result(run())
        return done


def _share(limit: int | None, count: int) -> int | None:
    """Of a limit for all of ``count``; at least 1, but for a limit that is wrong itself."""
    return None if limit is None else max(limit // count, min(limit, 1))


def _out_of_memory(caption: Caption) -> bool:
    words = (caption.error or "").lower()
    return caption.error_class in MEMORY_ERRORS or any(known in words for known in MEMORY_WORDS)


def _any_succeeded(captions: Sequence[Caption]) -> bool:
    return any(caption.error is None for caption in captions)


def _warned(caption: Caption, words: str) -> Caption:
    return replace(caption, warnings=(*caption.warnings, f"out of memory: captioned with {words}"))
