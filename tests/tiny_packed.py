"""Tiny random-weight models of the families whose vision encoder reads all frames as one packed sequence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tiny_chat import TEXT, TinyMultimodal, chat_template, render, tokenizer
from tiny_models import SIZES, lively
from torch import Tensor

from salcap.frames import Frames

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
    together = 8 if "qwen3" in config_class.model_type else 1  # frames that share the limits
    limits = {"shortest_edge": 24 * 24, "longest_edge": 40 * 40 * together}
    images = Qwen2VLImageProcessorPil(patch_size=4, size=limits)
    template = chat_template(QWEN_MARK)
    processor = SimpleNamespace(image_processor=images, tokenizer=words, chat_template=template)

    def patches(frames: Frames) -> tuple[Tensor, list[int]]:
        given = [*frames.pixels.numpy(), frames.pixels.numpy()[-1]][: len(frames) + len(frames) % 2]
        share = len(given) if together > 1 else 1
        made = images(given, size={edge: most // share for edge, most in limits.items()}, return_tensors="pt")
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
        return render(words, template, {"type": "video"}).replace("<|video_pad|>", expanded)

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
    limits = {"shortest_edge": 24 * 24, "longest_edge": 40 * 40 * 8}  # the frames of a clip share the most pixels
    images = VideoLlama3ImageProcessorPil(patch_size=4, size=limits)
    template = chat_template("<|video_pad|>")
    processor = SimpleNamespace(image_processor=images, tokenizer=words, chat_template=template)

    def one(frames: Frames) -> dict[str, Tensor]:
        size = limits | {"longest_edge": limits["longest_edge"] // len(frames)}
        made = images(list(frames.pixels.numpy()), merge_size=2, size=size, return_tensors="pt")
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
        return render(words, template, {"type": "video"}).replace("<|video_pad|>", expanded)

    model = lively(transformers.VideoLlama3ForConditionalGeneration(config))
    return TinyMultimodal(model, processor, pixels, text, (4, 6), 8)
