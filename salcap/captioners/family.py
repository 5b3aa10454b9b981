"""What all Hugging Face families share: checks, batches, maps over patches, scores, loading."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from salcap.captioners.base import GeneratedText
from salcap.captioners.generation import (
    Turns,
    check_generation,
    end_of_prefill,
    explain_not_finite,
    in_turns,
    watch_logits,
)
from salcap.captioners.likelihood import PADDING, GivenCaptions, give_captions, mean_log_probs
from salcap.captioners.preprocessing import FramePreprocessor
from salcap.captioners.prompts import check_text
from salcap.captioners.visual_tokens import ClipTokens
from salcap.captioners.weights import load_weights
from salcap.config import Weighting, build_dataclass
from salcap.devices import computing_device, synchronize
from salcap.frames import Frames
from salcap.seeding import content_seeds
from salcap.weighting import relative_saliency


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """Clips that go through the model together.

    Attributes:
        clip_pixels: for each clip what the family's preprocessor makes of it, as a rule (F, 3, h, w), on the model's
            device, in its dtype.
        log_densities: for each clip (F, h', w') over the whole frame; None where the mode is "none".
        gain: what the weighting's strength is multiplied by.
        captions: (B, L) int64, what is to be said of the clips, padded with -100; None where that is generated.
    """

    clips: Sequence[Frames]
    clip_pixels: Sequence[Tensor]
    log_densities: Sequence[Tensor] | None
    weighting: Weighting
    gain: float | Tensor = 1.0
    captions: Tensor | None = None

    @cached_property
    def pixels(self) -> Tensor:
        """(B, F, 3, h, w), of clips of equal shape."""
        return torch.stack(list(self.clip_pixels))


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model generated for a batch.

    Attributes:
        output: of `CaptionerFamily.write`.
        visual_tokens: for each clip, see `GeneratedText`.
        encode_ms: wall time of the vision encoder, up to the language model's first forward.
        prompt_length: leading tokens of each sequence that are no part of the caption.
    """

    output: Any
    visual_tokens: Sequence[int]
    encode_ms: float
    prompt_length: int = 0


class CaptionerFamily(ABC):
    """Base of the families: implement `generate_batch`, name the class to load, say what the architecture allows.

    A model whose config has an attribute ``saliency`` brings its defaults: see `tune`.

    Args:
        model: a loaded model of ``transformers_class``; it is put in evaluation mode.
        processor: a processor with ``image_processor`` and ``tokenizer``, or the two as a tuple.
        name, revision: for records; taken from the model where None.

    Raises:
        ValueError: a model of another class, a processor without the two parts, or defaults that cannot be.
    """

    transformers_class: ClassVar[str]
    preprocessor: ClassVar[type[FramePreprocessor]] = FramePreprocessor
    unused_weights: ClassVar[tuple[str, ...]] = ()  # parameters a checkpoint may lack: captioning never reads them

    # a family that encodes frames one by one adds "zoom", whose views are frames to it
    modes: frozenset[str] = frozenset({"none", "scale", "bias", "prune"})
    early_pruning: bool = True
    mixes_lengths: bool = False
    max_frames: int | None = None
    fixed_tokens: bool = False  # whether a clip has the same number of visual tokens whatever is pruned
    num_extra_tokens: int = 0  # visual tokens that belong to no frame
    default_saliency: str = "uva_net"
    default_weighting: Weighting = Weighting()
    default_prompt: str | None = None  # None: it takes no text
    gain: float | Tensor = 1.0  # learned: the strength of "scale" and "bias" is multiplied by it

    def __init__(self, model: Any, processor: Any, *, name: str | None = None, revision: str | None = None) -> None:
        if not isinstance(model, getattr(transformers, self.transformers_class)):
            raise ValueError(f"{type(self).__name__} needs a {self.transformers_class}, got {type(model).__name__}")
        self.model, self.turns = model.eval(), Turns()
        self.image_processor, self.tokenizer = _split_processor(processor)
        self.preprocess = self.preprocessor(self.image_processor)
        self.name = name or model.name_or_path or type(model).__name__
        self.revision = revision or getattr(model.config, "_commit_hash", None)
        self.read_options: dict[str, Any] = self.preprocess.read_options
        saved = dict(getattr(self.saliency_config, "saliency", None) or {})
        if saved:
            self.default_saliency = str(saved.pop("backbone", self.default_saliency))
            self.gain = float(saved.pop("gain", 1.0))
            self.default_prompt = saved.pop("prompt", self.default_prompt)
            self.default_weighting = build_dataclass(Weighting, saved, f"saliency in the config of {self.name}")

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        name: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        trust_remote_code: bool = False,
        **placement: Any,
    ) -> CaptionerFamily:
        """Load model, image processor (PIL, so that results do not depend on torchvision) and tokenizer.

        Args:
            placement: ``device_map`` and ``attn_implementation`` of ``transformers``.

        Raises:
            OSError: files that cannot be found.
            ValueError: a checkpoint that lacks weights of the captioning model.
        """
        source: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
        config = transformers.AutoConfig.from_pretrained(path, **source)
        options = {"config": config, "revision": source["revision"], "dtype": dtype, **placement}
        model = load_weights(getattr(transformers, cls.transformers_class), path, cls.unused_weights, **options)
        return cls(model, cls.load_processor(path, **source), name=name or path)

    @classmethod
    def load_processor(cls, path: str, **source: Any) -> Any:
        """What ``__init__`` takes as the processor."""
        image_processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil", **source)
        return image_processor, transformers.AutoTokenizer.from_pretrained(path, **source)

    def save_processor(self, folder: Path) -> None:
        """Write what `load_processor` reads."""
        if isinstance(self.image_processor, SimpleNamespace):  # see `load_frame_settings`
            (folder / "preprocessor_config.json").write_text(json.dumps(vars(self.image_processor), indent=2))
        else:
            self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def saliency_config(self) -> Any:
        """The part of the model's config that keeps what `tune` is told."""
        return self.model.config

    def tune(self, backbone: str, weighting: Weighting, gain: float = 1.0) -> None:
        """Make a setting the default, and part of the model's config beside the prompt, so that its files bring it."""
        self.default_saliency, self.default_weighting, self.gain = backbone, weighting, gain
        text = {} if self.default_prompt is None else {"prompt": self.default_prompt}
        self.saliency_config.saliency = {"backbone": backbone, "gain": gain, **text, **asdict(weighting)}

    def make_room(self, num_frames: int) -> None:  # noqa: B027  # most have it
        """Before training: take clips of so many frames from now on, where a model of stills can learn that."""

    def seen_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """See `Captioner.seen_box`."""
        return self.preprocess.seen_box(height, width)

    @abstractmethod
    def generate_batch(self, batch: ClipBatch, generation: dict[str, Any]) -> Generation:
        """Encode and decode clips of equal `batch_key`; ends with `write`."""

    def write(self, batch: ClipBatch, inputs: dict[str, Any], generation: dict[str, Any]) -> Any:
        """What the generator makes of its inputs: captions, as ``transformers`` returns them.

        Where the batch brings its captions, nothing is generated: then it is `GivenCaptions`.
        """
        if batch.captions is None:
            return self.generator.generate(**inputs, **generation)
        return give_captions(self.generator, inputs, batch.captions)

    def batch_key(self, index: int, pixels: Tensor, weighting: Weighting) -> Hashable:
        """Clips whose keys are equal share a call; this one is the ``index``-th of those asked for."""
        return pixels.shape

    @in_turns
    @torch.no_grad()
    def generate(
        self,
        clips: Sequence[Frames],
        log_densities: Sequence[Tensor] | None,
        weighting: Weighting,
        **generation: Any,
    ) -> list[GeneratedText]:
        """See `Captioner.generate`. Clips of equal shape share a call; the others go after one another."""
        self._check(clips, log_densities, weighting)
        check_generation(self.generator, generation)
        if generation.get("prompt") is not None:
            self.check_prompt(clips, generation["prompt"])
        generation = {**generation, "return_dict_in_generate": True, "output_scores": True}
        texts: dict[int, GeneratedText] = {}
        for indices, batch, preprocess_ms in self._batches(clips, log_densities, weighting):
            started = self.now_ms()
            with end_of_prefill(self.generator, self.now_ms) as prefilled, watch_logits(self.generator) as watched:
                try:
                    result = self.generate_batch(batch, generation)
                except RuntimeError as error:  # sampling refuses such probabilities in words of its own
                    if watched.finite(1) == [True]:
                        raise
                    raise FloatingPointError(self.not_finite) from error
            sequences = result.output.sequences[:, result.prompt_length :]
            captions = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
            scores = mean_log_probs(result.output, self.eos_token_ids(generation))
            finite = watched.finite(len(indices), sequences, self.eos_token_ids(generation))
            scores = [score if good else math.nan for score, good in zip(scores, finite, strict=True)]
            shared = {
                "encode_ms": result.encode_ms,
                "prefill_ms": prefilled[0] - started - result.encode_ms,
                "decode_ms": self.now_ms() - prefilled[0],
            }
            timings = {stage: total / len(indices) for stage, total in shared.items()}
            for row, index in enumerate(indices):
                times = {"preprocess_ms": preprocess_ms[row], **timings}
                texts[index] = GeneratedText(captions[row].strip(), scores[row], result.visual_tokens[row], times)
        return [texts[i] for i in range(len(clips))]

    def check_prompt(self, clips: Sequence[Frames], prompt: Any) -> None:
        """Raise a ValueError for a prompt that the model cannot be asked about these clips."""
        check_text(prompt, self.name, takes_text=self.default_prompt is not None)

    @in_turns
    def give(
        self,
        clips: Sequence[Frames],
        log_densities: Sequence[Tensor] | None,
        weighting: Weighting,
        captions: Sequence[Sequence[int]],
    ) -> list[GivenCaptions]:
        """How likely captions are, along the code path that generates them; gradients flow.

        Args:
            clips, log_densities, weighting: as for `generate`.
            captions: for each clip the ids that `caption_ids` makes of its caption.

        Returns:
            One for each call that clips of equal shape share.

        Raises:
            ValueError: what `generate` refuses, or a family whose `generate_batch` does not end with `write`.
        """
        self._check(clips, log_densities, weighting)
        given = []
        for indices, batch, _ in self._batches(clips, log_densities, weighting):
            rows = [torch.tensor(captions[i], device=self.device) for i in indices]
            labels = pad_sequence(rows, batch_first=True, padding_value=PADDING)
            output = self.generate_batch(replace(batch, captions=labels), {}).output
            if not isinstance(output, GivenCaptions):
                raise ValueError(f"{type(self).__name__} cannot be trained: its generate_batch does not end with write")
            given.append(replace(output, indices=indices))
        return given

    def caption_ids(self, caption: str, max_tokens: int) -> list[int]:
        """The tokens of a caption, up to ``max_tokens``, the end token last where there is room for it."""
        ids = self.tokenizer(" ".join(caption.split()), add_special_tokens=False)["input_ids"]
        return [*ids, *self.eos_token_ids({})[:1]][:max_tokens]

    def _batches(
        self, clips: Sequence[Frames], log_densities: Sequence[Tensor] | None, weighting: Weighting
    ) -> Iterator[tuple[list[int], ClipBatch, list[float]]]:
        """Clips that share a call: their indices, the batch, and the time it took to preprocess each."""
        groups: dict[Any, list[int]] = {}
        pixels, preprocess_ms = [], []
        for index, frames in enumerate(clips):
            started = self.now_ms()
            pixels.append(self.preprocess(frames))
            preprocess_ms.append(self.now_ms() - started)
            groups.setdefault(self.batch_key(index, pixels[-1], weighting), []).append(index)
        for indices in groups.values():
            started = self.now_ms()
            batch = ClipBatch(
                [clips[i] for i in indices],
                [pixels[i].to(self.device, self.model.dtype) for i in indices],
                None if log_densities is None else [log_densities[i].to(self.device) for i in indices],
                weighting,
                self.gain,
            )
            placed_ms = (self.now_ms() - started) / len(indices)
            yield indices, batch, [preprocess_ms[i] + placed_ms for i in indices]

    def plan(self, batch: ClipBatch, grid: tuple[int, int], num_prefix_tokens: int) -> list[ClipTokens]:
        """What each clip's map does to its tokens."""
        return [self.plan_clip(batch, index, grid, num_prefix_tokens) for index in range(len(batch.clips))]

    def plan_clip(
        self, batch: ClipBatch, index: int, grid: tuple[int, int], num_prefix_tokens: int = 0, span: int = 1
    ) -> ClipTokens:
        """What one clip's map does to its tokens; the map is cut to the part of the frame that the model sees.

        Args:
            span: frames that share their tokens; they share the mean of their maps, the last standing for missing ones.
        """
        frames, saliency = batch.clips[index], None
        if batch.log_densities is not None:
            box = self.seen_box(*frames.pixels.shape[-2:])
            saliency = relative_saliency(batch.log_densities[index], grid, box)
            missing = -len(frames) % span
            saliency = torch.cat([saliency, saliency[-1:].expand(missing, -1)]).unflatten(0, (-1, span)).mean(1)
        num_frames, seed = math.ceil(len(frames) / span), clip_seed(frames, batch.weighting)
        extra = self.num_extra_tokens
        return ClipTokens(batch.weighting, num_frames, grid, num_prefix_tokens, saliency, seed, extra, batch.gain)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return computing_device(self.model)

    @property
    def not_finite(self) -> str:
        """Why a clip whose logits are not finite has no caption, and what to do."""
        return explain_not_finite(self.name, self.model.dtype)

    @property
    def generator(self) -> Any:
        """The module whose ``generate`` writes the caption."""
        return self.model

    def eos_token_ids(self, generation: dict[str, Any]) -> list[int]:
        """Tokens that end a caption under these keyword arguments."""
        config = generation.get("generation_config") or self.generator.generation_config
        eos = generation.get("eos_token_id", config.eos_token_id)
        return [] if eos is None else torch.as_tensor(eos).reshape(-1).tolist()

    def now_ms(self) -> float:
        """The clock that stages are measured by."""
        synchronize(self.device)
        return time.perf_counter() * 1000

    def _check(
        self,
        clips: Sequence[Frames],
        log_densities: Sequence[Tensor] | None,
        weighting: Weighting,
    ) -> None:
        unknown = sorted(set(weighting.modes) - self.modes)
        if unknown:
            raise ValueError(f"{self.name} cannot honour mode {'+'.join(unknown)!r}; it allows {sorted(self.modes)}")
        if self.fixed_tokens and weighting.max_visual_tokens is not None:
            raise ValueError(
                f"{self.name} makes as many visual tokens of every frame whatever is pruned: max_visual_tokens"
                f" {weighting.max_visual_tokens} cannot be honoured; give keep_ratio, or fewer frames"
            )
        for frames in clips:
            if self.max_frames is not None and len(frames) > self.max_frames:
                raise ValueError(f"{self.name} takes at most {self.max_frames} frames a clip, got {len(frames)}")
        if (log_densities is None) != (weighting.mode == "none"):
            given = "no log_densities" if log_densities is None else "log_densities"
            raise ValueError(f"mode {weighting.mode!r} got {given}: maps are for every mode but 'none'")
        for index, (frames, maps) in enumerate(zip(clips, log_densities or [], strict=False)):
            if maps.ndim != 3 or len(maps) != len(frames) or not maps.is_floating_point():
                expected = f"({len(frames)}, h, w) float"
                raise ValueError(f"log_densities[{index}] must be {expected}, got {tuple(maps.shape)} {maps.dtype}")
        if log_densities is not None and len(log_densities) != len(clips):
            raise ValueError(f"got {len(log_densities)} log_densities for {len(clips)} clips")


def clip_seed(frames: Frames, weighting: Weighting) -> int:
    """A clip's own seed, from its first frame: with one for all, stills would all show the same random patches."""
    return int(content_seeds(frames.pixels[:1], weighting.seed)) if "prune" in weighting.modes else weighting.seed


def _split_processor(processor: Any) -> tuple[Any, Any]:
    if isinstance(processor, (tuple, list)) and len(processor) == 2:
        return processor[0], processor[1]
    parts = getattr(processor, "image_processor", None), getattr(processor, "tokenizer", None)
    if None in parts:
        raise ValueError(
            f"processor must have an image_processor and a tokenizer, or be the two as a tuple,"
            f" got {type(processor).__name__}"
        )
    return parts
