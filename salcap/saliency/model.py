"""The backbone contract: frames in, one log-density map for each out."""

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

_FRAMES_A_PART = 8  # resized in one go
# Tensors of more values wake all of torch's threads, which go on spinning for milliseconds and slow down `map_parts`.
_SERIAL_VALUES = 32767
_ROWS_ENOUGH = 3.5  # of a frame, for each row of what it shrinks to


class SaliencyModel(nn.Module):
    """Base of all saliency backbones; a new one writes `forward` and registers a factory.

    Attributes:
        name: under which it is registered; set by `create_saliency`.
        source_sha256: of the user's file whose code it is; set by `create_saliency`.

    A backbone that squeezes all frames to one size, bilinear with areas averaged, may state it as ``input_size``
    (height, width): `predict` then does it in 8 bits for frames that shrink, many times as fast (`shrink_frames`).
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
        """Where the backbone computes."""
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
        """Nothing is in training mode inside: a network that nobody has put in evaluation mode would learn."""
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _see(self, pixels: Tensor, pts_seconds: Tensor | None) -> Tensor:
        """`forward` on uint8 frames."""
        input_size = getattr(self, "input_size", None)
        if input_size is not None:
            parts = pixels.split(_FRAMES_A_PART)
            pixels = torch.cat(map_parts(lambda part: shrink_frames(part, input_size), parts, torch.get_num_threads()))
        return self(pixels.to(self._anchor.device).to(self._anchor.dtype).div_(255), pts_seconds)


def shrink_frames(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Squeeze uint8 frames on the CPU in 8 bits, on one thread: (T, 3, H, W) to (T, 3, *size), for networks.

    Channels-last frames, as arrays (T, H, W, 3) are, go three times as fast. Of tall frames every third row is read,
    where that leaves 3.5 for each row of the result. Frames that do not shrink, or are elsewhere, are given back.
    """
    height, width = pixels.shape[-2:]
    if pixels.device.type != "cpu" or height * width <= size[0] * size[1]:
        return pixels
    if height >= 3 * _ROWS_ENOUGH * size[0]:  # numpy copies on one thread
        rows = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()[:, 1::3])
        pixels = torch.from_numpy(rows).permute(0, 3, 1, 2)
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)


def map_parts(function: Callable[[Part], Result], parts: Iterable[Part], threads: int) -> list[Result]:
    """Results in order; for functions that release the interpreter's lock."""
    parts = list(parts)
    if threads == 1 or len(parts) == 1:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(min(threads, len(parts))) as pool:
        return list(pool.map(function, parts))


def _normalise(output: Tensor) -> Tensor:
    """`normalise_log_density` without waking torch's threads for small maps."""
    frames = max(1, _SERIAL_VALUES // max(1, output[0].numel()))
    if len(output) <= frames or output.device.type != "cpu":
        return normalise_log_density(output)
    log_density = torch.empty(output.shape)
    for found, part in zip(log_density.split(frames), output.split(frames), strict=True):
        found.copy_(normalise_log_density(part))
    return log_density


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
        frames = np.ascontiguousarray(frames)  # torch takes no negative strides, and warns of what is read-only
        return torch.from_numpy(frames if frames.flags.writeable else frames.copy()).permute(0, 3, 1, 2), None
    raise ValueError(f"frames must be salcap.Frames, a uint8 tensor or a uint8 array, got {type(frames).__name__}")
