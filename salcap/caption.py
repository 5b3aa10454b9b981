"""Caption: what the pipeline hands back, one for each clip."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Caption:
    """One clip's caption with everything needed to reproduce it.

    Attributes:
        text: the caption; None where the clip failed.
        error, error_class: why it failed, and of what kind; None where it did not.
        path: the video's file; None where it was none, or has no name.
        start_seconds, end_seconds: the part of the video that the caption speaks of.
        score: mean log-probability per token, in nats; None where the captioner gives none.
        model, revision: what captioned: name or folder, and the hub's revision that was asked for.
        saliency: the backbone; None where no map was looked at.
        frames: how they were chosen, "uniform" or "saliency".
        timings: milliseconds by stage (``read_ms``, ``saliency_ms``, and those of `GeneratedText`; with frames chosen
            by saliency also ``choose_ms``, with mode "zoom" also ``zoom_ms``).
        mode: what the maps did; see `salcap.config.Weighting` for this and the next ones.
        policy, scope: how ``prune`` chose; None without it.
        keep_ratio, max_visual_tokens, min_keep: its budget, as it was asked for.
        views: pictures that the captioner saw: one of each frame, with mode "zoom" two.
        zoom, zoom_boxes: of mode "zoom": how much closer the crops are, and of each frame where its crop lies (left,
            top, right, bottom in fractions of the frame); None and () without it.
        visual_tokens: tokens the text decoder saw, over all views; never above ``max_visual_tokens``.
        frame_pts_seconds: when each frame is shown, in seconds from the start of the file.
        warnings: damage, missing frames, and what was reduced for want of memory.
    """

    text: str | None
    path: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    score: float | None = None
    model: str | None = None
    revision: str | None = None
    saliency: str | None = None
    frames: str = "uniform"
    mode: str = "none"
    policy: str | None = None
    scope: str | None = None
    keep_ratio: float = 1.0
    max_visual_tokens: int | None = None
    min_keep: int = 1
    zoom: float | None = None
    zoom_boxes: tuple[tuple[float, float, float, float], ...] = ()
    views: int | None = None
    visual_tokens: int | None = None
    frame_pts_seconds: tuple[float, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: str | None = None
    error_class: str | None = None

    def __str__(self) -> str:
        return self.text if self.text is not None else f"<failed: {self.error}>"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; the caption's text is under ``caption``."""
        record = asdict(self)
        text = record.pop("text")
        return {"path": record.pop("path"), "caption": text, **record}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Caption:
        """The caption of which `to_dict` made a record.

        Args:
            record: with all its keys, out of JSON too; others are left alone.
        """
        values = {"text": record["caption"], **{f.name: record[f.name] for f in fields(cls) if f.name != "text"}}
        for name in ("frame_pts_seconds", "warnings"):
            values[name] = tuple(values[name])
        return cls(**{**values, "zoom_boxes": tuple(map(tuple, values["zoom_boxes"]))})


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """A context whose milliseconds are added to those of a stage."""
    started = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + (time.perf_counter() - started) * 1000
