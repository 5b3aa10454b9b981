"""The receipt of an evaluation: the captions, their scores, and all that is needed to check or repeat them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from salcap.config import build_dataclass
from salcap.datasets.captioned_videos import CaptionedSet, captions_sha256, read_json
from salcap.evaluation.captions import METRICS, SCORES, TOKENIZERS, score_report
from salcap.strict_json import to_json

SCHEMA_VERSION = 1
TOLERANCE = 1e-6  # between a score and its repetition


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What decides the captions of one row; known before the first of them.

    Attributes:
        split_sha256: see `salcap.datasets.captioned_videos.split_sha256`.
        revision: the model's commit; None where it is not known, as of a local folder.
        weights_sha256, saliency_sha256: see `salcap.evaluation.provenance.weights_sha256`.
        prompt: what the model is asked; None where it takes no text.
        generation: what the user asked of ``transformers``' generate; ``generation_defaults`` is the model's own.
        num_frames: as asked for; None means the captioner's default (see ``frame_pts_seconds``).
        frames: how they are chosen.
        gain: what the captioner multiplies ``strength`` by; None in receipts from before it was stated.
        saliency: None where no map is made.
        policy, scope: None without "prune"; ``zoom`` without "zoom".
    """

    schema_version: int = SCHEMA_VERSION
    dataset: str
    split: str | None
    untrimmed: bool
    split_sha256: str
    num_in_split: int
    model: str
    revision: str | None
    weights_sha256: str | None
    dtype: str | None
    prompt: str | None
    generation: dict[str, Any]
    generation_defaults: dict[str, Any]
    num_frames: int | None
    frames: str
    batch_size: int
    saliency: str | None
    saliency_sha256: str | None
    mode: str
    policy: str | None
    scope: str | None
    keep_ratio: float
    max_visual_tokens: int | None
    min_keep: int
    strength: float
    zoom: float | None
    seed: int
    gain: float | None = None
    versions: dict[str, str | None]
    hardware: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Receipt(RunSettings):
    """One row of an evaluation.

    Attributes:
        num_items: captions that were scored.
        missing: ids without a caption -> why.
        partial: whether the scores are of a part of the split only, and so not those of the set.
        visual_tokens: mean of an item.
        stage_ms: mean milliseconds of an item by stage.
        scores: as `score_captions` gives them; ``missing_scores``: name -> why, of metrics that were asked for.
        references_sha256, captions_sha256: of the scored ids, see `captions_sha256`.
        frame_pts_seconds: id -> times of the frames that the captioner saw.
    """

    num_items: int
    missing: dict[str, str] = field(repr=False)
    partial: bool
    visual_tokens: float
    stage_ms: dict[str, float]
    tokenizer: str | None
    scores: dict[str, float | None]
    missing_scores: dict[str, str]
    references_sha256: str
    captions_sha256: str
    captions: dict[str, str] = field(repr=False)
    frame_pts_seconds: dict[str, tuple[float, ...]] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """All but what there is for every item; ``num_missing`` takes the place of the list."""
        record = asdict(self)
        for name in ("captions", "frame_pts_seconds", "missing"):
            del record[name]
        return {**record, "num_missing": len(self.missing)}


def write_receipts(path: str | Path, receipts: Sequence[Receipt]) -> None:
    """Write a JSON file at one stroke: one receipt as an object, several as a list."""
    records = [asdict(receipt) for receipt in receipts]
    text = to_json(records if len(records) > 1 else records[0], indent=1, ensure_ascii=False)
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(text.encode("utf-8", "backslashreplace"))  # of a lone surrogate JSON's escape
    os.replace(partial, path)


def read_receipts(path: str | Path) -> list[Receipt]:
    """The receipts of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another layout, or of another schema version.
    """
    path = Path(path)
    content = read_json(path)
    records = content if isinstance(content, list) else [content]
    if not records:
        raise ValueError(f"{path} holds no receipt")
    for record in records:
        found = record.get("schema_version") if isinstance(record, dict) else None
        if found != SCHEMA_VERSION:
            raise ValueError(f"{path} is no receipt of schema version {SCHEMA_VERSION}, it states version {found}")
    return [build_dataclass(Receipt, record, str(path)) for record in records]


def verify_receipt(receipt: Receipt, dataset: CaptionedSet) -> list[str]:
    """Score a receipt's captions again and compare; its model and videos are not needed.

    Args:
        dataset: the split that the receipt names, as it is at hand.

    Returns:
        Every difference, one line each; empty where all is confirmed.
    """
    references = {item.id: item.captions for item in dataset.items if item.captions}
    ids = {item.id for item in dataset.items}
    captioned = receipt.captions.keys()
    found = _compare("split hash", receipt.split_sha256, dataset.sha256)
    found += _compare("items in the split", receipt.num_in_split, dataset.num_in_split)
    found += _compare("items scored", receipt.num_items, len(captioned))
    found += _compare("partial", receipt.partial, captioned != ids)
    found += _compare("hash of the captions", receipt.captions_sha256, captions_sha256(receipt.captions))
    if both := sorted(captioned & receipt.missing.keys()):
        found.append(f"{len(both)} ids are both captioned and missing: {both[:3]}")
    if strange := sorted((captioned | receipt.missing.keys()) - ids):
        found.append(f"{len(strange)} ids are not in the split: {strange[:3]}")
    if strange := sorted(captioned - references.keys()):
        return [*found, f"not scored again: {len(strange)} captions have no references here: {strange[:3]}"]
    references = {key: references[key] for key in captioned}
    found += _compare("hash of the references", receipt.references_sha256, captions_sha256(references))
    return found + _compare_scores(receipt, {key: list(texts) for key, texts in references.items()})


def _compare_scores(receipt: Receipt, references: dict[str, list[str]]) -> list[str]:
    stated = {name: score for name, score in receipt.scores.items() if score is not None}
    metrics = [metric for metric in METRICS if any(name.startswith(metric) for name in stated)]
    kinds = [name for name, words in TOKENIZERS.items() if words == receipt.tokenizer]
    if stated and not kinds:
        return [f"tokenizer: the receipt says {receipt.tokenizer}, known are {', '.join(TOKENIZERS.values())}"]
    report = score_report(references, receipt.captions, metrics, tokenizer=kinds[0] if kinds else "auto")
    found = []
    for name in SCORES:
        score, again = stated.get(name), report.scores[name]
        if score is None:
            if name != "spice" and name not in receipt.missing_scores:
                found.append(f"{name}: the receipt has neither a score nor a reason")
        elif again is None:
            found.append(f"{name}: the receipt says {score:.6f}, here there is none: {report.reasons[name]}")
        elif not abs(again - score) <= TOLERANCE:
            found.append(f"{name}: the receipt says {score:.6f}, its captions score {again:.6f}")
    return found + (_compare("tokenizer", receipt.tokenizer, report.tokenizer) if stated else [])


def _compare(what: str, stated: object, here: object) -> list[str]:
    return [] if stated == here else [f"{what}: the receipt says {stated}, here it is {here}"]
