"""Video captioning with a saliency front-end.

>>> import salcap
>>> salcap.SaliencyCaptioner.from_pretrained("salcap-mini").caption("clip.mp4").text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from salcap._transformers_hook import register_when_imported

if TYPE_CHECKING:
    from salcap.caption import Caption
    from salcap.config import Weighting
    from salcap.corpus import caption_corpus
    from salcap.evaluation.captions import score_captions
    from salcap.evaluation.comparison import compare
    from salcap.frames import Frames
    from salcap.inspection import inspect
    from salcap.pipeline import pipeline
    from salcap.saliency import SaliencyModel, create_saliency, list_saliency, register_saliency
    from salcap.saliency.metrics import score_saliency
    from salcap.saliency_captioner import SaliencyCaptioner
    from salcap.video import VideoDecodeError, read_frames

__version__ = "0.1.0"
__all__ = [
    "Caption",
    "Frames",
    "SaliencyCaptioner",
    "SaliencyModel",
    "VideoDecodeError",
    "Weighting",
    "caption_corpus",
    "compare",
    "create_saliency",
    "inspect",
    "list_saliency",
    "pipeline",
    "read_frames",
    "register_saliency",
    "score_captions",
    "score_saliency",
]

_HOMES = {
    "Caption": "salcap.caption",
    "Frames": "salcap.frames",
    "SaliencyCaptioner": "salcap.saliency_captioner",
    "SaliencyModel": "salcap.saliency",
    "VideoDecodeError": "salcap.video",
    "Weighting": "salcap.config",
    "caption_corpus": "salcap.corpus",
    "compare": "salcap.evaluation.comparison",
    "create_saliency": "salcap.saliency",
    "inspect": "salcap.inspection",
    "list_saliency": "salcap.saliency",
    "read_frames": "salcap.video",
    "register_saliency": "salcap.saliency",
    "score_captions": "salcap.evaluation.captions",
    "score_saliency": "salcap.saliency.metrics",
}

register_when_imported()


def __getattr__(name: str) -> Any:
    if name in ("pipeline", "ray"):  # modules; the first can be called, the second imports Ray where it is used
        return import_module(f"salcap.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'salcap' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
