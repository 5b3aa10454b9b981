"""Captioning quality of one setting on a data set whose references are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from salcap.caption import Caption
from salcap.datasets.captioned_images import CaptionedImage, load_captioned_images
from salcap.evaluation.captions import NOT_ASKED, score_report
from salcap.frames import Frames
from salcap.pipeline import SaliencyCaptioner

DATASETS: dict[str, Callable[[str | Path], list[CaptionedImage]]] = {
    "flickr8k-val": lambda root: load_captioned_images(root, "val"),
    "flickr8k-train": lambda root: load_captioned_images(root, "train"),
    "captioned-images": lambda root: load_captioned_images(root),
}


@dataclass(frozen=True)
class Evaluation:
    """Scores of one setting with the captions that earned them.

    Attributes:
        missing_scores: name -> why, for metrics that were asked for and could not run.
        stage_ms: mean milliseconds per item of each stage.
    """

    dataset: str
    num_items: int
    model: str
    saliency: str | None
    mode: str
    policy: str | None
    keep_ratio: float
    max_visual_tokens: int | None
    min_keep: int
    zoom: float | None
    visual_tokens: float
    scores: dict[str, float | None]
    missing_scores: dict[str, str]
    stage_ms: dict[str, float]
    captions: dict[str, str] = field(repr=False)

    def to_dict(self, captions: bool = True) -> dict[str, Any]:
        record = asdict(self)
        if not captions:
            del record["captions"]
        return record


def load_dataset(name: str, root: str | Path) -> list[CaptionedImage]:
    """Items of a named data set under ``root``.

    Raises:
        ValueError: unknown name.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}, allowed: {', '.join(DATASETS)}")
    return DATASETS[name](root)


def evaluate_images(
    captioner: SaliencyCaptioner,
    items: Sequence[CaptionedImage],
    *,
    dataset: str,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
    **generation: Any,
) -> Evaluation:
    """Caption every image as a clip of one still frame and score all captions.

    Args:
        progress: called with the number of items just done.
        generation: keyword arguments of ``transformers``' generate.
    """
    results: list[Caption] = []
    for start in range(0, len(items), batch_size):
        options = captioner.read_options
        stills = [read_still(item.path, **options) for item in items[start : start + batch_size]]
        results += captioner.caption_batch(stills, num_frames=1, **generation)
        progress(len(stills))
    failed = [f"{item.path}: {r.error}" for item, r in zip(items, results, strict=True) if r.text is None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(items)} items could not be captioned: {failed[:3]}")
    captions = {item.image_id: str(result.text) for item, result in zip(items, results, strict=True)}
    report = score_report({item.image_id: list(item.captions) for item in items}, captions)
    stages = sorted({stage for result in results for stage in result.timings})
    first = results[0]
    return Evaluation(
        dataset=dataset,
        num_items=len(items),
        model=str(first.model),
        saliency=first.saliency,
        mode=first.mode,
        policy=first.policy,
        keep_ratio=first.keep_ratio,
        max_visual_tokens=first.max_visual_tokens,
        min_keep=first.min_keep,
        zoom=first.zoom,
        visual_tokens=float(np.mean([result.visual_tokens for result in results])),
        scores=report.scores,
        missing_scores={name: why for name, why in report.reasons.items() if why != NOT_ASKED},
        stage_ms={stage: round(float(np.mean([r.timings[stage] for r in results])), 2) for stage in stages},
        captions=captions,
    )


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
