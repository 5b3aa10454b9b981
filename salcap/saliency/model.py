"""The contract of saliency backbones: they take frames and return one log-density map per frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salcap.frames import Frames
from salcap.saliency.density import normalise_log_density, resize_log_density

FramesLike = Frames | Tensor | np.ndarray
Part = TypeVar("Part")
Result = TypeVar("Result")

_FRAMES_A_PART = 8  # frames resized in one call
# Larger tensors wake all of torch's threads, which keep spinning for milliseconds and slow down `map_parts`.
_SERIAL_VALUES = 32767
_ROWS_ENOUGH = 3.5  # rows of a frame to read for each row of the result


class SaliencyModel(nn.Module):
    """Base class of all saliency backbones; a new one implements `forward` and registers a factory.

    A backbone that resizes all frames to one size, bilinear with antialiasing, can declare that size as ``input_size``
    (height, width). `predict` then shrinks frames in 8 bits, which is many times as fast (see `shrink_frames`).

    Attributes:
        name: the name that it is registered under; set by `create_saliency`.
        source_sha256: hash of the user's file that defines the backbone, if any; set by `create_saliency`.
    """

    name: str = "unnamed"
    source_sha256: str | None = None
    _anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Lets backbones without weights follow .to() as well.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device that the backbone runs on."""
        return self._anchor.device

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        """Predict where people look, at the backbone's own resolution.

        Args:
            pixels: (T, 3, H, W) RGB in 0..1, in the model's dtype: the frames of one clip, at any size from 1x1.
            pts_seconds: (T,) float64 presentation times; None if the frames are not known to be consecutive.

        Returns:
            (T, h, w) floating point log-density, up to a constant per frame; -inf for impossible pixels.
        """
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, frames: FramesLike, size: tuple[int, int] | Literal["native"] | None = None) -> Tensor:
        """Predict the maps of one clip.

        Args:
            frames: `Frames`, a uint8 tensor (T, 3, H, W), or a uint8 array (T, H, W, 3); RGB.
            size: (height, width) of the maps; None for the size of the frames, "native" for that of the backbone.

        Returns:
            (T, height, width) float32 on the model's device; exp sums to 1 over each frame.

        Raises:
            ValueError: the frames are of another kind, the size is invalid, or the output breaks the contract.
        """
        pixels, pts_seconds = _pixels_and_times(frames)
        if isinstance(size, str) and size != "native":
            raise ValueError(f"size must be (height, width), 'native' or None, got {size!r}")
        with self._evaluating():
            output = self._see(pixels, pts_seconds)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"saliency backbone {self.name!r} must return a floating point tensor, got {kind}")
        if output.ndim != 3 or len(output) != len(pixels):
            raise ValueError(
                f"saliency backbone {self.name!r} must return ({len(pixels)}, h, w) for {len(pixels)} frames,"
                f" got {tuple(output.shape)}"
            )
        try:
            log_density = _normalise(output)
        except ValueError as error:
            raise ValueError(f"saliency backbone {self.name!r} returned an unusable map: {error}") from error
        if size == "native":
            return log_density
        height, width = pixels.shape[-2:] if size is None else size
        return resize_log_density(log_density, (height, width))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Switch off training mode inside; a network left in training mode would update its BatchNorm statistics."""
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _see(self, pixels: Tensor, pts_seconds: Tensor | None) -> Tensor:
        """Run `forward` on uint8 frames."""
        input_size = getattr(self, "input_size", None)
        if input_size is not None:
            parts = pixels.split(_FRAMES_A_PART)
            pixels = torch.cat(map_parts(lambda part: shrink_frames(part, input_size), parts, torch.get_num_threads()))
        return self(pixels.to(self._anchor.device).to(self._anchor.dtype).div_(255), pts_seconds)


def shrink_frames(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink uint8 frames for a network, in 8 bits and on one CPU thread: (T, 3, H, W) to (T, 3, *size).

    Channels-last frames, such as arrays (T, H, W, 3), take a third of the time. Only every third row of a tall frame is
    read if that leaves 3.5 rows for each row of the result. Frames that are not larger than ``size``, or not on the
    CPU, are returned unchanged.
    """
    height, width = pixels.shape[-2:]
    if pixels.device.type != "cpu" or height * width <= size[0] * size[1]:
        return pixels
    if height >= 3 * _ROWS_ENOUGH * size[0]:  # numpy copies on one thread
        rows = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()[:, 1::3])
        pixels = torch.from_numpy(rows).permute(0, 3, 1, 2)
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)


def map_parts(function: Callable[[Part], Result], parts: Iterable[Part], threads: int) -> list[Result]:
    """Apply a function to each part on several threads and return the results in order.

    This helps only functions that release the GIL.
    """
    parts = list(parts)
    if threads == 1 or len(parts) == 1:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(min(threads, len(parts))) as pool:
        return list(pool.map(function, parts))


def _normalise(output: Tensor) -> Tensor:
    """Run `normalise_log_density` without waking torch's threads for small maps."""
    frames = max(1, _SERIAL_VALUES // max(1, output[0].numel()))
    if len(output) <= frames or output.device.type != "cpu":
        return normalise_log_density(output)
    log_density = torch.empty(output.shape)
    for found, part in zip(log_density.split(frames), output.split(frames), strict=True):
        found.copy_(normalise_log_density(part))
    return log_density


def _pixels_and_times(frames: FramesLike) -> tuple[Tensor, Tensor | None]:
    """Return the frames as (T, 3, H, W) uint8, and their times if known."""
    if isinstance(frames, Frames):
        return frames.pixels, frames.pts_seconds
    if isinstance(frames, Tensor):
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
            raise ValueError(f"a tensor of frames must be (T, 3, H, W) uint8, got {tuple(frames.shape)} {frames.dtype}")
        return frames, None
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise ValueError(f"an array of frames must be (T, H, W, 3) uint8, got {frames.shape} {frames.dtype}")
        frames = np.ascontiguousarray(frames)  # torch rejects negative strides and warns about read-only arrays
        return torch.from_numpy(frames if frames.flags.writeable else frames.copy()).permute(0, 3, 1, 2), None
    raise ValueError(f"frames must be salcap.Frames, a uint8 tensor or a uint8 array, got {type(frames).__name__}")
