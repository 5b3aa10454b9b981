"""Settings of the bundled captioner's encoder."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

ENCODER_TYPE = "salcap-encoder"


class SalcapEncoderConfig(PretrainedConfig):
    """Shape of `SalcapEncoder`.

    Args:
        trunk: EfficientNet-Lite variant; its stride-16 features are the patches.
        image_size: side of the square the trunk reads; the grid is image_size / 16 to a side.
        saliency: how the captioner was tuned to be used, see `CaptionerFamily.tune`.
    """

    model_type = ENCODER_TYPE

    def __init__(
        self,
        trunk: str = "lite2",
        image_size: int = 224,
        hidden_size: int = 256,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        intermediate_size: int = 1024,
        hidden_dropout_prob: float = 0.1,
        initializer_range: float = 0.02,
        saliency: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if image_size < 32 or image_size % 16:
            raise ValueError(f"image_size must be a multiple of 16 from 32 on, got {image_size}")
        self.trunk = trunk
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.initializer_range = initializer_range
        self.saliency = saliency or {"backbone": "center", "mode": "none"}
        super().__init__(**kwargs)


AutoConfig.register(ENCODER_TYPE, SalcapEncoderConfig, exist_ok=True)
