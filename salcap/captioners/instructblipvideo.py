"""InstructBLIP for videos: BLIP-2 whose Q-Former reads the instruction too. https://arxiv.org/abs/2305.06500"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor

from salcap.captioners.preprocessing import WholeFrames, load_frame_settings
from salcap.captioners.qformer import QFormerCaptioner
from salcap.frames import Frames


class InstructBlipVideoCaptioner(QFormerCaptioner):
    """``InstructBlipVideoForConditionalGeneration``: see `QFormerCaptioner`. Made for four frames; takes any number.

    Args:
        processor: with ``video_processor`` or ``image_processor``, ``tokenizer`` and ``qformer_tokenizer``.
    """

    transformers_class = "InstructBlipVideoForConditionalGeneration"
    preprocessor = WholeFrames

    def __init__(self, model: Any, processor: Any, *, name: str | None = None, revision: str | None = None) -> None:
        frames = getattr(processor, "image_processor", None) or getattr(processor, "video_processor", None)
        self.qformer_tokenizer: Any = getattr(processor, "qformer_tokenizer", None)
        if frames is None or self.qformer_tokenizer is None:
            raise ValueError(
                "processor must have a video_processor or image_processor, a tokenizer and a qformer_tokenizer,"
                f" got {type(processor).__name__}"
            )
        super().__init__(model, (frames, processor.tokenizer), name=name, revision=revision)

    @classmethod
    def load_processor(cls, path: str, **source: Any) -> Any:
        return SimpleNamespace(
            video_processor=load_frame_settings(path, revision=source["revision"]),
            tokenizer=transformers.AutoTokenizer.from_pretrained(path, **source),
            qformer_tokenizer=transformers.AutoTokenizer.from_pretrained(path, subfolder="qformer_tokenizer", **source),
        )

    def save_processor(self, folder: Path) -> None:
        super().save_processor(folder)
        self.qformer_tokenizer.save_pretrained(folder / "qformer_tokenizer")

    def prompt_ids(self, frames: Frames, counts: Sequence[int], prompt: str) -> list[int]:
        return [self.placeholder_id] * sum(counts) + self.tokenizer(prompt)["input_ids"]

    def query(self, tokens: Tensor, prompt: str) -> Tensor:
        queries = self.model.query_tokens.expand(len(tokens), -1, -1)
        text = torch.tensor([self.qformer_tokenizer(prompt)["input_ids"]] * len(tokens), device=tokens.device)
        made = self.model.qformer(
            input_ids=text,
            attention_mask=text.new_ones(len(text), queries.shape[1] + text.shape[1]),
            query_embeds=queries,
            encoder_hidden_states=tokens,
            encoder_attention_mask=text.new_ones(tokens.shape[:2]),
        )
        return self.model.language_projection(made[0][:, : queries.shape[1]])
