"""What families share whose language model reads the frames' tokens at placeholders in its prompt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from salcap.captioners.family import CaptionerFamily, ClipBatch, Generation
from salcap.captioners.preprocessing import read_video_settings, settings_of, with_settings
from salcap.captioners.prompts import Message, Prompt, to_messages
from salcap.captioners.visual_tokens import ClipTokens
from salcap.config import Weighting
from salcap.frames import Frames

ClipFeatures = list[Tensor]  # of one clip, for each frame its tokens for the language model (n, D)


class MultimodalCaptioner(CaptionerFamily):
    """Base: implement `look` and `expand`.

    Clips of any shape share a call: their prompts are padded on the left. "prune" acts where `look` says, "scale"
    fades the tokens behind the projector, "bias" adds to the scores of the visual keys in every layer of the language
    model, through a mask of four dimensions. ``generate`` takes one more keyword, ``prompt``: what the model is asked,
    as text or as chat messages, see `salcap.captioners.prompts.to_messages`.

    Raises:
        ValueError: a config without the placeholder's id.
    """

    max_new_tokens: ClassVar[int] = 64  # unless the user says; transformers' own 20 cuts sentences short
    default_prompt: str = "Describe the video in one sentence."
    mixes_lengths = True
    video_defaults: ClassVar[Mapping[str, Any]] = {}  # of the family's video processor, where its file leaves them out
    placeholder: ClassVar[str] = "video"  # the config's name of the token that a frame's tokens replace

    def __init__(self, model: Any, processor: Any, *, name: str | None = None, revision: str | None = None) -> None:
        video = getattr(processor, "video_processor", None)
        parts = getattr(processor, "image_processor", None), getattr(processor, "tokenizer", None)
        if video is not None and None not in parts:
            parts = with_settings(parts[0], {**self.video_defaults, **settings_of(video)}), parts[1]
        given = processor if None in parts else parts
        super().__init__(model, given, name=name, revision=revision)
        self.chat_template = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        self.placeholder_id: int = getattr(model.config, f"{self.placeholder}_token_id")
        if self.placeholder_id is None:
            raise ValueError(
                f"the config of {self.name} has no {self.placeholder}_token_id: it is older than transformers 5"
            )
        if not self.adds_bias():
            self.modes = self.modes - {"bias"}

    def adds_bias(self) -> bool:
        """Whether every layer that reads visual tokens adds a mask of four dimensions to its scores."""
        config = self.model.model.get_decoder().config
        layers = getattr(config, "layer_types", None)
        windowed = set(layers) - {"full_attention"} if layers else getattr(config, "sliding_window", None)
        return not windowed and config._attn_implementation in ("eager", "sdpa")

    @classmethod
    def load_processor(cls, path: str, **source: Any) -> Any:
        image_processor, tokenizer = cls.load_parts(path, **source)
        if settings := read_video_settings(path, source["revision"]):
            image_processor = with_settings(image_processor, {**cls.video_defaults, **settings})
        # older checkpoints keep it in a file that only processors read, and one for text alone with the tokenizer
        found = transformers.ProcessorMixin.get_processor_dict(path, revision=source["revision"])[0]
        tokenizer.chat_template = found.get("chat_template") or tokenizer.chat_template
        return image_processor, tokenizer

    @classmethod
    def load_parts(cls, path: str, **source: Any) -> tuple[Any, Any]:
        """Image processor and tokenizer."""
        return super().load_processor(path, **source)

    def batch_key(self, index: int, pixels: Tensor, weighting: Weighting) -> Hashable:
        return None

    def save_processor(self, folder: Path) -> None:
        self.tokenizer.chat_template = self.chat_template  # which may have come with the processor
        super().save_processor(folder)

    @abstractmethod
    def look(self, batch: ClipBatch, prompt: Prompt) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        """What each clip's map does to its tokens, and the tokens as that leaves them, before "scale"."""

    @abstractmethod
    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        """What replaces each placeholder of the chat, where the frames have so many tokens."""

    def generate_batch(self, batch: ClipBatch, generation: dict[str, Any]) -> Generation:
        limited = generation.keys() & {"max_length", "max_new_tokens", "generation_config"}
        generation = {**({} if limited else {"max_new_tokens": self.max_new_tokens}), **generation}
        prompt = generation.pop("prompt", None)
        prompt = self.default_prompt if prompt is None else prompt
        started = self.now_ms()
        plans, clips = self.look(batch, prompt)
        clips = self.scale(plans, clips)
        clips = [self.finish(batch, i, plan, clip) for i, (plan, clip) in enumerate(zip(plans, clips, strict=True))]
        encode_ms = self.now_ms() - started
        counts = [[len(frame) for frame in clip] for clip in clips]
        inputs = self.tokenize([self.prompt_ids(f, c, prompt) for f, c in zip(batch.clips, counts, strict=True)])
        visual = inputs["input_ids"] == self.placeholder_id
        expected = [sum(clip) for clip in counts]
        if visual.sum(1).tolist() != expected:
            raise ValueError(f"the prompt has {visual.sum(1).tolist()} places for {expected} visual tokens: {prompt!r}")
        with ExitStack() as hooks:
            self.add_bias(hooks, batch, plans, clips, visual)
            inputs = self.language_inputs(batch, plans, clips, inputs, prompt)
            output = self.write(batch, inputs, generation)
        length = visual.shape[1] if "input_ids" in inputs else 0
        return Generation(output, expected, encode_ms, length)

    def scale(self, plans: Sequence[ClipTokens], clips: list[ClipFeatures]) -> list[ClipFeatures]:
        """The clips' tokens as mode "scale" leaves them; as they are without it."""
        if "scale" not in plans[0].weighting.modes:
            return clips
        return [list(plan.scale(torch.cat(clip)).split(plan.counts)) for plan, clip in zip(plans, clips, strict=True)]

    def finish(self, batch: ClipBatch, index: int, plan: ClipTokens, clip: ClipFeatures) -> ClipFeatures:
        """What the language model reads of one clip's tokens, last of all."""
        return clip

    def language_inputs(
        self,
        batch: ClipBatch,
        plans: Sequence[ClipTokens],
        clips: list[ClipFeatures],
        inputs: dict[str, Tensor],
        prompt: Prompt,
    ) -> dict[str, Any]:
        """What ``generate`` takes: the ids and their mask, and here the embeddings with the tokens at their places."""
        ids = inputs["input_ids"]
        embeds = self.model.get_input_embeddings()(ids)
        tokens = torch.cat([frame for clip in clips for frame in clip]).to(embeds.device, embeds.dtype)
        visual = (ids == self.placeholder_id)[..., None]
        return {**inputs, "inputs_embeds": embeds.masked_scatter(visual, tokens)}

    def add_bias(
        self,
        hooks: ExitStack,
        batch: ClipBatch,
        plans: Sequence[ClipTokens],
        clips: list[ClipFeatures],
        visual: Tensor,
    ) -> None:
        """Hook the language model so that its attention is biased; nothing where there is nothing to add."""
        if "bias" not in plans[0].weighting.modes:
            return
        pairs = enumerate(zip(plans, clips, strict=True))
        rows = [row for index, (plan, clip) in pairs for row in self.bias_rows(batch, index, plan, clip)]
        bias = torch.zeros(visual.shape, device=visual.device).masked_scatter(visual, torch.cat(rows))
        # an attention kernel may round differently with a mask of zeros than without: neutral must stay exact
        if bool(bias.any()):
            decoder = self.model.model.get_decoder()
            hook = causal_bias(bias, decoder.config)
            hooks.enter_context(decoder.register_forward_pre_hook(hook, with_kwargs=True))

    def bias_rows(self, batch: ClipBatch, index: int, plan: ClipTokens, clip: ClipFeatures) -> list[Tensor]:
        """For each frame what to add to the scores of its tokens, (n,) float32; 0 for tokens that no plan knows."""
        return [
            F.pad(row, (0, len(frame) - len(row)))
            for row, frame in zip(plan.bias().split(plan.counts), clip, strict=True)
        ]

    def prompt_ids(self, frames: Frames, counts: Sequence[int], prompt: Prompt) -> list[int]:
        """The ids of the chat with every placeholder expanded, as the family's processor makes them."""
        text = self.chat(frames, prompt)
        parts, expanded = text.split(self.chat_token), self.expand(frames, counts)
        if len(parts) != len(expanded) + 1:
            raise ValueError(
                f"the chat template of {self.name} makes {len(parts) - 1} of {len(expanded)} placeholders"
                f" {self.chat_token!r}: give the model's own processor, or set tokenizer.chat_template"
            )
        text = parts[0] + "".join(visual + part for visual, part in zip(expanded, parts[1:], strict=True))
        bos = self.tokenizer.bos_token
        return self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]

    def chat(self, frames: Frames, prompt: Prompt) -> str:
        """The model's prompt for a clip by its chat template, a placeholder standing for the visual tokens."""
        if self.chat_template is None:
            raise ValueError(f"{self.name} has no chat template: set tokenizer.chat_template")
        try:
            return self.tokenizer.apply_chat_template(
                self.messages(frames, prompt),
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise ValueError(f"the chat template of {self.name} does not take prompt {prompt!r}: {error}") from error

    def check_prompt(self, clips: Sequence[Frames], prompt: Any) -> None:
        for frames in clips:
            self.messages(frames, prompt)

    def messages(self, frames: Frames, prompt: Prompt) -> list[Message]:
        """The prompt as chat messages, with the clip in its place."""
        return to_messages(
            prompt,
            self.chat_visuals(frames),
            name=self.name,
            placeholders=(self.placeholder_token, self.chat_token),
            special_tokens=[mark for mark in self.tokenizer.all_special_tokens if mark in (self.chat_template or "")],
            source=frames.source,
        )

    def chat_visuals(self, frames: Frames) -> list[dict[str, str]]:
        """What the chat template is told of a clip: one video."""
        return [{"type": "video"}]

    @property
    def placeholder_token(self) -> str:
        """The token that stands for a visual token in the text."""
        return self.tokenizer.convert_ids_to_tokens(self.placeholder_id)

    @property
    def chat_token(self) -> str:
        """What the chat template writes where a video or image goes."""
        return self.placeholder_token

    def tokenize(self, ids: Sequence[list[int]]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (B, L), padded on the left."""
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        length = max(len(row) for row in ids)
        missing = [length - len(row) for row in ids]
        padded = [[pad or 0] * m + row for row, m in zip(ids, missing, strict=True)]
        mask = [[0] * m + [1] * len(row) for row, m in zip(ids, missing, strict=True)]
        device = self.device
        return {
            "input_ids": torch.tensor(padded, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }


def causal_bias(bias: Tensor, config: Any) -> Callable[..., Any]:
    """A forward pre-hook (with keywords) that adds ``bias`` (B, L) to a decoder's scores of the prompt's keys.

    ``transformers`` hands a mask of four dimensions on as it is, to be added to the scores; beams are neighbours.
    """

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        embeds, given = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        cache: Any = next((value for value in kwargs.values() if isinstance(value, Cache)), None)  # names have changed
        if cache is None and embeds.shape[1] < bias.shape[1]:
            raise RuntimeError(
                f"mode 'bias': {embeds.shape[1]} of {bias.shape[1]} tokens or more, and no cache of others"
            )

        def biased(mask: Any) -> Tensor:
            mask = create_causal_mask(config, embeds, mask, cache, allow_is_causal_skip=False)
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
            rows = bias.repeat_interleave(len(embeds) // len(bias), 0)[:, None, None].to(mask.dtype)
            return mask + F.pad(rows, (0, mask.shape[-1] - rows.shape[-1]))  # of a prompt in chunks, those read so far

        # with a static cache ``generate`` makes the masks itself, one for each kind of layer
        masks = {kind: biased(mask) for kind, mask in given.items()} if isinstance(given, dict) else biased(given)
        return args, {**kwargs, "attention_mask": masks}

    return hook


def split_clips(frames: Tensor, batch: ClipBatch) -> list[ClipFeatures]:
    """The tokens of all frames of all clips (R, n, D), clip by clip."""
    return [list(clip) for clip in frames.split([len(pixels) for pixels in batch.clip_pixels])]
