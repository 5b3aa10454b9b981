"""Use any image network as a saliency backbone: prepare its input and interpret its output."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salcap.config import check_choice
from salcap.saliency.density import rounding_tolerance
from salcap.saliency.model import SaliencyModel

OUTPUTS = ("log_density", "density", "logits", "probability")
_FLOOR = 1e-6  # as a share of a frame's peak, so that every pixel stays possible


class ImageNetworkSaliency(SaliencyModel):
    """Base class of backbones that wrap a network for single images; subclasses implement `run`.

    Frames are stretched to ``size``, scaled to ``0..max_value``, put into ``channel_order``, and normalised as
    ``(x - mean) / std``.

    Args:
        size: (height, width) of the network's input in pixels. None keeps the size of the frames.
        mean: one value, or one value per channel, on the scale of ``max_value`` and in ``channel_order``.
        max_value: the value of white that the network expects, usually 1 or 255.
        output: the kind of maps that the network returns, see `to_log_density`.
        channel_order: "rgb" or "bgr".
        interpolation: "bilinear" or "bicubic". Areas are averaged when frames shrink, as in PIL.
        frames_per_pass: the most frames that `run` receives at once, which bounds memory on long clips.

    Attributes:
        weights_path: the file that the network was read from, if any.

    Raises:
        ValueError: a setting is out of its range.
    """

    mean: Tensor
    std: Tensor
    weights_path: Path | None = None

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        max_value: float = 1.0,
        output: str = "log_density",
        channel_order: str = "rgb",
        interpolation: str = "bilinear",
        frames_per_pass: int = 16,
    ) -> None:
        super().__init__()
        check_choice("output", output, OUTPUTS)
        check_choice("channel_order", channel_order, ("rgb", "bgr"))
        check_choice("interpolation", interpolation, ("bilinear", "bicubic"))
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"size must be (height, width) of at least 1, or None, got {size}")
        if frames_per_pass < 1 or not max_value > 0:
            raise ValueError(f"frames_per_pass and max_value must be above 0, got {frames_per_pass} and {max_value}")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.max_value, self.output = max_value, output
        self.channel_order, self.interpolation, self.frames_per_pass = channel_order, interpolation, frames_per_pass
        self.register_buffer("mean", _per_channel("mean", mean), persistent=False)
        self.register_buffer("std", _per_channel("std", std), persistent=False)
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be above 0, got {std}")

    def run(self, images: Tensor) -> Tensor:
        """Run the network: prepared images (n, 3, h, w) to maps (n, h', w') or (n, 1, h', w')."""
        raise NotImplementedError

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        parts = pixels.split(self.frames_per_pass)
        return torch.cat([to_log_density(self._run(self.prepare(part)), self.output) for part in parts])

    def prepare(self, pixels: Tensor) -> Tensor:
        """Convert frames (n, 3, H, W) RGB in 0..1 to the input that the network expects, keeping their dtype."""
        images = pixels.float()
        if self.size is not None and images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode=self.interpolation, align_corners=False, antialias=True)
            images = images.clamp(0.0, 1.0)  # bicubic overshoots
        if self.channel_order == "bgr":
            images = images.flip(1)
        return ((images * self.max_value - self.mean.float()) / self.std.float()).to(pixels.dtype)

    def _run(self, images: Tensor) -> Tensor:
        maps = self.run(images)
        if not isinstance(maps, Tensor):
            raise ValueError(
                f"the network of {self.name!r} must return one tensor of maps, got {type(maps).__name__};"
                " wrap it in a module that returns the map"
            )
        if maps.ndim == 4 and maps.shape[1] == 1:
            maps = maps[:, 0]
        if maps.ndim != 3 or len(maps) != len(images):
            n = len(images)
            raise ValueError(
                f"the network of {self.name!r} must return ({n}, h, w) or ({n}, 1, h, w), got {tuple(maps.shape)}"
            )
        return maps


class TorchSaliency(ImageNetworkSaliency):
    """Wrap a torch module as a saliency backbone, which follows ``.to()`` and can be trained.

    ``register_saliency("mine", lambda: TorchSaliency(network, size=(224, 224), output="logits"))``

    Args:
        module: maps images (n, 3, h, w) to (n, h', w') or (n, 1, h', w').
        size, options: see `ImageNetworkSaliency`.
    """

    def __init__(self, module: nn.Module, size: tuple[int, int] | None = None, **options: Any) -> None:
        super().__init__(size, **options)
        if not isinstance(module, nn.Module):
            raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        self.module = module
        weight = next((weight for weight in module.parameters() if weight.is_floating_point()), None)
        if weight is not None:  # send frames to the device of the weights
            self._anchor = self._anchor.to(weight)
            self.mean, self.std = self.mean.to(weight.device), self.std.to(weight.device)

    def run(self, images: Tensor) -> Tensor:
        return self.module(images)


class OnnxSaliency(ImageNetworkSaliency):
    """Use an ONNX file as a saliency backbone, run by onnxruntime (extra ``onnx``).

    ``register_saliency("mine", lambda: OnnxSaliency("mine.onnx", mean=0.5, std=0.5, output="probability"))``

    Args:
        path: the file. Its input is (n, 3, h, w) or (n, h, w, 3), where n is dynamic or 1.
        size: (height, width) of the input if the file leaves them open. None takes the size that the file fixes, or
            else the size of the frames.
        output_name: name of the output that holds the map; the first output by default.
        providers: onnxruntime's execution providers, in order of preference.
        options: see `ImageNetworkSaliency`.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file does not exist, is not a valid ONNX file, or takes another kind of input.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int] | None = None,
        *,
        output_name: str | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        **options: Any,
    ) -> None:
        network = _OnnxNetwork(os.fspath(path), output_name, tuple(providers))
        if network.batch_size is not None:
            options["frames_per_pass"] = network.batch_size
        fixed = network.size
        if size is None and None not in fixed:
            size = fixed  # type: ignore[assignment]
        elif size is not None and any(own not in (None, asked) for own, asked in zip(fixed, size, strict=True)):
            raise ValueError(f"{path} takes images of (height, width) {fixed}, got size {size}")
        super().__init__(size, **options)
        self.weights_path = Path(path)
        self._network = network

    def run(self, images: Tensor) -> Tensor:
        maps = self._network(images.detach().float().cpu().numpy())
        if not np.issubdtype(maps.dtype, np.floating):
            raise ValueError(f"{self.weights_path} must return floating point maps, got {maps.dtype}")
        return torch.from_numpy(maps).to(images)


class _OnnxNetwork:
    """An onnxruntime session that can be copied and pickled, with the input size that the file declares."""

    def __init__(self, path: str, output_name: str | None, providers: tuple[str, ...]) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ImportError(f"{path} needs onnxruntime: pip install salcap[onnx]") from error
        if not Path(path).is_file():
            raise ValueError(f"there is no ONNX file {path}")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(path, settings, providers=list(providers))
        except Exception as error:  # onnxruntime's errors have no narrower base class
            raise ValueError(f"{path} cannot be run by onnxruntime: {error}") from error
        self._arguments = (path, output_name, providers)
        self._input, *others = self._session.get_inputs()
        outputs = [node.name for node in self._session.get_outputs()]
        self._output_name = outputs[0] if output_name is None else output_name
        check_choice(f"output_name of {path}", self._output_name, outputs)
        shape = [side if isinstance(side, int) else None for side in self._input.shape]
        usable = not others and len(shape) == 4 and 3 in (shape[1], shape[3]) and self._input.type in _ONNX_DTYPES
        if not usable or shape[0] not in (None, 1):
            described = ", ".join(f"{node.name} {node.type} {node.shape}" for node in (self._input, *others))
            raise ValueError(
                f"{path} takes {described}, allowed: one float input (n, 3, h, w) or (n, h, w, 3), with n dynamic or 1"
            )
        self._channels_last = shape[1] != 3
        self.batch_size = shape[0]
        self.size = tuple(shape[1:3] if self._channels_last else shape[2:])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self._channels_last:
            images = images.transpose(0, 2, 3, 1)
        images = np.ascontiguousarray(images, _ONNX_DTYPES[self._input.type])
        return self._session.run([self._output_name], {self._input.name: images})[0]


_ONNX_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def to_log_density(maps: Tensor, output: str) -> Tensor:
    """Turn what a network puts out into log-densities, up to a constant per frame: (n, h, w) to (n, h, w).

    Args:
        output: "log_density": taken as it is, -inf for impossible pixels.
            "density": non-negative, any scale. Values below 1e-6 of the frame's peak, zeros among them, are raised to
            that; a frame of zeros, which says nothing of any place, becomes uniform.
            "probability": as "density", in 0..1.
            Values that rounding has carried out of the range, see `rounding_tolerance`, are taken as its ends.
            "logits": before a sigmoid, pixel by pixel; the density is that of the sigmoid.

    Raises:
        ValueError: another output, or values out of its range.
    """
    check_choice("output", output, OUTPUTS)
    if not maps.is_floating_point():
        raise ValueError(
            f"maps must be floating point, got {str(maps.dtype).removeprefix('torch.')}: convert them first"
        )
    if output == "log_density" or not maps.numel():
        return maps
    if output == "logits":
        return F.logsigmoid(maps.float()).to(maps.dtype)
    lowest, highest = (float(value) for value in maps.aminmax())
    tolerance = rounding_tolerance(maps.dtype)
    density = maps.float()
    peak = density.amax((-2, -1), keepdim=True)
    if output == "probability":
        allowed, fits = (
            f"0..1 (give or take {tolerance:g} for rounding)",
            -tolerance <= lowest <= highest <= 1 + tolerance,
        )
        if highest > 1:
            density, peak = density.clamp(max=1.0), peak.clamp(max=1.0)
    else:
        allowed = f"finite and not below 0 (give or take {tolerance:g} of the frame's peak for rounding)"
        if highest > torch.finfo(torch.float32).max and math.isfinite(highest):
            raise ValueError(f"output {output!r} must fit float32, got values up to {highest:.9g}")
        fits = math.isfinite(highest)
        fits &= lowest >= 0 or bool((density >= -tolerance * peak).all())
    if not fits:
        raise ValueError(f"output {output!r} must be {allowed}, got values from {lowest:.9g} to {highest:.9g}")
    share = torch.where(peak > 0, density / peak.clamp_min(torch.finfo(torch.float32).tiny), 1.0)
    return share.clamp_min(_FLOOR).log().to(maps.dtype)


def _per_channel(name: str, value: float | Sequence[float]) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float32)
    if values.numel() not in (1, 3) or values.ndim > 1 or not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be one value or three, got {value}")
    return values.reshape(-1, 1, 1)
