"""``salcap.pipeline(...)``: a captioner that is used as ``transformers.pipeline`` is.

>>> pipe = salcap.pipeline("salcap-mini", device="cpu")
>>> pipe("clip.mp4")["caption"]

``salcap.pipeline`` is this module, which can be called: so it is the same thing whatever was imported first.
"""

from __future__ import annotations

import inspect
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from os import PathLike
from types import ModuleType
from typing import Any

import torch

from salcap.caption import Caption
from salcap.frames import Frames
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.sources import ClipSource, clip_source, is_video


def pipeline(
    model: Any = "salcap-mini",
    processor: Any = None,
    *,
    seed: int | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    generate_kwargs: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    torch_dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
    image_processor: Any = None,
    **options: Any,
) -> CaptionPipeline:
    """Load a captioner with a saliency backbone in front, to be called with videos.

    Args:
        model, processor: as for `SaliencyCaptioner.from_pretrained`.
        seed: of policy "random", and of generation that samples (``do_sample=True``); None: the latter differs from
            call to call.
        batch_size, num_workers, generate_kwargs: defaults of `CaptionPipeline.__call__`.
        model_kwargs: more of ``options``.
        torch_dtype: the older name of ``dtype``.
        tokenizer, image_processor: of a loaded model, in place of ``processor``.
        options: keyword arguments of `SaliencyCaptioner.from_pretrained` (device, dtype, saliency, mode, ...); device
            -1 is the CPU.

    Returns:
        What is called with a video, or several; see `CaptionPipeline.__call__`.

    Raises:
        OSError, TypeError, ValueError: as `SaliencyCaptioner.from_pretrained`; an unknown or doubled option.
    """
    options = _join(options, model_kwargs, "model_kwargs")
    if torch_dtype is None:
        torch_dtype = options.pop("torch_dtype", None)  # among the model_kwargs
    if torch_dtype is not None:
        options = _join(options, {"dtype": torch_dtype}, "torch_dtype")
    known = inspect.signature(SaliencyCaptioner.from_pretrained).parameters
    if unknown := [name for name in options if name not in known]:
        raise TypeError(
            f"salcap.pipeline does not take {', '.join(unknown)}; allowed: {', '.join(known)}. Arguments of generate"
            " and num_frames belong to the call: pipe(video, max_new_tokens=20), or generate_kwargs="
            "{'max_new_tokens': 20}"
        )
    if tokenizer is not None or image_processor is not None:
        if processor is not None or tokenizer is None or image_processor is None:
            raise ValueError("give a processor, or both a tokenizer and an image_processor")
        processor = image_processor, tokenizer
    if type(options.get("device")) is int and options["device"] == -1:
        options["device"] = "cpu"
    _check_count("batch_size", batch_size, 1)
    _check_count("num_workers", num_workers, 0)
    captioner = SaliencyCaptioner.from_pretrained(model, processor, seed=seed, **options)
    return CaptionPipeline(captioner, seed, batch_size, num_workers, generate_kwargs)


class CaptionPipeline:
    """Videos in, dictionaries of `Caption.to_dict` out.

    Args:
        captioner: what captions them.
        seed: of generation that samples, set again for each batch; the caller's random numbers go on undisturbed. None:
            it draws from these.
        batch_size, num_workers, generate_kwargs: for calls that do not say otherwise.
    """

    def __init__(
        self,
        captioner: SaliencyCaptioner,
        seed: int | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        generate_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.captioner, self.seed = captioner, seed
        self.batch_size, self.num_workers, self.generate_kwargs = batch_size, num_workers, dict(generate_kwargs or {})

    def __call__(
        self,
        videos: Any,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Caption one video, or several.

        Args:
            videos: one of what `SaliencyCaptioner.caption` takes; or a list or tuple of these, or any other iterable or
                ``torch.utils.data`` data set that gives them, such as a ``Video`` column of ``datasets``.
            batch_size: videos that the model takes at once.
            num_workers: threads that read files ahead while the model works; 0 reads each batch when its turn comes.
            generate_kwargs: more of ``options``, for ``generate``.
            options: keyword arguments of `SaliencyCaptioner.caption` (num_frames, ..., num_beams, ...).

        Returns:
            For one video a dictionary, for a list or tuple a list, else an iterator, which reads ahead one batch (with
            workers, plus one video for each worker). Of several videos, one that fails has ``caption`` None
            and ``error`` set, and the others go on.

        Raises:
            TypeError: neither a video nor something that gives videos.
            VideoDecodeError, ValueError: as `SaliencyCaptioner.caption`; of several only settings that fit none of the
                first batch.
        """
        options = _join(options, generate_kwargs, "generate_kwargs")
        options = {**self.generate_kwargs, **options}
        batch_size = _check_count("batch_size", self.batch_size if batch_size is None else batch_size, 1)
        num_workers = _check_count("num_workers", self.num_workers if num_workers is None else num_workers, 0)
        if is_video(videos):
            with _seeded(self.seed):
                return self.captioner.caption(videos, **options).to_dict()
        each = _each(videos)
        records = self._records(each, batch_size, num_workers, options)
        return list(records) if isinstance(videos, list | tuple) else records

    def _records(
        self, videos: Iterator[Any], batch_size: int, num_workers: int, options: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        if num_workers:
            videos = _read_ahead(self.captioner, videos, batch_size, num_workers, options)
            options = {name: value for name, value in options.items() if name not in ("start_seconds", "end_seconds")}
        succeeded = False
        while batch := list(islice(videos, batch_size)):
            try:
                with _seeded(self.seed):
                    captions = self.captioner.caption_batch(batch, **options)
            except ValueError:
                if not succeeded:
                    raise
                captions = [self._alone(video, options) for video in batch]
            succeeded |= any(caption.error is None for caption in captions)
            yield from (caption.to_dict() for caption in captions)

    def _alone(self, video: Any, options: dict[str, Any]) -> Caption:
        try:
            with _seeded(self.seed):
                return self.captioner.caption_batch([video], **options)[0]
        except ValueError as error:
            return _failed(self.captioner, video, error, **options)


def _read_ahead(
    captioner: SaliencyCaptioner, videos: Iterator[Any], batch_size: int, num_workers: int, options: dict[str, Any]
) -> Iterator[ClipSource]:
    """The videos as clips whose files threads read, the next batch and one for each thread ahead of their turn."""
    times = options.get("start_seconds"), options.get("end_seconds")
    first = captioner.first_read(options.get("num_frames"), options.get("frames", "uniform"))
    with ThreadPoolExecutor(num_workers, thread_name_prefix="salcap-read") as pool:
        waiting: deque[ClipSource] = deque()
        try:
            for video in videos:
                source = clip_source(video, *times)
                # open files and decoders have one place at which they read: these stay in the model's thread
                alone = isinstance(video, str | PathLike | bytes | bytearray | memoryview | Mapping)
                waiting.append(_submit(pool, source, *first) if alone else source)
                if len(waiting) == batch_size + num_workers:
                    yield waiting.popleft()
            yield from waiting
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, source: ClipSource, count: int, how: dict[str, Any]) -> ClipSource:
    """A clip that is being read so many frames of; other frames are read when they are asked for."""
    future = [pool.submit(source.read, count, **how)]

    def read(asked: int, **options: Any) -> Frames:
        if future and (asked, options) == (count, how):
            return future.pop().result()
        return source.read(asked, **options)

    return replace(source, read=read)


def _join(options: dict[str, Any], more: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """The options with more of them, none of which may say something else."""
    if more is not None and not isinstance(more, Mapping):
        raise TypeError(f"{name} must be a dict, got {more!r}")
    for key, value in (more or {}).items():
        if key in options and options[key] is not None and options[key] != value:
            raise ValueError(f"{key} is given twice: {options[key]!r}, and by {name} {value!r}")
    return {**options, **(more or {})}


def _check_count(name: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")
    return value


def _failed(
    captioner: SaliencyCaptioner,
    video: Any,
    error: Exception,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    frames: str = "uniform",
    **_: Any,
) -> Caption:
    return captioner.failed(clip_source(video, start_seconds, end_seconds), error, frames)


def _each(videos: Any) -> Iterator[Any]:
    if not isinstance(videos, Mapping):
        if isinstance(videos, Iterable):
            return map(_one, videos)
        if hasattr(videos, "__getitem__") and hasattr(videos, "__len__"):  # few raise IndexError at their end
            return (_one(videos[index]) for index in range(len(videos)))
    raise TypeError(
        f"give a video, or a list, iterable or data set of videos, got {type(videos).__name__}{_hint(videos)}"
    )


def _one(video: Any) -> Any:
    if isinstance(video, list | tuple | Mapping) and not is_video(video):
        raise TypeError(
            f"each video must be one, got a {type(video).__name__} of {len(video)}: give the data set itself, and a"
            f" batch_size, in place of batches that a loader makes{_hint(video)}"
        )
    return video


def _hint(row: Any) -> str:
    """What to give in place of the rows of a data set of several columns."""
    if not isinstance(row, Mapping):
        return ""
    return f"; of rows with the columns {', '.join(map(str, row))} give one, as dataset['video'] or pipe(row['video'])"


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


class _CallableModule(ModuleType):
    __call__ = __wrapped__ = staticmethod(pipeline)  # the latter is where `inspect.signature` looks


sys.modules[__name__].__class__ = _CallableModule
__doc__ = f"{__doc__}\n{pipeline.__doc__}"  # what help(salcap.pipeline) shows
