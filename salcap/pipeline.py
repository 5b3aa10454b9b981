"""``salcap.pipeline(...)``: a captioner that is used as ``transformers.pipeline`` is.

>>> pipe = salcap.pipeline("salcap-mini", device="cpu")
>>> pipe("clip.mp4")["caption"]

``salcap.pipeline`` is this module, which can be called: so it is the same thing whatever was imported first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from types import ModuleType
from typing import Any

import torch

from salcap.caption import Caption
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.sources import clip_source, is_video


def pipeline(
    model: Any = "salcap-mini", processor: Any = None, *, seed: int | None = None, **options: Any
) -> CaptionPipeline:
    """Load a captioner with a saliency backbone in front, to be called with videos.

    Args:
        model, processor: as for `SaliencyCaptioner.from_pretrained`.
        seed: of policy "random", and of generation that samples (``do_sample=True``); None: the latter differs from
            call to call.
        options: keyword arguments of `SaliencyCaptioner.from_pretrained` (device, dtype, saliency, mode, ...).

    Returns:
        What is called with a video, or several; see `CaptionPipeline.__call__`.

    Raises:
        OSError, TypeError, ValueError: as `SaliencyCaptioner.from_pretrained`.
    """
    return CaptionPipeline(SaliencyCaptioner.from_pretrained(model, processor, seed=seed, **options), seed)


class CaptionPipeline:
    """Videos in, dictionaries of `Caption.to_dict` out.

    Args:
        captioner: what captions them.
        seed: of generation that samples, set anew for each batch; the caller's random numbers go on undisturbed. None:
            it draws from these.
    """

    def __init__(self, captioner: SaliencyCaptioner, seed: int | None = None) -> None:
        self.captioner, self.seed = captioner, seed

    def __call__(self, videos: Any, *, batch_size: int = 1, **options: Any) -> Any:
        """Caption one video, or several.

        Args:
            videos: one of what `SaliencyCaptioner.caption` takes; or a list or tuple of these, or any other iterable or
                ``torch.utils.data`` data set that gives them.
            batch_size: videos that the model takes at once.
            options: keyword arguments of `SaliencyCaptioner.caption` (num_frames, ..., num_beams, ...).

        Returns:
            For one video a dictionary, for a list or tuple a list, else an iterator, which reads ahead one batch. Of
            several videos, one that fails has ``caption`` None and ``error`` set, and the others go on.

        Raises:
            TypeError: neither a video nor something that gives videos.
            VideoDecodeError, ValueError: as `SaliencyCaptioner.caption`; of several only settings that fit none of the
                first batch.
        """
        if is_video(videos):
            with _seeded(self.seed):
                return self.captioner.caption(videos, **options).to_dict()
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number from 1, got {batch_size!r}")
        records = self._records(_each(videos), batch_size, options)
        return list(records) if isinstance(videos, list | tuple) else records

    def _records(self, videos: Iterator[Any], batch_size: int, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
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
    raise TypeError(f"give a video, or a list, iterable or data set of videos, got {type(videos).__name__}")


def _one(video: Any) -> Any:
    if isinstance(video, list | tuple | Mapping):
        raise TypeError(
            f"each video must be one, got a {type(video).__name__} of {len(video)}: give the data set itself, and a"
            " batch_size, in place of batches that a loader makes"
        )
    return video


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
