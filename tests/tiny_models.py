"""Tiny random-weight models of the true architectures with their processors, made offline in well under a second."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE, PATCH = 32, 8  # a grid of 4 x 4 patches
WORDS = ("[PAD]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(60)))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@dataclass(frozen=True)
class Tiny:
    """A model with its processor, and what a test must know to run it without salcap."""

    model: Any
    processor: Any
    num_prefix_tokens: int = 1


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def lively(model: Any, seed: int = 0) -> Any:
    """Random weights large enough that images change the text; the usual ones hardly do."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            scale = 0.3 if "embed" in name else 2.5 / parameter.shape[-1] ** 0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        elif name.endswith("bias"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.tie_weights()
    return model.eval()


def git(num_frames: int | None = 3) -> Tiny:
    vision = {**SIZES, "image_size": SIDE, "patch_size": PATCH}
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GitConfig(
        vision_config=vision, **SIZES, **ids, num_image_with_embedding=num_frames, max_position_embeddings=64
    )
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor = transformers.GitProcessor(CLIPImageProcessorPil(**sizes), tokenizer())
    return Tiny(lively(transformers.GitForCausalLM(config)), processor)


def blip() -> Tiny:
    vision = {**SIZES, "image_size": SIDE, "patch_size": PATCH}
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    config = transformers.BlipConfig(
        vision_config=vision, text_config={**SIZES, **ids, "max_position_embeddings": 64}, projection_dim=16
    )
    processor = transformers.BlipProcessor(BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer())
    return Tiny(lively(transformers.BlipForConditionalGeneration(config)), processor)


ENCODERS = {
    "vit": functools.partial(transformers.ViTConfig, **SIZES, image_size=SIDE, patch_size=PATCH),
    "deit": functools.partial(transformers.DeiTConfig, **SIZES, image_size=SIDE, patch_size=PATCH),
    "dinov2": functools.partial(transformers.Dinov2Config, **SIZES, image_size=SIDE, patch_size=PATCH),
    "beit": functools.partial(transformers.BeitConfig, **SIZES, image_size=SIDE, patch_size=PATCH),
    "swin": functools.partial(
        transformers.SwinConfig,
        image_size=SIDE,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    "vit_msn": functools.partial(transformers.ViTMSNConfig, **SIZES, image_size=SIDE, patch_size=PATCH),
    "timesformer": functools.partial(transformers.TimesformerConfig, **SIZES, image_size=SIDE, patch_size=PATCH),
}
_CROSS = {"is_decoder": True, "add_cross_attention": True}
DECODERS = {
    "gpt2": functools.partial(transformers.GPT2Config, n_embd=24, n_layer=2, n_head=2, n_positions=64, **_CROSS),
    "bert": functools.partial(transformers.BertConfig, **SIZES, max_position_embeddings=64, **_CROSS),
    "roberta": functools.partial(transformers.RobertaConfig, **SIZES, max_position_embeddings=64, **_CROSS),
    "trocr": functools.partial(
        transformers.TrOCRConfig,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        cross_attention_hidden_size=32,
    ),
    "electra": functools.partial(transformers.ElectraConfig, **SIZES, embedding_size=32, **_CROSS),
}


def vision_encoder_decoder(encoder: str = "vit", decoder: str = "gpt2") -> Tiny:
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ENCODERS[encoder](), DECODERS[decoder](**ids), decoder_start_token_id=1, pad_token_id=0, eos_token_id=2
    )
    model = lively(transformers.VisionEncoderDecoderModel(config))
    model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, bos_token_id=1)
    size = {"height": SIDE, "width": SIDE}
    return Tiny(model, (ViTImageProcessorPil(size=size), tokenizer()), {"deit": 2, "swin": 0}.get(encoder, 1))


def mini() -> Tiny:
    """The bundled captioner's architecture; its grid is 4 x 4 at twice the side of the others."""
    from salcap.captioners.mini.configuration import SalcapEncoderConfig
    from salcap.captioners.mini.modeling import SalcapEncoder

    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = SalcapEncoderConfig(trunk="lite0", image_size=2 * SIDE, **SIZES)
    torch.manual_seed(0)
    encoder = SalcapEncoder(config)
    decoder = transformers.GPT2LMHeadModel(DECODERS["gpt2"](**ids))
    model = transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    lively(model.decoder)
    for parameter in (encoder.position_embedding, encoder.saliency_embedding):
        parameter.data.normal_()
    for where in (model.config, model.generation_config):
        where.decoder_start_token_id, where.pad_token_id, where.eos_token_id, where.bos_token_id = 1, 0, 2, 1
    size = {"height": 2 * SIDE, "width": 2 * SIDE}
    return Tiny(model.eval(), (ViTImageProcessorPil(size=size, do_normalize=False), tokenizer()), 0)


FAMILIES = {"git": git, "blip": blip, "vision_encoder_decoder": vision_encoder_decoder}
