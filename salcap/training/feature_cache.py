"""Frozen-trunk features of augmented training images, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from salcap.datasets.captioned_images import CaptionedImage
from salcap.efficientnet_lite import load_imagenet_trunk
from salcap.weighting import pool_to_grid


@dataclass(frozen=True)
class View:
    """One augmentation of an image: a crop box in fractions of its sides, a flip, a colour change."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    colour: float = 1.0


def draw_view(image_id: str, index: int, seed: int) -> View:
    """The ``index``-th view of an image: 0 as it is, 1 mirrored, then random crops; the same on every machine."""
    if index < 2:
        return View(flip=index == 1)
    digest = hashlib.sha256(f"{seed}/{index}/{image_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    area, stretch = rng.uniform(0.55, 1.0), np.exp(rng.uniform(-0.2, 0.2))
    width, height = min(1.0, float(np.sqrt(area * stretch))), min(1.0, float(np.sqrt(area / stretch)))
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return View(
        (left, top, left + width, top + height),
        bool(rng.random() < 0.5),
        *(float(v) for v in rng.uniform(0.75, 1.25, 3)),
    )


def render_view(image: Image.Image, view: View, size: int) -> np.ndarray:
    """Apply a view: (size, size, 3) uint8 RGB, stretched to a square as at caption time."""
    left, top, right, bottom = view.box
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    out = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)
    if view.flip:
        out = ImageOps.mirror(out)
    for enhance, factor in (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.colour),
    ):
        if factor != 1.0:
            out = enhance(out).enhance(factor)
    return np.asarray(out)


def crop_density(density: np.ndarray, view: View, grid: int) -> np.ndarray:
    """The density map as the view shows it, (grid, grid) float32 that sums to 1."""
    pooled = pool_to_grid(torch.from_numpy(density), (grid, grid), view.box)
    if view.flip:
        pooled = pooled.flip(-1)
    return (pooled / pooled.sum()).numpy().astype(np.float32)


class FeatureCache:
    """Memory-mapped stride-16 features of the trunk: ``features`` (images, views, N, C) float16.

    Building resumes where it was stopped; a folder made with other settings is refused, not mixed.

    Args:
        density_of: image_id -> saliency density (H, W); images may lack one.
    """

    def __init__(
        self,
        folder: str | Path,
        items: Sequence[CaptionedImage],
        density_of: Mapping[str, np.ndarray],
        *,
        trunk: str,
        num_views: int,
        image_size: int,
        seed: int = 0,
    ) -> None:
        self.folder, self.items, self.density_of = Path(folder), list(items), density_of
        self.trunk, self.num_views, self.image_size, self.seed = trunk, num_views, image_size, seed
        self.grid = image_size // 16
        names = "\n".join(item.image_id for item in self.items)
        self._settings: dict[str, Any] = {
            "trunk": trunk,
            "num_views": num_views,
            "image_size": image_size,
            "seed": seed,
            "images": hashlib.sha256(names.encode()).hexdigest(),
        }

    def density(self, image: int, view: int) -> np.ndarray:
        """The map as a view shows it, (grid, grid) float32 that sums to 1; NaN where the image has none."""
        image_id = self.items[image].image_id
        if image_id not in self.density_of:
            return np.full((self.grid, self.grid), np.nan, np.float32)
        return crop_density(self.density_of[image_id], self.view(image_id, view), self.grid)

    def view(self, image_id: str, index: int) -> View:
        """The ``index``-th view of an image."""
        return draw_view(image_id, index, self.seed)

    def build(
        self,
        *,
        batch_size: int = 8,
        device: str = "cpu",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Compute what is missing.

        Args:
            progress: called with (images done, images in all).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / "settings.json"
        if not record.exists():
            record.write_text(json.dumps(self._settings, indent=1))
        stored = json.loads(record.read_text())
        if stored != self._settings:
            raise ValueError(f"{self.folder} was made with {stored}, not {self._settings}; name another cache folder")
        trunk = load_imagenet_trunk(self.trunk).eval().to(device)
        trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (len(self.items), self.num_views, self.grid**2, trunk.feature_channels[2])
        features = self._open("local", shape, np.float16)
        done = self._open("done", (len(self.items),), np.uint8)
        todo = np.flatnonzero(done == 0)
        images_per_batch = max(1, batch_size // self.num_views)
        for start in range(0, len(todo), images_per_batch):
            chosen = todo[start : start + images_per_batch]
            pixels = []
            for i in chosen:
                item = self.items[i]
                with Image.open(item.path) as image:
                    image.load()
                for v in range(self.num_views):
                    pixels.append(render_view(image, self.view(item.image_id, v), self.image_size))
            batch = torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2).float() / 255
            with torch.inference_mode():
                maps = trunk.shallow(batch.contiguous(memory_format=torch.channels_last))[-1]
            tokens = maps.flatten(2).transpose(1, 2).to(torch.float16).cpu().numpy()
            features[chosen] = tokens.reshape(len(chosen), *shape[1:])
            done[chosen] = 1
            progress(len(self.items) - len(todo) + start + len(chosen), len(self.items))
        self.features = features

    def _open(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if path.exists():
            array = np.lib.format.open_memmap(path, mode="r+")
            if array.shape != shape:
                raise ValueError(f"{path} has shape {array.shape}, expected {shape}; delete {self.folder}")
            return array
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
