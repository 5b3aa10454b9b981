"""caption_dataset: many videos, captioned by the workers of a Ray cluster.

```
paths ─ manifest.py ─> Ray Data ─> actors: a captioner and its reading processes each ─> record_parts.py
```
"""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import numpy as np

from salcap.batch_captioner import BatchCaptioner
from salcap.caption import Caption
from salcap.corpus import CorpusSummary, open_readers
from salcap.manifest import Item, find_items
from salcap.reading import ReaderPool
from salcap.record_parts import RecordParts
from salcap.records import Record, count_errors
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.strict_json import to_json
from salcap.video import DEFAULT_LIMITS, VideoLimits

TASK_ITEMS = 32  # clips that a worker takes at once, and that are captioned again where it dies


def caption_dataset(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Callable[[], SaliencyCaptioner] = "salcap-mini",
    num_actors: int | None = None,
    num_gpus: float = 0,
    max_task_retries: int = 3,
    num_frames: int | None = None,
    frames: str = "uniform",
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    num_workers: int = 1,
    time_limit: float | None = None,
    limits: VideoLimits = DEFAULT_LIMITS,
    recursive: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
    lessen: bool = True,
    progress: Callable[[Record, int, int], object] = lambda record, done, total: None,
    **options: Any,
) -> CorpusSummary:
    """Caption many videos on Ray (the cluster that ``ray.init`` named, else this machine), as `caption_corpus` does.

    Each actor loads the captioner once. One that dies is started again, and what it was at work on is captioned again;
    clips with which their worker dies each time are tried alone, and then fail with ``WorkerDied``. Before all that one
    worker captions noise, so that settings that fit no video are told at once.

    Args:
        paths: a video file, folder, glob pattern or manifest, or several, see `salcap.manifest.find_items`; all workers
            must see the files under these names.
        output: folder for parts of records (`salcap.record_parts`), a path or URL that fsspec knows, such as
            ``s3://bucket/captions.parquet``; its suffix .jsonl or .parquet is their format. One run at a time.
        model: what `SaliencyCaptioner.from_pretrained` takes by name, or a function that loads a captioner.
        num_actors: None: as many as the cluster has room for.
        num_gpus: that each actor takes of one machine; 0.25: four share a GPU. Then ``device`` is "cuda" by default.
        max_task_retries: how often the clips of a dead actor are tried again together.
        num_workers: reading processes of each actor.
        recursive: also files in folders below.
        num_frames, frames, batch_size, batch_tokens, time_limit, limits, overwrite, retry_failed, lessen, progress: as
            for `caption_corpus`; records come in the order in which they are done.
        options: keyword arguments of `SaliencyCaptioner.from_pretrained` (saliency, mode, keep_ratio, device, ...); all
            others are for ``transformers``' generate.

    Returns:
        The summary; its ``records`` are ``output``, to be read by `read_parts`.

    Raises:
        ImportError: Ray is not installed.
        ValueError, TypeError: settings that fit no video or not the output's; paths that hold no files.
        OSError: records cannot be written; those written before are whole.
    """
    ray = _import_ray()
    for name, value, least in (
        ("num_actors", num_actors, 1),
        ("num_gpus", num_gpus, 0),
        ("max_task_retries", max_task_retries, 0),
        ("batch_size", batch_size, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    items = find_items([paths] if isinstance(paths, str | os.PathLike) else paths, recursive)
    load, generation = _loader(model, options, num_gpus)
    build = partial(_build, load, num_frames, frames, batch_size, batch_tokens, lessen, generation)
    readers = partial(open_readers, num_workers, time_limit, limits)
    with RecordParts(output) as parts:
        try:
            settings, described = ray.get(ray.remote(num_cpus=1, num_gpus=num_gpus)(_try_out).remote(build))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        parts.begin(settings, overwrite, retry_failed)
        left = {item.id: item for item in items if item.id not in parts.outcomes}
        num_new = len(left)

        def keep(record: Record) -> None:
            if left.pop(record["id"], None) is not None:  # Ray may do a task twice
                parts.add(record)
                progress(record, num_new - len(left), num_new)

        num_actors = num_actors or _room_for_actors(ray, num_gpus)
        share = -(-num_new // (4 * num_actors))
        # in the end one clip at a time, none waiting at the worker, which would die with another
        for task_items, in_flight in ((max(batch_size or 1, min(share, TASK_ITEMS)), None), (1, 1)):
            size = min(num_actors, max(len(left), 1))
            pool = ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=in_flight)
            remote = {"compute": pool, "num_cpus": 1, "num_gpus": num_gpus, "max_task_retries": max_task_retries}
            for record in _run(ray, list(left.values()), task_items, (build, readers), remote):
                keep(record)
        for item in list(left.values()):
            caption = Caption(None, item.path, item.start_seconds, item.end_seconds, **described)
            words = f"{item.path}: each worker that captioned it died"
            keep({"id": item.id, **replace(caption, error=words, error_class="WorkerDied").to_dict()})
        errors = count_errors([parts.outcomes[item.id] for item in items])
    return CorpusSummary(len(items), num_new, errors, parts.folder)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ImportError("caption_dataset needs Ray: pip install 'salcap[ray]'") from error
    return ray


def _loader(
    model: str | os.PathLike[str] | Callable[[], SaliencyCaptioner], options: dict[str, Any], num_gpus: float
) -> tuple[Callable[[], SaliencyCaptioner], dict[str, Any]]:
    """What loads the captioner, and those of the options that are left for generate."""
    known = inspect.signature(SaliencyCaptioner.from_pretrained).parameters
    loading = {name: value for name, value in options.items() if name in known}
    generation = {name: value for name, value in options.items() if name not in known}
    if isinstance(model, str | os.PathLike):
        if num_gpus:
            loading.setdefault("device", "cuda")
        return partial(SaliencyCaptioner.from_pretrained, os.fspath(model), **loading), generation
    if loading:
        raise ValueError(f"options {sorted(loading)} belong into the function that is given as model")
    return model, generation


def _build(load: Callable[[], SaliencyCaptioner], *settings: Any) -> BatchCaptioner:
    captioner = load()
    if not isinstance(captioner, SaliencyCaptioner):
        raise TypeError(f"model must be a name or a function that loads a SaliencyCaptioner, got {captioner!r}")
    return BatchCaptioner(captioner, *settings)


def _try_out(build: Callable[[], BatchCaptioner]) -> tuple[dict[str, Any], dict[str, Any]]:
    """On a worker: the settings for the output and those that a `Caption` states.

    Raises:
        ValueError, TypeError: they fit no video.
    """
    model = build()
    noise = np.random.default_rng(0).integers(256, size=(model.num_frames, 64, 64, 3), dtype=np.uint8)
    try:
        model.captioner.caption_batch([noise], model.num_frames, frames=model.frames, **model.generation)
    except (TypeError, ValueError):
        raise
    except Exception:
        pass  # such as too little memory: the videos may fare better, and have records if not
    return model.settings, model.captioner.describe(model.frames)


def _room_for_actors(ray: Any, num_gpus: float) -> int:
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0) / num_gpus if num_gpus else resources.get("CPU", 1)))


def _run(
    ray: Any, items: Sequence[Item], task_items: int, arguments: tuple[Any, ...], remote: dict[str, Any]
) -> Iterator[Record]:
    """Records of the items as they are done, but for those of tasks that were given up."""
    if not items:
        return
    rows = [{"item": to_json(astuple(item))} for item in items]
    data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // task_items))
    data.context.max_errored_blocks = -1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_task_retries, which has no other place in Ray Data
        data = data.map_batches(_Actor, fn_constructor_args=arguments, batch_size=None, **remote)
    for batch in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        yield from map(json.loads, batch["record"])


class _Actor:
    """A captioner on a worker, with its reading processes."""

    def __init__(self, build: Callable[[], BatchCaptioner], readers: Callable[[], ReaderPool]) -> None:
        self.readers = readers()
        self.model = build()
        self.model.succeeded = True  # an error is the clip's: the settings were tried out

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        items = [Item(*json.loads(item)) for item in batch["item"]]
        return {"record": [to_json(record) for record in self.model.run(items, self.readers)]}
