"""BLIP-2: EVA-CLIP, a Q-Former, OPT or T5. https://arxiv.org/abs/2301.12597"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salcap.captioners.qformer import QFormerCaptioner
from salcap.frames import Frames


class Blip2Captioner(QFormerCaptioner):
    """``Blip2ForConditionalGeneration``: see `QFormerCaptioner`. Without ``prompt`` it captions; with one, the text is
    what the model says after it.
    """

    transformers_class = "Blip2ForConditionalGeneration"
    default_prompt = ""
    placeholder = "image"

    def prompt_ids(self, frames: Frames, counts: Sequence[int], prompt: str) -> list[int]:
        text = self.tokenizer(prompt)["input_ids"] if prompt else [self.model.config.text_config.bos_token_id]
        return [self.placeholder_id] * sum(counts) + text

    def query(self, tokens: Tensor, prompt: str) -> Tensor:
        queries = self.model.query_tokens.expand(len(tokens), -1, -1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        made = self.model.qformer(
            query_embeds=queries, encoder_hidden_states=tokens, encoder_attention_mask=mask, return_dict=True
        )
        return self.model.language_projection(made.last_hidden_state.to(tokens.dtype))
