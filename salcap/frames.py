"""Frames: what the video reader hands to everything else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Frames:
    """RGB frames of one clip with their true presentation times.

    Attributes:
        pixels: (T, 3, H, W) uint8 sRGB, upright and with square pixels.
        pts_seconds: (T,) float64, non-decreasing, seconds from the start of the video; any float sequence is taken.
        source: path or name the frames came from, for messages and records.
        warnings: what a reader could not do as asked (damage, fewer frames than asked).
        clip_seconds: start and end of the part of the video that the frames stand for; None where it is not known.

    Raises:
        ValueError: no tensor, wrong shape, wrong dtype, no frame, or times that do not match the frames.
    """

    pixels: Tensor
    pts_seconds: Tensor
    source: str | None = None
    warnings: tuple[str, ...] = field(default=())
    clip_seconds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        pixels = self.pixels
        if not isinstance(pixels, Tensor):
            raise ValueError(f"pixels must be a torch tensor, got {type(pixels).__name__}")
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.uint8:
            raise ValueError(f"pixels must be (T, 3, H, W) uint8, got {tuple(pixels.shape)} {pixels.dtype}")
        if 0 in pixels.shape:
            raise ValueError(f"pixels must hold at least one frame and one pixel, got {tuple(pixels.shape)}")
        times = torch.as_tensor(self.pts_seconds, dtype=torch.float64)
        if times.shape != pixels.shape[:1]:
            raise ValueError(f"pts_seconds must be ({len(pixels)},) for {len(pixels)} frames, got {tuple(times.shape)}")
        if not bool(torch.isfinite(times).all()) or bool((times.diff() < 0).any()):
            raise ValueError(f"pts_seconds must be finite and non-decreasing, got {times.tolist()}")
        object.__setattr__(self, "pts_seconds", times)

    def take(self, indices: Tensor) -> Frames:
        """Some of the frames; all else stays.

        Args:
            indices: (N,) int64, rising.
        """
        return replace(self, pixels=self.pixels[indices], pts_seconds=self.pts_seconds[indices])

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        times = ", ".join(f"{t:.3f}" for t in self.pts_seconds.tolist())
        return f"Frames(pixels={tuple(self.pixels.shape)} uint8, pts_seconds=[{times}], source={self.source!r})"
