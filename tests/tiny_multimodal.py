"""Tiny random-weight models of the true multimodal architectures.

The processors of most families need torchvision, or packages that are not here. What is plain in them is run all the
same: their image processors (PIL) and their methods that write the placeholders, with a stand-in for ``self``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tiny_chat import MARKS, PROMPT, TEXT, TinyMultimodal, chat_template, images_of, render, tokenizer
from tiny_models import SIZES, lively
from tiny_packed import qwen2_5_vl, qwen2_vl, qwen3_vl, video_llama_3
from torch import Tensor

from salcap.frames import Frames


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
        return dict(images(images_of(clips), do_image_splitting=False, size=size, return_tensors="pt"))

    def text(frames: Frames) -> str:
        if not with_times:
            asked = render(words, template, *[{"type": "image"}] * len(frames))
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
        asked = render(words, processing_smolvlm.DEFAULT_CHAT_TEMPLATE, {"type": "video"})
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
        flat = [image for clip in images_of(clips) for image in clip]
        return {"pixel_values": images(flat, crop_to_patches=False, return_tensors="pt").pixel_values}

    def text(frames: Frames) -> str:
        me = SimpleNamespace(start_image_token="<img>", end_image_token="</img>", image_seq_length=16)
        me.image_token = "<IMG_CONTEXT>"
        video = {"pixel_values_videos": torch.zeros(1, len(frames))}
        expanded = transformers.InternVLProcessor.replace_video_token(me, video, 0)
        return render(words, template, {"type": "video"}).replace("<video>", expanded)

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
        videos = [plain(clip, return_tensors="pt").pixel_values for clip in images_of(clips)]
        return {"pixel_values_videos": torch.stack(videos)}

    def text(frames: Frames) -> str:
        expanded = expand(pixels([frames])["pixel_values_videos"])
        return render(words, template, {"type": "video"}).replace("<video>", expanded)

    return TinyMultimodal(model, processor, pixels, text, grid, side)


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
                [image for clip in images_of(clips) for image in clip], return_tensors="pt"
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
        videos = [images(clip, return_tensors="pt").pixel_values for clip in images_of(clips)]
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
