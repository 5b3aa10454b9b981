"""Add a model family that salcap does not know, LLaVA 1.5, and test it on a tiny model of random weights.

With a checkpoint at hand, `salcap.SaliencyCaptioner.from_pretrained("llava-hf/llava-1.5-7b-hf")` then works too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import salcap
from salcap.captioners import register_captioner
from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures, MultimodalCaptioner, split_clips
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames


class LlavaCaptioner(MultimodalCaptioner):
    """``LlavaForConditionalGeneration``: each frame an image; "prune" drops tokens behind the projector."""

    transformers_class = "LlavaForConditionalGeneration"
    early_pruning = False
    placeholder = "image"

    def look(self, batch: ClipBatch, prompt: str) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        pixels = torch.cat(list(batch.clip_pixels))
        features = torch.stack(list(self.model.model.get_image_features(pixels, return_dict=True).pooler_output))
        side = math.isqrt(features.shape[1])
        plans = self.plan(batch, (side, side), num_prefix_tokens=0)
        pairs = zip(plans, split_clips(features, batch), strict=True)
        return plans, [[plan.prune(frame, tokens) for frame, tokens in enumerate(clip)] for plan, clip in pairs]

    def chat_visuals(self, frames: Frames) -> list[dict[str, str]]:
        return [{"type": "image"}] * len(frames)

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        return [self.placeholder_token * count for count in counts]


def tiny_llava() -> tuple[Any, Any]:
    """A model of random weights, and its processor."""
    words = ["<pad>", "</s>", "<unk>", "<image>", *(f"word{number}" for number in range(60))]
    vocabulary = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", eos_token="</s>", extra_special_tokens={"image": "<image>"}
    )
    tokenizer.chat_template = (
        "{% for part in messages[0].content %}{{ part.text if part.type == 'text' else '<image>' }} {% endfor %}"
    )
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config={**size, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
        text_config={**size, "model_type": "llama", "vocab_size": len(words), "eos_token_id": 1, "pad_token_id": 0},
        image_token_id=3,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():  # the usual weights are so small that images hardly change the text
        parameter.data.mul_(8)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return model, SimpleNamespace(image_processor=images, tokenizer=tokenizer)


def main() -> None:
    register_captioner("llava", LlavaCaptioner)
    model, processor = tiny_llava()
    inspection = salcap.inspect(model, processor)
    for name, check in inspection.checks.items():
        print(f"{name}: {'passed' if check.passed else 'failed'}: {check.detail}")
    print(f"{inspection.family}: {'passed' if inspection.passed else 'failed'}, modes {', '.join(inspection.modes)}")


if __name__ == "__main__":
    main()
