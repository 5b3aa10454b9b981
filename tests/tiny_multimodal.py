"""Tiny random-weight models of the true multimodal architectures, and what transformers alone makes of clips.

The processors of most families need torchvision, or packages that are not here. What is plain in them is run all the
same: their image processors (PIL) and their methods that write the placeholders, with a stand-in for ``self``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tiny_models import SIZES, lively
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

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


def _render(words: Any, template: str, *visuals: dict[str, str]) -> str:
    messages = [{"role": "user", "content": [*visuals, {"type": "text", "text": PROMPT}]}]
    return words.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


def _images(clips: list[Frames]) -> list[list[Any]]:
    return [list(clip.pixels.numpy()) for clip in clips]


def idefics3() -> TinyMultimodal:
    return _idefics3(transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration, False)


def smolvlm() -> TinyMultimodal:
    return _idefics3(transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration, True)


def _idefics3(config_class: Any, model_class: Any, with_times: bool) -> TinyMultimodal:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm import processing_smolvlm

    words = tokenizer()
    config = config_class(
        vision_config={**SIZES, "image_size": 32, "patch_size": 4},
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        scale_factor=2,
        image_token_id=words.image_token_id,
        pad_token_id=0,
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    template = chat_template("<image>")
    if with_times:
        processor = SimpleNamespace(image_processor=images, tokenizer=words, chat_template=None)
    else:
        processor = transformers.Idefics3Processor(images, words, image_seq_len=16, chat_template=template)

    def pixels(clips: list[Frames]) -> dict[str, Any]:
        size = dict(images.max_image_size if with_times else images.size)
        return dict(images(_images(clips), do_image_splitting=False, size=size, return_tensors="pt"))

    def text(frames: Frames) -> str:
        if not with_times:
            asked = _render(words, template, *[{"type": "image"}] * len(frames))
            rows = {"rows": [[0] * len(frames)], "cols": [[0] * len(frames)]}
            return asked.replace("<image>", processor.replace_image_token(rows, 0))
        tokens = {"image_token": "<image>", "fake_image_token": MARKS["fake_image_token"]}
        me = SimpleNamespace(**tokens, global_image_token="<global-img>", image_seq_len=16)
        times = frames.pts_seconds.tolist()
        video = {
            "pixel_values": torch.zeros(1, len(frames)),
            "video_metadata": [SimpleNamespace(fps=1, timestamps=times, duration=times[-1])],
        }
        processing_smolvlm.num2words = ["zero", "one", "two", "three", "four"].__getitem__
        expanded = processing_smolvlm.SmolVLMProcessor.replace_video_token(me, video, 0)
        asked = _render(words, processing_smolvlm.DEFAULT_CHAT_TEMPLATE, {"type": "video"})
        return asked.replace("<video>", expanded)

    return TinyMultimodal(lively(model_class(config)), processor, pixels, text, (4, 4), 8)


def internvl() -> TinyMultimodal:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    words = tokenizer()
    config = transformers.InternVLConfig(
        vision_config={**SIZES, "image_size": [32, 32], "patch_size": [4, 4]},
        text_config={"model_type": "qwen2", "vocab_size": len(words), **TEXT},
        image_token_id=words.context_image_token_id,
        image_seq_length=16,
    )
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True)
    template = chat_template("<video>")
    processor = SimpleNamespace(image_processor=images, tokenizer=words, chat_template=template)

    def pixels(clips: list[Frames]) -> dict[str, Any]:
        flat = [image for clip in _images(clips) for image in clip]
        return {"pixel_values": images(flat, crop_to_patches=False, return_tensors="pt").pixel_values}

    def text(frames: Frames) -> str:
        me = SimpleNamespace(start_image_token="<img>", end_image_token="</img>", image_seq_length=16)
        me.image_token = "<IMG_CONTEXT>"
        video = {"pixel_values_videos": torch.zeros(1, len(frames))}
        expanded = transformers.InternVLProcessor.replace_video_token(me, video, 0)
        return _render(words, template, {"type": "video"}).replace("<video>", expanded)

    model = lively(transformers.InternVLForConditionalGeneration(config))
    return TinyMultimodal(model, processor, pixels, text, (4, 4), 8)


def llava_onevision() -> TinyMultimodal:
    """A grid of 7 x 7 patches, pooled to 4 x 4: neighbouring tokens share patches, as in the released models."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    words = tokenizer()
    config = transformers.LlavaOnevisionConfig(
        vision_config={**SIZES, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 4},
        text_config={"model_type": "qwen2", "vocab_size": len(words), **TEXT},
        vision_feature_layer=-1,
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
    )
    model = lively(transformers.LlavaOnevisionForConditionalGeneration(config))
    model.model.image_newline.data.normal_(generator=torch.Generator().manual_seed(3))
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    images = LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28})
    plain = SiglipImageProcessorPil(
        size=images.size, image_mean=images.image_mean, image_std=images.image_std, resample=images.resample
    )

    def expand(pixels: Tensor) -> str:
        me = SimpleNamespace(video_token="<video>", num_image_tokens=49)
        return transformers.LlavaOnevisionProcessor.replace_video_token(me, {"pixel_values_videos": pixels}, 0)

    return _llava(model, images, plain, words, expand, (4, 4), 7)


def llava_next_video() -> TinyMultimodal:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    words = tokenizer()
    config = transformers.LlavaNextVideoConfig(
        vision_config={**SIZES, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 4},
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
    )
    model = lively(transformers.LlavaNextVideoForConditionalGeneration(config))
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    images, plain = LlavaNextImageProcessorPil(**sizes), CLIPImageProcessorPil(**sizes)

    def expand(pixels: Tensor) -> str:
        me = SimpleNamespace(video_token="<video>", patch_size=4)
        return transformers.LlavaNextVideoProcessor.replace_video_token(me, {"pixel_values_videos": pixels}, 0)

    return _llava(model, images, plain, words, expand, (4, 4), 8)


def _llava(model: Any, images: Any, plain: Any, words: Any, expand: Any, grid: Any, side: int) -> TinyMultimodal:
    template = chat_template("<video>")
    processor = SimpleNamespace(image_processor=images, tokenizer=words, chat_template=template)

    def pixels(clips: list[Frames]) -> dict[str, Any]:
        videos = [plain(clip, return_tensors="pt").pixel_values for clip in _images(clips)]
        return {"pixel_values_videos": torch.stack(videos)}

    def text(frames: Frames) -> str:
        expanded = expand(pixels([frames])["pixel_values_videos"])
        return _render(words, template, {"type": "video"}).replace("<video>", expanded)

    return TinyMultimodal(model, processor, pixels, text, grid, side)


ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
QWEN_MARK = "<|vision_start|><|video_pad|><|vision_end|>"


def qwen2_vl() -> TinyMultimodal:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    return _qwen(transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration, vision, _expand_qwen2)


def qwen2_5_vl() -> TinyMultimodal:
    """Windows of 2 x 2 groups in all but the second layer."""
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 4}
    model = transformers.Qwen2_5_VLForConditionalGeneration
    return _qwen(transformers.Qwen2_5_VLConfig, model, vision, _expand_qwen2, lambda c: [_span_seconds(c)])


def qwen3_vl() -> TinyMultimodal:
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1]}

    def expand(frames: Frames, grid: Tensor) -> str:
        me = SimpleNamespace(video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2))
        me.video_token, me.vision_start_token, me.vision_end_token = (
            "<|video_pad|>",
            "<|vision_start|>",
            "<|vision_end|>",
        )
        cls = transformers.Qwen3VLProcessor
        me._calculate_timestamps = lambda *given: cls._calculate_timestamps(me, *given)
        metadata = SimpleNamespace(fps=1.0, frames_indices=frames.pts_seconds.tolist())
        return cls.replace_video_token(me, {"video_grid_thw": grid, "video_metadata": [metadata]}, 0)

    return _qwen(transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration, vision, expand)


def _span_seconds(frames: Frames) -> float:
    times = frames.pts_seconds.tolist()
    return (times[-1] - times[0]) / (len(times) - 1) * 2 if len(times) > 1 else 1.0


def _expand_qwen2(frames: Frames, grid: Tensor) -> str:
    me = SimpleNamespace(video_processor=SimpleNamespace(merge_size=2), video_token="<|video_pad|>")
    return transformers.Qwen2VLProcessor.replace_video_token(me, {"video_grid_thw": grid}, 0)


def _qwen(config_class: Any, model_class: Any, vision: Any, expand: Any, seconds: Any = None) -> TinyMultimodal:
    """Pairs of frames in time, from the image processor's patches of single ones."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    words = tokenizer("video_token", "image_token")
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    head = {"head_dim": 8} if "qwen3" in config_class.model_type else {}
    config = config_class(
        vision_config=vision,
        text_config={"vocab_size": len(words), **TEXT, "rope_parameters": ROPE, **head},
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=words.vision_start_token_id,
        vision_end_token_id=words.vision_end_token_id,
    )
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 24 * 24, "longest_edge": 40 * 40})
    template = chat_template(QWEN_MARK)
    processor = SimpleNamespace(image_processor=images, tokenizer=words, chat_template=template)

    def patches(frames: Frames) -> tuple[Tensor, list[int]]:
        given = [*frames.pixels.numpy(), frames.pixels.numpy()[-1]][: len(frames) + len(frames) % 2]
        made = images(given, return_tensors="pt")
        one = made.pixel_values.reshape(len(given) // 2, 2, -1, 3, 2, 16)
        pairs = torch.stack([one[:, 0, :, :, 0], one[:, 1, :, :, 0]], 3)
        return pairs.reshape(-1, 3 * 2 * 16), [len(given) // 2, *made.image_grid_thw[0, 1:].tolist()]

    def pixels(clips: list[Frames]) -> dict[str, Any]:
        rows, grids = zip(*(patches(clip) for clip in clips), strict=True)
        inputs = {"pixel_values_videos": torch.cat(rows), "video_grid_thw": torch.tensor(grids)}
        if seconds is not None:
            inputs["second_per_grid_ts"] = torch.tensor([second for clip in clips for second in seconds(clip)])
        texts = [text(clip) for clip in clips]
        ids_ = words(texts, padding=True, return_tensors="pt").input_ids
        return {**inputs, "mm_token_type_ids": 2 * (ids_ == ids["video_pad"]).int()}

    def text(frames: Frames) -> str:
        expanded = expand(frames, torch.tensor([patches(frames)[1]]))
        return _render(words, template, {"type": "video"}).replace("<|video_pad|>", expanded)

    return TinyMultimodal(lively(model_class(config)), processor, pixels, text, (4, 6), 8)


def video_llama_3() -> TinyMultimodal:
    from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil

    words = tokenizer("video_token", "image_token")
    config = transformers.VideoLlama3Config(
        vision_config={**SIZES, "patch_size": 4},
        text_config={"model_type": "qwen2", "vocab_size": len(words), **TEXT},
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
    )
    images = VideoLlama3ImageProcessorPil(patch_size=4, size={"shortest_edge": 24 * 24, "longest_edge": 40 * 40})
    template = chat_template("<|video_pad|>")
    processor = SimpleNamespace(image_processor=images, tokenizer=words, chat_template=template)

    def one(frames: Frames) -> dict[str, Tensor]:
        made = images(list(frames.pixels.numpy()), merge_size=2, return_tensors="pt")
        grid = torch.tensor([[len(frames), *made.image_grid_thw[0, 1:].tolist()]])
        groups = made.pixel_values.reshape(len(frames), -1, 4 * made.pixel_values.shape[-1])
        change = (groups[1:] - groups[:-1]).abs().mean(-1) * 255 > 0.1
        mask = torch.cat([torch.ones_like(groups[:1, :, 0]) > 0, change])
        mask[~mask.any(1), :1] = True
        sides = torch.tensor([2])
        names = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_compression_mask")
        return dict(zip(names, (made.pixel_values, grid, sides, mask.flatten()), strict=True))

    def pixels(clips: list[Frames]) -> dict[str, Any]:
        made = [one(clip) for clip in clips]
        return {name: torch.cat([inputs[name] for inputs in made]) for name in made[0]}

    def text(frames: Frames) -> str:
        video = one(frames) | {"video_metadata": [SimpleNamespace(fps=1, timestamps=frames.pts_seconds.tolist())]}
        me = SimpleNamespace(video_token="<|video_pad|>")
        expanded = transformers.VideoLlama3Processor.replace_video_token(me, video, 0)
        return _render(words, template, {"type": "video"}).replace("<|video_pad|>", expanded)

    model = lively(transformers.VideoLlama3ForConditionalGeneration(config))
    return TinyMultimodal(model, processor, pixels, text, (4, 6), 8)


def blip_2(language: str = "opt") -> TinyMultimodal:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = tokenizer("video_token")
    config = transformers.Blip2Config(
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        qformer_config={**SIZES, "encoder_hidden_size": 32, "vocab_size": len(words), "cross_attention_frequency": 1},
        text_config=_language(language, len(words)),
        num_query_tokens=5,
        image_token_index=words.image_token_id,
    )
    model = lively(transformers.Blip2ForConditionalGeneration(config))
    model.query_tokens.data.normal_(generator=torch.Generator().manual_seed(3))
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.Blip2Processor(images, words, num_query_tokens=5)

    def pixels(clips: list[Frames]) -> dict[str, Any]:
        return {
            "pixel_values": images(
                [image for clip in _images(clips) for image in clip], return_tensors="pt"
            ).pixel_values
        }

    return TinyMultimodal(model, processor, pixels, lambda frames: "<image>" * 5 * len(frames) + PROMPT, (4, 4), 8)


def _language(kind: str, vocab_size: int) -> dict[str, Any]:
    ids = {"vocab_size": vocab_size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        return {"model_type": "t5", **ids, **sizes, "decoder_start_token_id": 0}
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}
    return {"model_type": "opt", **ids, **sizes, "num_attention_heads": 4, "max_position_embeddings": 512}


def instructblipvideo() -> TinyMultimodal:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words, questions = tokenizer("image_token"), tokenizer()
    config = transformers.InstructBlipVideoConfig(
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        qformer_config={**SIZES, "encoder_hidden_size": 32, "vocab_size": len(words)},
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT, "bos_token_id": 1},
        num_query_tokens=5,
        video_token_index=words.video_token_id,
    )
    model = lively(transformers.InstructBlipVideoForConditionalGeneration(config))
    model.query_tokens.data.normal_(generator=torch.Generator().manual_seed(3))
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = SimpleNamespace(video_processor=images, tokenizer=words, qformer_tokenizer=questions)

    def pixels(clips: list[Frames]) -> dict[str, Any]:
        videos = [images(clip, return_tensors="pt").pixel_values for clip in _images(clips)]
        asked = questions([PROMPT] * len(clips), return_tensors="pt")
        text = {"qformer_input_ids": asked.input_ids, "qformer_attention_mask": asked.attention_mask}
        return {"pixel_values": torch.stack(videos), **text}

    return TinyMultimodal(model, processor, pixels, lambda frames: "<video>" * 5 * len(frames) + PROMPT, (4, 4), 8)


def perception_lm() -> TinyMultimodal:
    """timm is not here: the tower is CLIP's, the rest the family's own."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    words = tokenizer()
    vision = transformers.CLIPVisionConfig(**SIZES, image_size=32, patch_size=4, model_args={"embed_dim": 32})
    config = transformers.PerceptionLMConfig(
        vision_config=vision,
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        projector_pooling_ratio=2,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
    )
    images = ViTImageProcessorPil(size={"height": 32, "width": 32})

    def expand(pixels: Tensor) -> str:
        me = SimpleNamespace(video_token="<video>", patch_size=4, pooling_ratio=2)
        return transformers.PerceptionLMProcessor.replace_video_token(me, {"pixel_values_videos": pixels}, 0)

    model = lively(transformers.PerceptionLMForConditionalGeneration(config))
    return _llava(model, images, images, words, expand, (4, 4), 8)


FAMILIES: dict[str, Callable[[], TinyMultimodal]] = {
    "blip_2": blip_2,
    "idefics3": idefics3,
    "instructblipvideo": instructblipvideo,
    "internvl": internvl,
    "llava_next_video": llava_next_video,
    "llava_onevision": llava_onevision,
    "perception_lm": perception_lm,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
    "video_llama_3": video_llama_3,
}
