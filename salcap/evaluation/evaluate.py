"""Captioning quality of one setting on a data set whose references are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from salcap.caption import Caption
from salcap.datasets.captioned_videos import CaptionedItem, CaptionedSet, captions_sha256, describe_missing
from salcap.evaluation.caption_log import Record
from salcap.evaluation.captions import NOT_ASKED, score_report
from salcap.evaluation.provenance import hardware, versions, weights_sha256
from salcap.evaluation.receipt import Receipt, RunSettings
from salcap.frames import Frames
from salcap.pipeline import SaliencyCaptioner


class MissingItemsError(RuntimeError):
    """Items of a data set that could not be captioned, where all of them were wanted."""


def describe_runs(
    captioners: Sequence[SaliencyCaptioner],
    dataset: CaptionedSet,
    *,
    num_frames: int | None = None,
    frames: str = "uniform",
    batch_size: int = 16,
    **generation: Any,
) -> list[RunSettings]:
    """The settings under which captioners, which may share models, are to caption a data set.

    Args:
        num_frames, frames: as of `SaliencyCaptioner.caption`; a still is one frame.
        generation: keyword arguments of ``transformers``' generate; where the captioner takes one, ``prompt``.

    Raises:
        ValueError: a choice of frames for stills.
    """
    if dataset.stills and (num_frames not in (None, 1) or frames != "uniform"):
        raise ValueError(f"{dataset.name} holds photographs, clips of one frame: num_frames and frames do nothing")
    hashes: dict[int, str | None] = {}

    def hash_of(model: Any) -> str | None:
        if id(model) not in hashes:
            hashes[id(model)] = weights_sha256(model) if isinstance(model, nn.Module) else None
        return hashes[id(model)]

    runs, found_versions = [], versions()
    for each in captioners:
        weighting, model = each.weighting, getattr(each.captioner, "model", None)
        prunes, looks = "prune" in weighting.modes, weighting.mode != "none" or frames == "saliency"
        generator = getattr(each.captioner, "generator", None)
        defaults = generator.generation_config.to_json_string() if generator is not None else "{}"
        runs.append(
            RunSettings(
                dataset=dataset.name,
                split=dataset.split,
                untrimmed=dataset.untrimmed,
                split_sha256=dataset.sha256,
                num_in_split=dataset.num_in_split,
                model=each.captioner.name,
                revision=each.captioner.revision,
                weights_sha256=hash_of(model),
                dtype=str(model.dtype) if model is not None else None,
                prompt=generation.get("prompt", getattr(each.captioner, "default_prompt", None)),
                generation=generation,
                generation_defaults=json.loads(defaults),
                num_frames=1 if dataset.stills else num_frames,
                frames=frames,
                batch_size=batch_size,
                saliency=each.saliency.name if looks else None,
                saliency_sha256=hash_of(each.saliency) if looks else None,
                mode=weighting.mode,
                policy=weighting.policy if prunes else None,
                scope=weighting.scope if prunes else None,
                keep_ratio=weighting.keep_ratio,
                max_visual_tokens=weighting.max_visual_tokens,
                min_keep=weighting.min_keep,
                strength=weighting.strength,
                zoom=weighting.zoom if each.zooms else None,
                seed=weighting.seed,
                versions=found_versions,
                hardware=hardware(model.device if model is not None else each.saliency.device),
            )
        )
    return runs


def evaluate_set(
    captioner: SaliencyCaptioner,
    dataset: CaptionedSet,
    settings: RunSettings,
    *,
    allow_missing: bool = False,
    done: Mapping[str, Record] | None = None,
    keep: Callable[[dict[str, Record]], object] = lambda records: None,
    progress: Callable[[int], object] = lambda count: None,
) -> Receipt:
    """Caption every item of a data set and score all captions.

    Args:
        settings: of `describe_runs`, for this captioner and this set.
        allow_missing: score what there is, and mark the receipt as partial.
        done: captions of an earlier run under the same settings, id -> record.
        keep: called with each batch of new records, failures among them, id -> record.
        progress: called with the number of items just done.

    Raises:
        MissingItemsError: items that are missing or cannot be read, without ``allow_missing``; or nothing to score.
        ValueError: settings that fit no video.
    """
    missing = dataset.missing
    if not allow_missing:
        check_complete(dataset, missing)
    records = {item.id: done[item.id] for item in dataset.items if item.id in done} if done else {}
    progress(len(records))
    todo = [item for item in dataset.items if item.id not in records and item.id not in missing]
    for batch in caption_items(captioner, todo, settings, dataset.stills):
        keep(batch)
        records |= {key: record for key, record in batch.items() if record["caption"] is not None}
        missing |= {key: f"unreadable: {record['error']}" for key, record in batch.items() if record["caption"] is None}
        progress(len(batch))
    if not allow_missing or not records:
        check_complete(dataset, missing)
    captions = {item.id: records[item.id]["caption"] for item in dataset.items if item.id in records}
    references = {item.id: list(item.captions) for item in dataset.items if item.id in records}
    report = score_report(references, captions)
    stages = sorted({stage for record in records.values() for stage in record["timings"]})
    means = {stage: np.mean([record["timings"].get(stage, 0.0) for record in records.values()]) for stage in stages}
    return Receipt(
        **vars(settings),
        num_items=len(captions),
        missing=missing,
        partial=len(captions) < dataset.num_in_split,
        visual_tokens=float(np.mean([record["visual_tokens"] for record in records.values()])),
        stage_ms={stage: round(float(mean), 2) for stage, mean in means.items()},
        tokenizer=report.tokenizer,
        scores=report.scores,
        missing_scores={name: why for name, why in report.reasons.items() if why != NOT_ASKED},
        references_sha256=captions_sha256(references),
        captions_sha256=captions_sha256(captions),
        captions=captions,
        frame_pts_seconds={key: tuple(records[key]["frame_pts_seconds"]) for key in captions},
    )


def check_complete(dataset: CaptionedSet, missing: Mapping[str, str]) -> None:
    """Raise a MissingItemsError if anything is missing."""
    if missing:
        raise MissingItemsError(describe_missing(missing, dataset))


def caption_items(
    captioner: SaliencyCaptioner, items: Sequence[CaptionedItem], settings: RunSettings, stills: bool
) -> Iterator[dict[str, Record]]:
    """Caption items that have files in batches, in order: id -> record. Items of one batch share their times."""
    size, options = settings.batch_size, captioner.read_options
    for times, group in groupby(items, key=lambda item: (item.start_seconds, item.end_seconds)):
        alike = list(group)
        for batch in (alike[start : start + size] for start in range(0, len(alike), size)):
            paths = [item.path for item in batch if item.path is not None]
            videos = [read_still(path, **options) for path in paths] if stills else paths
            results: list[Caption] = captioner.caption_batch(
                videos, settings.num_frames, *times, settings.frames, **settings.generation
            )
            yield {item.id: result.to_dict() for item, result in zip(batch, results, strict=True)}


def read_still(path: Path, size: tuple[int, int] | None = None, shortest_side: int | None = None) -> Frames:
    """A photograph as a clip of one frame, brought to the size at which videos are read for the same captioner."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if shortest_side is not None:
        share = min(1.0, shortest_side / min(picture.size))
        size = (round(picture.height * share), round(picture.width * share))
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return Frames(pixels[None].contiguous(), torch.zeros(1), str(path))
