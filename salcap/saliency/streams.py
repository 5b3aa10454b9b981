"""What trainable backbones share: frames of clips in, maps of a spatial and a temporal stream and their fusion out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from salcap.saliency.model import SaliencyModel

Self = TypeVar("Self", bound="StreamModel")


@dataclass(frozen=True, eq=False)
class Streams:
    """What a network says of B clips of F frames; maps are log-densities up to a constant.

    Attributes:
        spatial: (B * F, h, w) from each frame on its own.
        temporal: (B * F, h, w) from the change between frames; None where no times were given.
        fused: (B * F, h, w) the prediction; ``spatial`` itself where ``temporal`` is None.
        features: (B * F, C, h', w') of the spatial stream, the last one right before its map.
    """

    spatial: Tensor
    temporal: Tensor | None
    fused: Tensor
    features: tuple[Tensor, ...]


class StreamModel(SaliencyModel, PyTorchModelHubMixin):
    """Base of backbones that are trained here: a Hub-style model (``from_pretrained``, ``save_pretrained``,
    ``push_to_hub``; safetensors only) that writes `streams`.

    Args:
        image_size: (height, width) to which frames are squeezed.

    Attributes:
        weights_path: the file that the weights came from, where there is one on this machine.
    """

    weights_path: Path | None = None

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = image_size
        self.input_size = (height, width)

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        pixels = self.squeeze(pixels)
        if pts_seconds is None or len(pixels) == 1:
            return self.streams(pixels[None]).fused
        return self.streams(pixels[None], pts_seconds[None]).fused

    def squeeze(self, pixels: Tensor) -> Tensor:
        """(T, 3, H, W) in 0..1 at the input size; in one memory layout, so that all layouts give the same maps."""
        if pixels.shape[-2:] != self.input_size:  # in single precision: torch lacks others on the CPU
            size, dtype = self.input_size, pixels.dtype
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", align_corners=False, antialias=True).to(dtype)
        return pixels.contiguous()

    def streams(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Streams:
        """All outputs, as training needs them.

        Args:
            pixels: (B, F, 3, *input_size) RGB in 0..1.
            pts_seconds: (B, F) times, of at least 2 frames; None for frames that do not follow each other.
        """
        raise NotImplementedError

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of `Streams.features`."""
        raise NotImplementedError

    def read_out(self, features: Tensor) -> Tensor:
        """The spatial map (N, h, w) of the last features (N, C, h', w')."""
        raise NotImplementedError

    def load_pretrained_parts(self) -> None:
        """Fill in what a fresh model does not learn from scratch; the base has nothing of the kind."""

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that training tunes at a lower rate, if at all."""
        return iter(())

    @classmethod
    def _from_pretrained(cls: type[Self], **options: Any) -> Self:
        options["strict"] = True  # the mixin's default would leave missing weights random
        model: Self = super()._from_pretrained(**options)
        return model.eval()
