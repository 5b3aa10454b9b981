"""Frames to the pixels a model reads, and which part of each frame that is."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import transformers
from torch import Tensor
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import get_size_dict
from transformers.image_transforms import get_resize_output_image_size
from transformers.utils import VIDEO_PROCESSOR_NAME, cached_file

from salcap.frames import Frames

_GEOMETRY = ("_preprocess", "resize", "center_crop")
_PLAIN = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)

_PACKED = (
    "patch_size",
    "temporal_patch_size",
    "merge_size",
    "cap_pixels_per_frame",
    "max_video_tokens",
    "use_token_compression",
    "max_image_size",
)
_OLD_LIMITS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


class FramePreprocessor:
    """Runs a model's image processor over frames, and knows the box of the frame that survives it.

    Args:
        image_processor: of ``transformers``, PIL or torchvision backend.
    """

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __call__(self, frames: Frames) -> Tensor:
        """Pixels (T, 3, h, w) float32 as the model expects them."""
        images = list(frames.pixels.cpu().numpy())
        batch = self.image_processor(images, input_data_format="channels_first", return_tensors="pt")
        return batch["pixel_values"]

    @property
    def read_options(self) -> dict[str, Any]:
        """Arguments for `salcap.read_frames`: frames decoded straight to the size they are resized to."""
        size = self._size("size") if self.image_processor.do_resize else {}
        if set(size) == {"height", "width"}:
            return {"size": (size["height"], size["width"])}
        return {"shortest_side": size["shortest_edge"]} if set(size) == {"shortest_edge"} else {}

    def seen_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of a height x width frame that the model sees: (left, top, right, bottom) in fractions.

        Raises:
            ValueError: an image processor whose geometry is not the plain resize and centre crop.
        """
        processor = self.image_processor
        backend = next((b for b in (PilBackend, TorchvisionBackend) if isinstance(processor, b)), None)
        changed = [n for n in _GEOMETRY if backend and getattr(type(processor), n) is not getattr(backend, n)]
        if backend is None or changed or getattr(processor, "do_pad", None):
            own = f", and it has its own {', '.join(changed)}" if changed else ""
            raise ValueError(
                f"cannot lay saliency maps over what {type(processor).__name__} makes of a frame:"
                f" only resize and centre crop are known{own}; use mode 'none'"
            )
        if processor.do_resize:
            height, width = self._resized(height, width)
        if not getattr(processor, "do_center_crop", None):
            return 0.0, 0.0, 1.0, 1.0
        crop = self._size("crop_size")
        top, left = (height - crop["height"]) // 2, (width - crop["width"]) // 2
        if top < 0 or left < 0:
            raise ValueError(
                f"frames are resized to {height}x{width}, smaller than the crop of {crop}: they get a border"
            )
        return left / width, top / height, (left + crop["width"]) / width, (top + crop["height"]) / height

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        size = self._size("size")
        if set(size) == {"height", "width"}:
            return size["height"], size["width"]
        if set(size) == {"shortest_edge"}:
            frame = np.broadcast_to(np.uint8(0), (3, height, width))
            return get_resize_output_image_size(frame, size["shortest_edge"], False, None, "channels_first")
        raise ValueError(f"saliency maps need an image size of height and width, or shortest_edge, got {size}")

    def _size(self, name: str) -> dict[str, int]:
        return dict(getattr(self.image_processor, name) or {})


class WholeFrames(FramePreprocessor):
    """Each frame resized whole, as video processors do it, where the image processor would cut it into tiles.

    Size, crop and normalisation are the image processor's own.
    """

    def __init__(self, image_processor: Any) -> None:
        given = {
            name: getattr(image_processor, name) for name in _PLAIN if getattr(image_processor, name, None) is not None
        }
        super().__init__(PilBackend(**given))


def read_video_settings(path: str, revision: str) -> dict[str, Any]:
    """A checkpoint's settings for videos, of its processor's file or their own; empty if it has none."""
    made = transformers.ProcessorMixin.get_processor_dict(path, revision=revision)[0]
    if found := made.get("video_processor"):
        return dict(found)
    file = cached_file(path, VIDEO_PROCESSOR_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def with_settings(image_processor: Any, settings: Mapping[str, Any]) -> Any:
    """A copy of an image processor that treats frames as settings for videos say; unknown ones are left out."""
    made, settings = copy.copy(image_processor), {k: v for k, v in settings.items() if v is not None}
    for name in ("size", "crop_size"):
        if isinstance(settings.get(name), int):  # as older files have it
            settings[name] = dict(
                get_size_dict(settings[name], default_to_square="shortest_edge" not in dict(made.size))
            )
    for name in (*_PLAIN, *_PACKED):
        if name in settings:
            setattr(made, name, settings[name])
    made.has_video_size = "size" in settings
    old = {edge: settings[name] for name, edge in _OLD_LIMITS.items() if name in settings}
    if old or "size" in settings:
        made.size = {**dict(made.size), **old}
    return made


def settings_of(video_processor: Any) -> dict[str, Any]:
    """The settings of a loaded video processor."""
    made = video_processor.to_dict() if hasattr(video_processor, "to_dict") else vars(video_processor)
    return {name: dict(value) if name == "size" and value else value for name, value in made.items()}


def load_frame_settings(path: str, **source: Any) -> Any:
    """The attributes of a saved video or image processor whose class cannot be loaded without torchvision."""
    video = read_video_settings(path, source["revision"])
    images = transformers.ProcessorMixin.get_processor_dict(path, **source)[0].get("image_processor")
    try:
        images = images or PilBackend.get_image_processor_dict(path, **source)[0]
    except OSError:
        if not video:
            raise
    found = {"do_resize": True, "do_rescale": True, "do_normalize": True, **(images or {}), **video}
    for name in {"size", "crop_size"} & found.keys():
        if isinstance(found[name], int):  # as older files have it
            found[name] = dict(get_size_dict(found[name]))
    return SimpleNamespace(**found)


def pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a config's size, given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def patch_grid(pixels: Tensor, image_size: Any, patch_size: Any) -> tuple[int, int]:
    """Rows and columns of patches in pixels (..., H, W).

    Raises:
        ValueError: pixels of another size than the position embeddings were made for.
    """
    size, expected = tuple(pixels.shape[-2:]), pair(image_size)
    if size != expected:
        raise ValueError(f"the image processor gives {size[0]}x{size[1]} pixels, the model reads {expected}")
    rows, columns = pair(patch_size)
    return expected[0] // rows, expected[1] // columns
