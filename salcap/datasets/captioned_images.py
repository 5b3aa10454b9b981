"""Folders of captioned photographs: an ``images`` folder beside a ``captions.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CaptionedImage:
    """One photograph with the captions people wrote for it."""

    image_id: str
    path: Path
    captions: tuple[str, ...]


def load_captioned_images(root: str | Path, split: str | None = None) -> list[CaptionedImage]:
    """Read ``root/captions.jsonl`` (image, captions, optional split) in the Flickr8k folder layout.

    Args:
        root: folder with ``captions.jsonl`` and ``images/``.
        split: keep the lines of this split only; None keeps all.

    Raises:
        FileNotFoundError: no ``captions.jsonl`` there, or an image of it is missing.
        ValueError: the split does not occur.
    """
    root, lines = Path(root), _read_index(root)
    found = list_splits(root)
    if split is not None and split not in found:
        raise ValueError(f"{root / 'captions.jsonl'} has no split {split!r}; it has {found}")
    items = [
        CaptionedImage(line["image"], root / "images" / line["image"], tuple(line["captions"]))
        for line in lines
        if split is None or line.get("split") == split
    ]
    missing = [item.image_id for item in items if not item.path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(items)} images are missing in {root / 'images'}: {missing[:3]}"
        )
    return items


def list_splits(root: str | Path) -> list[str]:
    """The splits that ``root/captions.jsonl`` names, sorted; empty where it names none."""
    return sorted({line["split"] for line in _read_index(root) if "split" in line})


def _read_index(root: str | Path) -> list[dict[str, Any]]:
    index = Path(root) / "captions.jsonl"
    if not index.is_file():
        raise FileNotFoundError(f"{root} holds no captions.jsonl; expected captions.jsonl beside a folder images")
    return [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines() if line.strip()]


def iter_density_maps(folder: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``(image name, density (H, W) float32 that sums to 1)`` from a folder of quantised teacher maps.

    Each .npz holds ``names`` (N,) and ``maps`` (N, H, W) uint8, stored as ``255 * sqrt(p / max p)``.
    """
    for path in sorted(Path(folder).glob("*.npz")):
        with np.load(path) as archive:
            for name, stored in zip(archive["names"], archive["maps"], strict=True):
                density = (stored.astype(np.float32) / 255) ** 2
                yield str(name), density / density.sum()
