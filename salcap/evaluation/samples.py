"""Sample clips of a comparison: what each arm was shown of them, and that as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salcap.evaluation.compare import Arm, Clip
from salcap.evaluation.witness import KeptPatches, Shown, show
from salcap.saliency_captioner import SaliencyCaptioner

_SIDE = 224  # pixels of a picture's longer side
_MOST_FRAMES = 4  # of a clip that are drawn
_JPEG_QUALITY = 80


@dataclass(frozen=True, eq=False)
class Sample:
    """A clip as the arms saw it: some of the frames of each, small."""

    key: str
    shown: dict[Arm, Shown]


class SampleCollector:
    """An observer of `salcap.evaluation.compare.run_arms` that takes the first clips as samples."""

    def __init__(self, num_clips: int = 8) -> None:
        self.num_clips = num_clips
        self.samples: list[Sample] = []

    def __call__(self, clip: Clip, pipelines: Mapping[Arm, SaliencyCaptioner], request: Mapping[str, Any]) -> None:
        if len(self.samples) == self.num_clips:
            return
        height, width = clip.read(shortest_side=_SIDE).pixels.shape[-2:]
        shown = {
            arm: shrink(show(pipeline, clip.frames(pipeline), request), width / height)
            for arm, pipeline in pipelines.items()
        }
        self.samples.append(Sample(clip.key, shown))


def shrink(shown: Shown, aspect: float, most: int = _MOST_FRAMES) -> Shown:
    """Some of the frames, evenly spread, as small pictures.

    Args:
        aspect: width of the clip's own frames over their height; captioners may read them squeezed.
        most: pictures.
    """
    count = min(len(shown.frames), most)
    chosen = torch.arange(count) * len(shown.frames) // count
    height = round(_SIDE / max(aspect, 1.0))
    size = round(height * aspect), height
    pictures = [Image.fromarray(p.permute(1, 2, 0).cpu().numpy()) for p in shown.frames.pixels[chosen]]
    small = np.stack([np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures])
    frames = replace(shown.frames.take(chosen), pixels=torch.from_numpy(small).permute(0, 3, 1, 2))
    patches = shown.patches
    if patches is not None:
        patches = replace(patches, kept=patches.kept[chosen], merged=patches.merged[chosen])
    return Shown(frames, None, patches)


class Pictures:
    """Drawings of a sample, in which every frame's pixels are held once.

    Args:
        name: unique in the document.
    """

    def __init__(self, sample: Sample, name: str) -> None:
        self._sample, self._name = sample, name
        self._images: dict[str, str] = {}  # SVG without its id -> id

    def draw(self, arm: Arm) -> list[str]:
        """SVG of each frame: dropped patches darkened, merged ones greyed."""
        shown = self._sample.shown[arm]
        height, width = shown.frames.pixels.shape[-2:]
        drawings = []
        for index, seconds in enumerate(shown.frames.pts_seconds.tolist()):
            image = f'width="{width}" height="{height}" href="{data_uri(shown.frames.pixels[index])}"'
            name = self._images.setdefault(image, f"{self._name}-{len(self._images)}")
            veils, words = "", "all patches kept"
            if shown.patches is not None:
                veils, words = _veils(shown.patches, index, width, height)
            label = escape(f"{self._sample.key} at {seconds:.2f} s, {arm.name}: {words}")
            frame = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
            drawings.append(f'{frame}<use href="#{name}"/>{veils}</svg>')
        return drawings

    def definitions(self) -> str:
        """The pixels of all that was drawn, for once in the document."""
        images = "".join(f'<image id="{name}" {image}/>' for image, name in self._images.items())
        return f'<svg class="hidden" aria-hidden="true"><defs>{images}</defs></svg>'


def data_uri(pixels: Tensor) -> str:
    """A frame (3, H, W) as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _veils(patches: KeptPatches, frame: int, width: int, height: int) -> tuple[str, str]:
    """What lies over a picture, as SVG and in words."""
    left, top, right, bottom = patches.box
    rows, columns = patches.grid
    kept, merged = patches.kept[frame], patches.merged[frame]
    cells = {"merged": merged, "dropped": ~kept & ~merged}
    place = (
        f"translate({left * width:g} {top * height:g})"
        f" scale({(right - left) * width / columns:.6g} {(bottom - top) * height / rows:.6g})"
    )
    paths = "".join(
        f'<path class="{name}" transform="{place}" d="{_squares(mask.view(rows, columns))}"/>'
        for name, mask in cells.items()
        if bool(mask.any())
    )
    if patches.box != (0.0, 0.0, 1.0, 1.0):  # what the captioner does not see at all
        x, y, w, h = left * width, top * height, (right - left) * width, (bottom - top) * height
        paths += (
            f'<path class="dropped" fill-rule="evenodd" d="M0 0h{width}v{height}H0z M{x:g} {y:g}h{w:g}v{h:g}H{x:g}z"/>'
        )
    counts = ", ".join(
        f"{int(mask.sum())} {name}" for name, mask in {"kept": kept, **cells}.items() if bool(mask.any())
    )
    return paths, f"of {rows * columns} patches {counts}"


def _squares(mask: Tensor) -> str:
    """An SVG path over the true cells (rows, columns), row by row in runs."""
    parts = []
    for y, row in enumerate(mask.tolist()):
        x = 0
        for covered, cells in groupby(row):
            run = len(list(cells))
            if covered:
                parts.append(f"M{x} {y}h{run}v1h-{run}z")
            x += run
    return "".join(parts)
