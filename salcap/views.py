"""Views: of each frame its context and a closer crop, as frames that any captioner takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salcap.frames import Frames


def finer(read_options: Mapping[str, Any], zoom: float) -> dict[str, Any]:
    """How to read a video that is zoomed into: ``zoom`` times as fine as a captioner reads it, never above the source.

    Args:
        read_options: the captioner's, see `salcap.captioners.base.Captioner`; empty means the source's own size.

    Returns:
        Options for `salcap.read_frames`. The aspect is kept, so that crops are cut from square pixels.
    """
    side = max(read_options.get("size", (read_options.get("shortest_side", 0),)))
    return {"shortest_side": math.ceil(zoom * side)} if side else {}


def view_size(frame_size: tuple[int, int], read_options: Mapping[str, Any], zoom: float) -> tuple[int, int]:
    """(height, width) of the views of a frame: what the captioner reads, or the crop's own pixels if it states none."""
    if "size" in read_options:
        height, width = read_options["size"]
        return height, width
    share = 1 / zoom
    if "shortest_side" in read_options:
        share = min(1.0, read_options["shortest_side"] / min(frame_size))
    return max(1, round(share * frame_size[0])), max(1, round(share * frame_size[1]))


def make_views(frames: Frames, boxes: Tensor, size: tuple[int, int]) -> Frames:
    """Two views of each frame, one after the other and of the same time: the whole of it, and its box.

    Args:
        frames: F of them.
        boxes: (F, 4) left, top, right, bottom in fractions of the frame, on whole pixels.
        size: (height, width) of the views. A box of just that many pixels is taken as it is, others are resized.

    Returns:
        `Frames` of 2 F views.
    """
    pixels = frames.pixels.cpu()
    height, width = pixels.shape[-2:]
    edges = (boxes * torch.tensor([width, height, width, height])).round().long().tolist()
    crops = [frame[:, top:bottom, left:right] for frame, (left, top, right, bottom) in zip(pixels, edges, strict=True)]
    views = torch.stack([_resize(pixels, size), _resize(torch.stack(crops), size)], 1).flatten(0, 1)
    return replace(frames, pixels=views, pts_seconds=frames.pts_seconds.repeat_interleave(2))


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if pixels.shape[-2:] == size:
        return pixels
    return F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
