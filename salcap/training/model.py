"""What training trains: the fresh captioner, and its forward pass over packed captions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, VisionEncoderDecoderModel

from salcap.captioners.mini.configuration import SalcapEncoderConfig
from salcap.captioners.mini.modeling import SalcapEncoder
from salcap.efficientnet_lite import load_imagenet_trunk
from salcap.training.settings import ModelSettings, SaliencyDefaults


def build_captioner(
    settings: ModelSettings, tokenizer: PreTrainedTokenizerFast, saliency: SaliencyDefaults
) -> VisionEncoderDecoderModel:
    """A fresh captioner: ImageNet trunk (frozen up to stride 16), new encoder and decoder."""
    encoder = SalcapEncoder(
        SalcapEncoderConfig(
            trunk=settings.trunk,
            image_size=settings.image_size,
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.encoder_layers,
            num_attention_heads=settings.heads,
            intermediate_size=settings.intermediate_size,
            hidden_dropout_prob=settings.dropout,
            saliency=asdict(saliency),
        )
    )
    encoder.trunk.load_state_dict(load_imagenet_trunk(settings.trunk).state_dict())
    encoder.trunk.requires_grad_(False)
    for part in (encoder.trunk.tail, encoder.trunk.head):
        part.requires_grad_(True)
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=2 * settings.most_tokens,
            n_embd=settings.hidden_size,
            n_layer=settings.decoder_layers,
            n_head=settings.heads,
            n_inner=settings.intermediate_size,
            activation_function="gelu",
            resid_pdrop=settings.dropout,
            embd_pdrop=settings.dropout,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            add_cross_attention=True,
        )
    )
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    for where in (model.config, model.generation_config):
        where.decoder_start_token_id = tokenizer.bos_token_id
        where.bos_token_id = tokenizer.bos_token_id
        where.eos_token_id = tokenizer.eos_token_id
        where.pad_token_id = tokenizer.pad_token_id
    model.generation_config.max_length = None
    model.generation_config.max_new_tokens = 24
    model.generation_config.num_beams = 3
    model.generation_config.length_penalty = 0.3  # of 0, 0.3, 0.7, 1, 1.5 and 2 the best BLEU-4 on Flickr8k val
    return model


class CaptionTask(nn.Module):
    """The trained module: packed captions to logits, with or without images."""

    def __init__(self, model: VisionEncoderDecoderModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: dict[str, Tensor], visual: dict[str, Any] | None) -> Tensor:
        """Logits (B, L, vocabulary)."""
        tokens = None if visual is None else self.model.encoder(**visual).last_hidden_state
        inputs = {key: text[key] for key in ("input_ids", "attention_mask", "position_ids")}
        return self.model.decoder(**inputs, encoder_hidden_states=tokens, use_cache=False).logits
