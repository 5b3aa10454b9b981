"""What the tiny multimodal models share: words, a chat, and what transformers alone makes of clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from salcap.frames import Frames

PROMPT = "Describe the video in one sentence ."
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0, "eos_token_id": 2}
MARKS = {
    "image_token": "<image>",
    "video_token": "<video>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
    "video_pad": "<|video_pad|>",
    "im_start": "<|im_start|>",
}
WORDS = [f"w{i}" for i in range(60)] + [str(i) for i in range(10)] + [f"{i:02d}" for i in range(20)]
WORDS += ["Describe", "the", "video", "in", "one", "two", "three", "four", "sentence", "from", "User", "Assistant"]
WORDS += ["Time", "Frame", "Frame1", "Frame2", "seconds", "s", ".", ":", "<", ">"]


def tokenizer(*unmarked: str) -> transformers.PreTrainedTokenizerFast:
    """Words, and every family's special tokens; the attributes named are left out."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[BOS]", "[EOS]", "[UNK]", *dict.fromkeys(WORDS)])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    marks = {name: mark for name, mark in MARKS.items() if name not in unmarked}
    special = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side="left", extra_special_tokens=marks, **special
    )


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}{{ MARK }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_template(mark: str) -> str:
    return CHAT.replace("{{ MARK }}", mark)


@dataclass(frozen=True)
class TinyMultimodal:
    """A model with its processor, and what a test must know to run it without salcap.

    Attributes:
        pixels: clips to the keywords of generate that hold their pixels.
        texts: frames of a clip to its prompt with every placeholder written out, by the family's processor.
        grid: rows and columns of the tokens of a frame.
        side: pixels along each side of a token's square.
    """

    model: Any
    processor: Any
    pixels: Callable[[list[Frames]], dict[str, Any]]
    text: Callable[[Frames], str]
    grid: tuple[int, int]
    side: int

    def inputs(self, clips: list[Frames]) -> dict[str, Any]:
        texts = [self.text(clip) for clip in clips]
        ids = self.processor.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        return {**ids, **self.pixels(clips)}

    def generate(self, clips: list[Frames], **generation: Any) -> Any:
        generation |= {"return_dict_in_generate": True, "output_scores": True}
        return self.model.generate(**self.inputs(clips), **generation)


def render(words: Any, template: str, *visuals: dict[str, str]) -> str:
    messages = [{"role": "user", "content": [*visuals, {"type": "text", "text": PROMPT}]}]
    return words.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


def images_of(clips: list[Frames]) -> list[list[Any]]:
    return [list(clip.pixels.numpy()) for clip in clips]
