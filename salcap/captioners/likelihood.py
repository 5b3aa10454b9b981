"""How likely captions are: of those that were generated, and of those that are given, for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = -100  # in captions that are given: no token


@dataclass(frozen=True, eq=False)
class GivenCaptions:
    """What a model makes of captions that it is given, of clips that share a call.

    Attributes:
        captions: (B, L) int64, padded with `PADDING`.
        logits: (B, L, vocabulary): of each token when all before it are read.
        clip_encodings: (B, D), the mean of each clip's visual tokens; None where the model's decoder reads no output of
            an encoder.
        indices: places of the clips among those asked for.
    """

    captions: Tensor
    logits: Tensor
    clip_encodings: Tensor | None
    indices: Sequence[int] = ()

    def loss(self) -> Tensor:
        """Minus the log-probabilities of all tokens, summed."""
        return F.cross_entropy(self.logits.float().mT, self.captions, ignore_index=PADDING, reduction="sum")


def mean_log_probs(output: Any, eos_token_ids: Sequence[int]) -> list[float | None]:
    """Mean log-probability per generated token of each sequence, the end token counted.

    Of the scores that the search went by (after ``transformers``' logits processors). For beam search it is
    ``sequences_scores`` at length penalty 1, whatever the length penalty was. None where there are no scores.
    """
    sequences, scores = output.sequences, output.scores
    if not scores:
        return [None] * len(sequences)
    rows = getattr(output, "beam_indices", None)
    searched = rows is not None
    if rows is None:  # greedy search and sampling: every sequence stays in its row until its end token
        ended = torch.isin(sequences[:, -len(scores) :], sequences.new_tensor(eos_token_ids)).long()
        going = ended.cumsum(1) - ended == 0
        rows = torch.arange(len(sequences), device=sequences.device)[:, None].where(going, -1)
    tokens = sequences[:, -rows.shape[1] :]
    total = torch.zeros(len(sequences), device=sequences.device)
    for step in range(rows.shape[1]):
        step_scores = scores[step][rows[:, step].clamp_min(0)].float()
        if not searched:  # beam search keeps log-probabilities, the others keep logits
            step_scores = step_scores.log_softmax(-1)
        chosen = step_scores.gather(1, tokens[:, step, None])[:, 0]
        total += chosen.where(rows[:, step] >= 0, 0.0)
    return (total / (rows >= 0).sum(1)).tolist()


def give_captions(generator: Any, inputs: Mapping[str, Any], captions: Tensor) -> GivenCaptions:
    """One forward, over captions that are given, of the module that would generate them (teacher forcing).

    Args:
        inputs: what its ``generate`` would be called with, prompts padded on the left.
        captions: (B, L) int64, padded with `PADDING` on the right.
    """
    encoded = inputs.get("encoder_outputs")
    encodings = None if encoded is None else encoded.last_hidden_state.mean(1)
    return GivenCaptions(captions, _given_logits(generator, inputs, captions), encodings)


def _given_logits(generator: Any, inputs: Mapping[str, Any], captions: Tensor) -> Tensor:
    # what stands in for padding comes after every real token, which looks back only
    said = captions.where(captions != PADDING, captions[:, :1])[:, :-1]
    inputs = {**inputs, "use_cache": False}
    if generator.config.is_encoder_decoder:
        return generator(**inputs, decoder_input_ids=F.pad(said, (1, 0), value=_start_token_id(generator))).logits
    length, prompt = said.shape[1], inputs.pop("input_ids", None)
    if prompt is None:
        prompt = said.new_full((len(said), 1), _start_token_id(generator))
    if "inputs_embeds" in inputs:
        embeds = generator.get_input_embeddings()(said).to(inputs["inputs_embeds"].dtype)
        inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], embeds], 1)
    else:
        inputs["input_ids"] = torch.cat([prompt, said], 1)
    if "attention_mask" in inputs:
        inputs["attention_mask"] = F.pad(inputs["attention_mask"], (0, length), value=1)
    if "position_ids" in inputs:
        after = torch.arange(1, length + 1, device=said.device)
        inputs["position_ids"] = torch.cat([inputs["position_ids"], inputs["position_ids"][..., -1:] + after], -1)
    return generator(**inputs).logits[:, -length - 1 :]


def _start_token_id(generator: Any) -> int:
    config = generator.generation_config
    start = getattr(config, "decoder_start_token_id", None)
    start = config.bos_token_id if start is None else start
    if not isinstance(start, int):
        raise ValueError(f"{type(generator).__name__} names no one token that captions start with: got {start!r}")
    return start
