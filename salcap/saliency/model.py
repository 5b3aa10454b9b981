"""The backbone contract: frames in, one log-density map for each out."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from salcap.frames import Frames
from salcap.saliency.density import normalise_log_density, resize_log_density

FramesLike = Frames | Tensor | np.ndarray


class SaliencyModel(nn.Module):
    """Base of all saliency backbones; a new one writes `forward` and registers a factory.

    Attributes:
        name: under which it is registered; set by `create_saliency`.
    """

    name: str = "unnamed"
    _anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Lets backbones without weights follow .to() as well.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        """Predict where people look, at the backbone's own resolution.

        Args:
            pixels: (T, 3, H, W) RGB in 0..1, in the model's dtype, frames of one clip at any size from 1x1.
            pts_seconds: (T,) float64 presentation times; None where the frames are not known to follow each other.

        Returns:
            (T, h, w) floating point log-density, up to a constant per frame; -inf for impossible pixels.
        """
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, frames: FramesLike, size: tuple[int, int] | Literal["native"] | None = None) -> Tensor:
        """Predict the maps of one clip.

        Args:
            frames: `Frames`, a uint8 tensor (T, 3, H, W), or a uint8 array (T, H, W, 3); RGB.
            size: (height, width) of the maps; None for the frames' own size, "native" for the backbone's.

        Returns:
            (T, height, width) float32 on the model's device; exp sums to 1 over each frame.

        Raises:
            ValueError: frames of another kind, an unusable size, or a backbone whose output breaks the contract.
        """
        pixels, pts_seconds = _pixels_and_times(frames)
        if isinstance(size, str) and size != "native":
            raise ValueError(f"size must be (height, width), 'native' or None, got {size!r}")
        anchor = self._anchor
        output = self(pixels.to(anchor.device).to(anchor.dtype).div_(255), pts_seconds)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"saliency backbone {self.name!r} must return a floating point tensor, got {kind}")
        if output.ndim != 3 or len(output) != len(pixels):
            raise ValueError(
                f"saliency backbone {self.name!r} must return ({len(pixels)}, h, w) for {len(pixels)} frames,"
                f" got {tuple(output.shape)}"
            )
        try:
            log_density = normalise_log_density(output)
        except ValueError as error:
            raise ValueError(f"saliency backbone {self.name!r} returned an unusable map: {error}") from error
        if size == "native":
            return log_density
        height, width = pixels.shape[-2:] if size is None else size
        return resize_log_density(log_density, (height, width))


def _pixels_and_times(frames: FramesLike) -> tuple[Tensor, Tensor | None]:
    """(T, 3, H, W) uint8 and, where known, the times."""
    if isinstance(frames, Frames):
        return frames.pixels, frames.pts_seconds
    if isinstance(frames, Tensor):
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
            raise ValueError(f"a tensor of frames must be (T, 3, H, W) uint8, got {tuple(frames.shape)} {frames.dtype}")
        return frames, None
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise ValueError(f"an array of frames must be (T, H, W, 3) uint8, got {frames.shape} {frames.dtype}")
        return torch.tensor(np.ascontiguousarray(frames)).permute(0, 3, 1, 2), None
    raise ValueError(f"frames must be salcap.Frames, a uint8 tensor or a uint8 array, got {type(frames).__name__}")
