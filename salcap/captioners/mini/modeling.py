"""The bundled captioner's encoder: trunk features, saliency, then transformer layers over what is left.

Flow of one clip (B clips, F frames, N = grid * grid patches of width D)::

    pixels -> EfficientNet-Lite -> stride-16 patches + the stride-32 map, up-sampled -> (B, F, N, D)
           -> saliency scales and prunes -> (B, F, K, D) -> transformer layers within each frame
           -> time embedding -> (B, F * K, D) for the text decoder's cross-attention
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from salcap.captioners.mini.configuration import SalcapEncoderConfig
from salcap.config import Weighting
from salcap.efficientnet_lite import EfficientNetLite
from salcap.weighting import prune_patches, relative_saliency, scale_patches

_CPU_FRAMES = 4  # at a time: with more, new memory for the activations costs a CPU as much as the arithmetic


class TimeEmbedding(nn.Module):
    """Adds when a frame is shown, relative to the clip's first; nothing at time zero, so a still is unchanged."""

    def __init__(self, width: int, frequencies: int = 16) -> None:
        super().__init__()
        self.project = nn.Linear(2 * frequencies, width, bias=False)

    def forward(self, seconds: Tensor) -> Tensor:
        frequencies = self.project.in_features // 2
        periods = torch.logspace(math.log10(0.5), math.log10(120.0), frequencies, device=seconds.device)  # seconds
        angles = seconds[..., None].float() * (2 * math.pi / periods)
        waves = torch.cat([angles.sin(), angles.cos() - 1], dim=-1)
        return self.project(waves.to(self.project.weight.dtype))


class SalcapEncoder(PreTrainedModel):
    """Saliency-aware vision encoder, registered with ``AutoModel`` as "salcap-encoder"."""

    config_class = SalcapEncoderConfig
    main_input_name = "pixel_values"
    base_model_prefix = "encoder"

    def __init__(self, config: SalcapEncoderConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.grid = config.image_size // 16
        self.trunk = EfficientNetLite(config.trunk)
        local, deep = self.trunk.feature_channels[2], self.trunk.head.out_channels
        self.local_norm = nn.LayerNorm(local)
        self.local_projection = nn.Linear(local, width)
        self.deep_projection = nn.Linear(deep, width, bias=False)
        self.position_embedding = nn.Parameter(torch.zeros(self.grid**2, width))
        self.saliency_embedding = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_dropout_prob,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.num_hidden_layers)
        )
        for layer in self.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            layer.self_attn.dropout = 0.0  # dropping attention weights would rule out the fused kernel
        self.time_embedding = TimeEmbedding(width)
        self.norm = nn.LayerNorm(width)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.normal_(self.position_embedding, std=self.config.initializer_range)
            nn.init.zeros_(self.saliency_embedding)

    def resize(self, image_size: int) -> SalcapEncoder:
        """Read images of another size from now on: the position embeddings are interpolated, nothing else changes."""
        self.config.image_size = SalcapEncoderConfig(image_size=image_size).image_size
        square = self.position_embedding.detach().T.unflatten(-1, (self.grid, self.grid))
        self.grid = image_size // 16
        square = F.interpolate(square[None], (self.grid, self.grid), mode="bicubic", antialias=True)[0]
        self.position_embedding = nn.Parameter(square.flatten(1).T.contiguous())
        return self

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pts_seconds: Tensor | None = None,
        log_density: Tensor | None = None,
        mode: str = "none",
        policy: str = "foveate",
        keep_ratio: float = 1.0,
        scope: str = "auto",
        max_visual_tokens: int | None = None,
        min_keep: int = 1,
        strength: float | Tensor = 0.5,
        seed: int | Tensor = 0,
        trunk_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput:
        """Encode clips for the text decoder.

        Args:
            pixel_values: (B, F, 3, S, S) or (B, 3, S, S), float RGB in 0..1, S the config's ``image_size``.
            pts_seconds: (B, F) presentation times; None means all zero.
            log_density: (B, F, h, w) log-density over each frame; needed by every mode but "none".
            mode, policy, keep_ratio, scope, max_visual_tokens, min_keep, strength: see `salcap.config.Weighting`; a
                tensor is a strength that is learned.
            seed: of the random policies; a (B,) int64 tensor gives each clip its own.
            output_attentions, output_hidden_states, return_dict: not supported; VisionEncoderDecoderModel passes them.
            trunk_features: (B, F, N, C), the trunk's stride-16 features, instead of pixels.

        Returns:
            BaseModelOutput with ``last_hidden_state`` (B, tokens, D), frames one after another.
        """
        weighting = Weighting(mode, policy, keep_ratio, scope, max_visual_tokens, min_keep)
        if output_attentions or output_hidden_states:
            raise ValueError("the encoder returns its last hidden state only")
        if "bias" in weighting.modes:
            raise ValueError(f"mode {mode!r}: the encoder scales and prunes; a bias acts in the decoder's attention")
        patches = self._embed(self._read_trunk(pixel_values) if trunk_features is None else trunk_features)
        batch, frames, _, width = patches.shape
        if weighting.mode == "none":
            if log_density is not None:
                raise ValueError("log_density was given but mode is 'none'; choose scale, prune or scale+prune")
            tokens = patches
            frame_of_token = None
        else:
            tokens, frame_of_token = self._weight(patches, log_density, weighting, strength, seed)
        per_frame = tokens.dim() == 4
        tokens = tokens.flatten(0, 1) if per_frame else tokens
        for layer in self.layers:
            tokens = (
                layer(tokens) if frame_of_token is None else layer(tokens, src_mask=_same_frame(frame_of_token, self))
            )
        tokens = tokens.reshape(batch, -1, width)
        if pts_seconds is not None:
            embedded = self.time_embedding(pts_seconds - pts_seconds[:, :1])
            if frame_of_token is None:
                tokens = tokens + embedded.repeat_interleave(tokens.shape[1] // frames, dim=1)
            else:
                tokens = tokens + embedded.gather(1, frame_of_token[..., None].expand(-1, -1, width))
        return BaseModelOutput(last_hidden_state=self.norm(tokens))

    def _read_trunk(self, pixel_values: Tensor | None) -> Tensor:
        if pixel_values is None:
            raise ValueError("pixel_values or trunk_features must be given")
        if pixel_values.dim() == 4:
            pixel_values = pixel_values[:, None]
        size = self.config.image_size
        if pixel_values.dim() != 5 or pixel_values.shape[2:] != (3, size, size):
            raise ValueError(f"pixel_values must be (B, F, 3, {size}, {size}), got {tuple(pixel_values.shape)}")
        batch, frames = pixel_values.shape[:2]
        pixels = pixel_values.flatten(0, 1).to(self.dtype).contiguous(memory_format=torch.channels_last)
        parts = pixels.split(_CPU_FRAMES) if pixels.device.type == "cpu" else (pixels,)
        local = torch.cat([self.trunk.shallow(part)[-1] for part in parts])
        return local.flatten(2).transpose(1, 2).unflatten(0, (batch, frames))

    def _embed(self, local: Tensor) -> Tensor:
        """Patches (B, F, N, D): the local features, plus the semantic ones of the coarser map up-sampled to them."""
        batch, frames = local.shape[:2]
        coarse = self.trunk.deepen(local.flatten(0, 1).transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        semantic = self.deep_projection(self.trunk.semantic(coarse).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        semantic = F.interpolate(semantic, (self.grid, self.grid), mode="bilinear", align_corners=False)
        semantic = semantic.flatten(2).transpose(1, 2).unflatten(0, (batch, frames))
        patches = self.local_projection(self.local_norm(local)) + semantic
        return self.dropout(patches + self.position_embedding)

    def _weight(
        self,
        patches: Tensor,
        log_density: Tensor | None,
        weighting: Weighting,
        strength: float | Tensor,
        seed: int | Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        if log_density is None:
            raise ValueError(f"mode {weighting.mode!r} needs log_density (B, F, h, w)")
        grid = (self.grid, self.grid)
        saliency = relative_saliency(log_density, grid)  # float32: what is kept must not depend on the patches' dtype
        if "scale" in weighting.modes:
            weights = saliency.to(patches.dtype)
            patches = scale_patches(patches, weights, strength)
            # a learned direction says how salient a patch is: log 1 = 0 leaves it as it was
            gain = strength * weights.clamp(1e-2, 1e2).log()
            patches = patches + gain[..., None] * self.saliency_embedding
        if "prune" not in weighting.modes:
            return patches, None
        tokens, selection = prune_patches(
            patches,
            saliency,
            grid,
            keep_ratio=weighting.keep_ratio,
            policy=weighting.policy,
            scope=weighting.scope,
            seed=seed,
            max_visual_tokens=weighting.max_visual_tokens,
            min_keep=weighting.min_keep,
        )
        if selection.is_identity:
            return patches, None
        return tokens, (selection.frame_of_token if weighting.scope == "clip" else None)


def encoder_options(weighting: Weighting) -> dict[str, Any]:
    """Keywords of `SalcapEncoder.forward`: of a weighting what the encoder does, which scales and prunes.

    A bias is the decoder's, and zooming was done before.
    """
    options = asdict(weighting)
    del options["zoom"]
    options["mode"] = "+".join(mode for mode in weighting.modes if mode in ("scale", "prune")) or "none"
    return options


def _same_frame(frame_of_token: Tensor, encoder: SalcapEncoder) -> Tensor:
    """(B * heads, K, K) bool mask, True where two tokens are of different frames and must not attend."""
    differs = frame_of_token[:, :, None] != frame_of_token[:, None, :]
    return differs.repeat_interleave(encoder.config.num_attention_heads, dim=0)


AutoModel.register(SalcapEncoderConfig, SalcapEncoder, exist_ok=True)
