"""Captioning quality of one setting on a data set whose references are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from salcap.corpus import caption_corpus
from salcap.datasets.captioned_videos import CaptionedSet, captions_sha256, describe_missing
from salcap.evaluation.captions import NOT_ASKED, score_report
from salcap.evaluation.provenance import hardware, versions
from salcap.evaluation.receipt import Receipt, RunSettings
from salcap.hashing import weights_sha256
from salcap.records import Record, read_records
from salcap.saliency_captioner import SaliencyCaptioner


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
    num_frames = dataset.resolve_num_frames(num_frames, frames)
    hashes: dict[int, str | None] = {}

    def hash_of(model: Any) -> str | None:
        if id(model) not in hashes:
            hashes[id(model)] = weights_sha256(model) if isinstance(model, nn.Module) else None
        return hashes[id(model)]

    runs, found_versions = [], versions()
    for each in captioners:
        described, model = each.describe(frames), getattr(each.captioner, "model", None)
        generator = getattr(each.captioner, "generator", None)
        defaults = generator.generation_config.to_json_string() if generator is not None else "{}"
        runs.append(
            RunSettings(
                dataset=dataset.name,
                split=dataset.split,
                untrimmed=dataset.untrimmed,
                split_sha256=dataset.sha256,
                num_in_split=dataset.num_in_split,
                **described,
                weights_sha256=hash_of(model),
                dtype=str(model.dtype) if model is not None else None,
                prompt=generation.get("prompt", getattr(each.captioner, "default_prompt", None)),
                generation=generation,
                generation_defaults=json.loads(defaults),
                num_frames=num_frames,
                batch_size=batch_size,
                saliency_sha256=hash_of(each.saliency) if described["saliency"] else None,
                strength=each.weighting.strength,
                gain=float(getattr(each.captioner, "gain", 1.0)),
                seed=each.weighting.seed,
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
    output: Path | None = None,
    num_workers: int | None = None,
    progress: Callable[[Record, int, int], object] = lambda record, done, total: None,
) -> Receipt:
    """Caption every item of a data set and score all captions.

    Args:
        settings: of `describe_runs`, for this captioner and this set.
        allow_missing: score what there is, and mark the receipt as partial.
        output: file of records, from which a run that was killed goes on; what failed in it is tried again.
        num_workers, progress: see `caption_corpus`.

    Raises:
        MissingItemsError: items that are missing or gave no caption, without ``allow_missing``; or nothing to score.
        ValueError: settings that fit no video, or not those of the ``output``.
    """
    missing = dataset.missing
    if not allow_missing or not dataset.present:
        check_complete(dataset, missing)
    records: dict[str, Record] = {}

    def take(record: Record, done: int, total: int) -> None:
        records[record["id"]] = record
        progress(record, done, total)

    caption_corpus(
        captioner,
        dataset,
        output,
        num_frames=settings.num_frames,
        frames=settings.frames,
        batch_size=settings.batch_size,
        num_streams=1,  # the receipt states times
        num_workers=num_workers,
        retry_failed=True,
        lessen=False,
        settings={**vars(settings), "times_sha256": dataset.times_sha256},
        progress=take,
        **settings.generation,
    )
    if output is not None:
        records = {record["id"]: record for record in read_records(output)}
    failed = {key: record["error"] for key, record in records.items() if record["caption"] is None}
    missing |= {item.id: f"not captioned: {failed[item.id]}" for item in dataset.items if item.id in failed}
    records = {item.id: records[item.id] for item in dataset.items if item.id not in missing}
    if not allow_missing or not records:
        check_complete(dataset, missing)
    captions = {key: record["caption"] for key, record in records.items()}
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
