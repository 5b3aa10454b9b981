"""The captioner contract: frames and saliency maps in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from salcap.config import Weighting
from salcap.frames import Frames


@dataclass(frozen=True)
class GeneratedText:
    """One clip's text with what it cost.

    Attributes:
        score: mean log-probability per generated token; None where generation gives none (sampling without scores);
            NaN if the model's output was not finite, in which case the text means nothing.
        visual_tokens: tokens the decoder attends to, over all frames of the clip.
        timings: wall time by stage: ``preprocess_ms``; ``encode_ms``, the vision encoder; ``prefill_ms``, from there to
            the end of the language model's first forward; ``decode_ms``, the rest. Those of a batch are divided by its
            clips.
    """

    text: str
    score: float | None
    visual_tokens: int
    timings: dict[str, float]


class Captioner(Protocol):
    """A Hugging Face captioning model with places where saliency acts.

    Attributes:
        name, revision: the model's id or path and its commit.
        modes: modes of `Weighting` that this architecture can honour (always with "none").
        early_pruning: True where ``prune`` acts before the vision encoder.
        mixes_lengths: whether clips of different numbers of frames share a call of the model.
        max_frames: most frames a clip may have, each view of mode "zoom" being one; None where there is no limit.
        read_options: arguments for `salcap.read_frames` that scale frames while decoding to the size this model
            reads: ``{"size": (H, W)}`` or ``{"shortest_side": n}``.
        default_saliency: registered backbone to use unless the user names another.
        default_weighting: setting to use unless the user gives another.
    """

    name: str
    revision: str | None
    modes: frozenset[str]
    early_pruning: bool
    mixes_lengths: bool
    max_frames: int | None
    read_options: dict[str, Any]
    default_saliency: str
    default_weighting: Weighting

    def seen_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of a height x width frame that the model sees: (left, top, right, bottom) in fractions.

        Raises:
            ValueError: it is not known; modes other than "none" cannot work then.
        """
        ...

    def generate(
        self,
        clips: Sequence[Frames],
        log_densities: Sequence[Tensor] | None,
        weighting: Weighting,
        **generation: Any,
    ) -> list[GeneratedText]:
        """Caption a batch of clips. The mode "zoom" was done before: its views are frames like any other.

        Args:
            clips: any frame sizes; clips may differ in their number of frames.
            log_densities: for each clip (T, h, w) float32 over the whole frame; None where mode is "none".
            generation: keyword arguments of ``transformers``' generate (num_beams, max_new_tokens, ...).

        Raises:
            ValueError: a mode that is not in ``modes``, more than ``max_frames`` frames, maps that do not match.
        """
        ...
