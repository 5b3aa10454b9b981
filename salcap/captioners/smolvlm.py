"""SmolVLM and SmolVLM2: Idefics3's architecture with times in the prompt. https://arxiv.org/abs/2504.05299"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from salcap.captioners.idefics3 import Idefics3Captioner, UnsplitFrames
from salcap.captioners.prompts import Prompt
from salcap.frames import Frames

_ONES: tuple[str, ...] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_ONES += ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


class UnsplitVideoFrames(UnsplitFrames):
    """Resized to the size for videos, without which it is the square's own: large images would be enlarged first."""

    @property
    def size(self) -> dict[str, int]:
        processor = self.image_processor
        return dict(processor.size if getattr(processor, "has_video_size", False) else processor.max_image_size)


class SmolVLMCaptioner(Idefics3Captioner):
    """``SmolVLMForConditionalGeneration``: Idefics3's recipe, and each frame's time in the prompt.

    The processor of ``transformers`` needs torchvision and num2words; this writes the same prompt without them.
    """

    transformers_class = "SmolVLMForConditionalGeneration"
    preprocessor = UnsplitVideoFrames

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        times = frames.pts_seconds.tolist()
        start, end = frames.clip_seconds or (0.0, times[-1])
        text = (
            f"You are provided the following series of {in_words(len(frames))} frames from a"
            f" {timedelta(seconds=int(end - start))} [H:MM:SS] video.\n"
        )
        for time, count in zip(times, counts, strict=True):
            text += f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:{self._around_image(count)}"
        return [text + "\n\n"]

    def chat(self, frames: Frames, prompt: Prompt) -> str:
        # checkpoints' own templates may know no videos: this is what the processor uses instead
        text = "<|im_start|>"
        for message in self.messages(frames, prompt):
            parts = (part.get("text", self.chat_token) for part in message["content"])
            text += f"{message['role'].capitalize()}: {''.join(parts)}<end_of_utterance>\n"
        return f"{text}Assistant:"

    def chat_visuals(self, frames: Frames) -> list[dict[str, str]]:
        return [{"type": "video"}]

    @property
    def chat_token(self) -> str:
        return getattr(self.tokenizer, "video_token", "<video>")


def in_words(number: int) -> str:
    """A number below a thousand in English, as num2words writes it.

    Raises:
        ValueError: a larger one.
    """
    if number >= 1000:
        raise ValueError(f"at most 999 frames can be written in words, got {number}")
    if number >= 100:
        rest = f" and {in_words(number % 100)}" if number % 100 else ""
        return f"{_ONES[number // 100]} hundred{rest}"
    if number >= 20:
        return _TENS[number // 10 - 2] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    return _ONES[number]
