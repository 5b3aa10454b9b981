"""Photographs in, `Frames` of one frame out: the reader of sets of captioned images."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import ExifTags, Image

from salcap.frames import Frames
from salcap.video_info import VideoDecodeError, VideoLimits

_TURNS = {  # by EXIF's orientation; `ImageOps.exif_transpose` also writes the tags anew, and fails on odd ones
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_still(
    path: str | os.PathLike[str],
    num_frames: int = 1,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    *,
    size: tuple[int, int] | None = None,
    shortest_side: int | None = None,
    limits: VideoLimits | None = None,
) -> Frames:
    """Read a photograph, upright, as `salcap.video.read_frames` reads a video, shown at 0 s.

    Raises:
        ValueError: more than one frame, or times, are asked for.
        VideoDecodeError: more pixels than ``limits`` allow.
        OSError: missing, or no picture.
    """
    if (num_frames, start_seconds, end_seconds) != (1, None, None):
        asked = f"{num_frames} frames from {start_seconds} to {end_seconds} s"
        raise ValueError(f"photograph {path} is one frame without times, got {asked}")
    with Image.open(path) as image:
        if limits is not None and image.width * image.height > limits.max_pixels:
            most = f"at most {limits.max_pixels} are decoded (max_pixels)"
            raise VideoDecodeError(str(path), f"declares {image.width}x{image.height} pixels, {most}")
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        picture = _eight_bits(image).convert("RGB")
    if turn is not None:
        picture = picture.transpose(turn)
    if shortest_side is not None:
        share = min(1.0, shortest_side / min(picture.size))
        size = (round(picture.height * share), round(picture.width * share))
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return Frames(pixels[None].contiguous(), torch.zeros(1), str(path))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as one of 8, which Pillow would cut off at 255."""
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image)
    if image.mode == "I" and grey.max() <= 255:  # of 32 bits; before 11.3 Pillow opened those of 16 so too
        return image
    return Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8))
