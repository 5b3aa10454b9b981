"""Models of true size with random weights: for timing where weights are not at hand. Nothing is downloaded.

What they write means nothing. Their tokenizer is a stand-in: it makes about one token of each word of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from salcap.config import check_choice

_SMOLVLM_MARKS = ("<image>", "<fake_token_around_image>", "<global-img>", "<|im_start|>", "<end_of_utterance>")
_QWEN_MARKS = ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
_QWEN_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for m in messages %}<|im_start|>user\n"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% else %}<|vision_start|><|video_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class ModelShape:
    """A published model's config.

    Attributes:
        source: the model on the hub whose config it is, and what was reduced.
        config: makes the config; ids of special tokens are those of the stand-in tokenizer.
        processor: makes the image processor and tokenizer.
    """

    source: str
    architecture: str
    config: Callable[[], Any]
    processor: Callable[[], Any]


def create_shape(name: str, dtype: str | torch.dtype | None = None) -> tuple[Any, Any]:
    """A model with random weights and its processor, as `load_captioner` takes them.

    It is made on torch's default device, large ones fastest on the GPU that is to run them; of one device and precision
    (float32 by default) its weights are always the same.

    Raises:
        ValueError: a name that is not in `MODEL_SHAPES`.
    """
    check_choice("shape", name, tuple(MODEL_SHAPES))
    shape = MODEL_SHAPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture = getattr(transformers, shape.architecture)
        return architecture._from_config(shape.config(), dtype=dtype or torch.float32), shape.processor()


def _git() -> Any:
    return transformers.GitConfig(num_image_with_embedding=6)  # the class's defaults are GIT-base


def _blip() -> Any:
    # the class's defaults but for these, in which the checkpoint differs
    return transformers.BlipConfig(text_config={"num_attention_heads": 12}, vision_config={"initializer_range": 0.02})


def _smolvlm() -> Any:
    vision = {"hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16}
    text = {"model_type": "llama", "vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536}
    text |= {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    text |= {"max_position_embeddings": 8192, "rope_theta": 100000.0}
    image = _SMOLVLM_MARKS.index("<image>")
    return transformers.SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=4, image_token_id=image)


def _qwen_3b(depth: int = 32, full_attention: tuple[int, ...] = (7, 15, 23, 31), num_layers: int = 36) -> Any:
    text = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": num_layers}
    text |= {"num_attention_heads": 16, "num_key_value_heads": 2}
    return _qwen(depth, full_attention, text, tied=True)


def _qwen_7b() -> Any:
    text = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4}
    return _qwen(32, (7, 15, 23, 31), text, tied=False)


def _qwen(depth: int, full_attention: tuple[int, ...], text: dict[str, Any], tied: bool) -> Any:
    vision = {"depth": depth, "hidden_size": 1280, "fullatt_block_indexes": full_attention, "tokens_per_second": 2}
    vision |= {"out_hidden_size": text["hidden_size"]}
    text |= {"tie_word_embeddings": tied, "rms_norm_eps": 1e-6}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}}
    return transformers.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        tie_word_embeddings=tied,
        video_token_id=_QWEN_MARKS.index("<|video_pad|>"),
        vision_start_token_id=_QWEN_MARKS.index("<|vision_start|>"),
        vision_end_token_id=_QWEN_MARKS.index("<|vision_end|>"),
    )


def _qwen_processor() -> Any:
    limits = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    return _processor(Qwen2VLImageProcessorPil(size=limits), _QWEN_MARKS, _QWEN_CHAT)


def _processor(image_processor: Any, marks: tuple[str, ...] = (), chat_template: str | None = None) -> Any:
    """With a tokenizer of special tokens alone: every other word is the unknown one."""
    vocabulary = {word: i for i, word in enumerate((*marks, "[UNK]"))}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.add_special_tokens(list(marks))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    return SimpleNamespace(image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template)


MODEL_SHAPES = {
    "git-base": ModelShape(
        "microsoft/git-base-vatex", "GitForCausalLM", _git, lambda: _processor(CLIPImageProcessorPil())
    ),
    "blip-base": ModelShape(
        "Salesforce/blip-image-captioning-base",
        "BlipForConditionalGeneration",
        _blip,
        lambda: _processor(BlipImageProcessorPil()),
    ),
    "smolvlm-256m": ModelShape(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "SmolVLMForConditionalGeneration",
        _smolvlm,
        lambda: _processor(
            SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}), _SMOLVLM_MARKS
        ),
    ),
    "qwen2.5-vl-3b-small": ModelShape(
        "Qwen/Qwen2.5-VL-3B-Instruct with a quarter of its layers: 8 of 32 in the vision encoder (one of them with full"
        " attention, not four), 9 of 36 in the language model; all widths are its own",
        "Qwen2_5_VLForConditionalGeneration",
        lambda: _qwen_3b(8, (7,), 9),
        _qwen_processor,
    ),
    "qwen2.5-vl-3b": ModelShape(
        "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2_5_VLForConditionalGeneration", _qwen_3b, _qwen_processor
    ),
    "qwen2.5-vl-7b": ModelShape(
        "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2_5_VLForConditionalGeneration", _qwen_7b, _qwen_processor
    ),
}
