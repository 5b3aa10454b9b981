"""Captioned clips for fine-tuning: frames are read ahead in threads, maps are predicted once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from salcap.datasets.captioned_videos import CaptionedItem, describe_missing
from salcap.datasets.registry import load_captioned_set
from salcap.frames import Frames
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.stills import read_still
from salcap.training.finetune_settings import ClipSource
from salcap.video import read_frames

Clips = tuple[list[Frames], list[Tensor] | None]  # as `CaptionerFamily.loss` takes them


class CaptionedClips:
    """The clips of a data set as a captioner sees them.

    Args:
        pipeline: says how clips are read, predicts their maps, and zooms.

    Attributes:
        items: that can be trained on or scored.
        sha256: of the whole split, see `split_sha256`.

    Raises:
        FileNotFoundError, ValueError: what `load_captioned_set` refuses, files that are missing, or a number of frames
            that does not fit.
    """

    def __init__(
        self, source: ClipSource, pipeline: SaliencyCaptioner, num_frames: int | None, readers: ThreadPoolExecutor
    ) -> None:
        dataset = load_captioned_set(source.dataset, source.root, source.split, untrimmed=source.untrimmed)
        dataset = dataset.first(source.limit)
        self.items, self.sha256 = dataset.present, dataset.sha256
        if not self.items or (dataset.missing and not source.allow_missing):
            raise ValueError(f"{describe_missing(dataset.missing, dataset)} (allow_missing: true goes without them)")
        self._stills, self._pipeline, self._readers = dataset.stills, pipeline, readers
        self._num_frames, self._options = pipeline.first_read(dataset.resolve_num_frames(num_frames))
        self._maps: dict[int, Tensor] = {}

    def read(self, batches: Iterable[Sequence[int]]) -> Iterator[Clips]:
        """Frames and maps of batches of items, the next batch being read meanwhile.

        Raises:
            OSError, VideoDecodeError: a file that gives no frame.
        """
        coming: list[tuple[Sequence[int], list[Future[Frames]]]] = []
        for indices in batches:
            coming.append((indices, [self._readers.submit(self._read, self.items[index]) for index in indices]))
            if len(coming) > 1:
                yield self._look(*coming.pop(0))
        for pair in coming:
            yield self._look(*pair)

    def _read(self, item: CaptionedItem) -> Frames:
        assert item.path is not None
        if self._stills:
            return read_still(item.path, **self._options)
        return read_frames(item.path, self._num_frames, item.start_seconds, item.end_seconds, **self._options)

    def _look(self, indices: Sequence[int], reading: Sequence[Future[Frames]]) -> Clips:
        frames = [future.result() for future in reading]
        pipeline = self._pipeline
        if pipeline.weighting.mode == "none":
            return frames, None
        for index, clip in zip(indices, frames, strict=True):
            if index not in self._maps:
                self._maps[index] = pipeline.saliency.predict(clip, size="native").cpu()
        maps = [self._maps[index] for index in indices]
        if pipeline.zooms:
            views = [pipeline.zoom_in(clip, log_density)[:2] for clip, log_density in zip(frames, maps, strict=True)]
            frames, maps = [view for view, _ in views], [map_of_view for _, map_of_view in views]
        return frames, maps
