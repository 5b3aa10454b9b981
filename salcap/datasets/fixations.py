"""Images with the places that people fixated: OSIE, SUN-500 and ETTO, each an ``images`` folder and one index file."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from salcap.config import check_choice

# The sets whose observers are told apart have a split of ours; ETTO is for evaluation only.
SPLITS = {"osie": ("train", "val", "all"), "sun500": ("train", "val", "all"), "etto": ("all",)}
SIGMA_SHARE = 0.03  # of the width: 24 pixels of OSIE's 800, about one degree of visual angle
_NUM_VAL, _SPLIT_SEED = 100, 20261121


@dataclass(frozen=True, eq=False)
class FixationItem:
    """One image and where its observers looked.

    Attributes:
        path: of the image as stored, which may be smaller than the original.
        width, height: of the original image, in whose pixels fixations are given.
        subjects: for each observer (n, 2) float64 (x, y), origin at the top left corner; ETTO pools all in one.
    """

    image_id: str
    path: Path
    width: float
    height: float
    subjects: tuple[np.ndarray, ...]

    @property
    def fixations(self) -> np.ndarray:
        """(n, 2) fixations of all observers in pixels of the original."""
        return np.concatenate((np.empty((0, 2)), *self.subjects))

    def fixations_in(self, width: float, height: float) -> np.ndarray:
        """(n, 2) fixations of all observers in pixels of a map of this size; those outside the image are dropped."""
        return scale_points(self.fixations / (self.width, self.height), width, height)

    def density_map(self, size: tuple[int, int], sigma_share: float = SIGMA_SHARE) -> np.ndarray:
        """Blurred fixations, the usual ground-truth density.

        Args:
            size: (height, width) of the map.
            sigma_share: standard deviation of the Gaussian as a share of the image's width; round in the original.

        Returns:
            ``size`` float32 that sums to 1; all zeros where nobody fixated the image.
        """
        return blur_points(self.fixations_in(size[1], size[0]), size, sigma_share, self.width / self.height)

    def halves(self) -> tuple[FixationItem, FixationItem]:
        """The item as seen by every other observer, and by those between them.

        Raises:
            ValueError: fewer than two observers, or observers that the set does not tell apart.
        """
        if len(self.subjects) < 2:
            raise ValueError(f"{self.image_id}: needs two observers or more to be halved, got {len(self.subjects)}")
        return replace(self, subjects=self.subjects[::2]), replace(self, subjects=self.subjects[1::2])


def load_fixations(name: str, root: str | Path, split: str | None = None) -> list[FixationItem]:
    """Read ``root/fixations.json.gz`` and pair it with ``root/images``.

    Args:
        name: of `SPLITS`.
        split: "train", "val", or "all" (None). The sorted names, shuffled by ``random.Random(20261121)``: the first
            100 are "val", the others "train".

    Returns:
        Items sorted by name.

    Raises:
        ValueError: unknown name or split, or a file that is no index of fixations.
        FileNotFoundError: no index file, or an image of it is missing.
    """
    check_choice("dataset", name, tuple(SPLITS))
    if split is not None:
        check_choice(f"split of {name}", split, SPLITS[name])
    path = Path(root) / "fixations.json.gz"
    if not path.is_file():
        raise FileNotFoundError(f"{root} holds no fixations.json.gz; expected it beside a folder images")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            index = json.load(file)
        items = [_read_item(name, Path(root), key, index) for key in _names_of(index["fixations"], split)]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no index of fixations of {name}: {type(error).__name__}: {error}") from error
    missing = [item.image_id for item in items if not item.path.is_file()]
    if missing:
        folder = Path(root) / "images"
        raise FileNotFoundError(f"{len(missing)} of {len(items)} images are missing in {folder}: {missing[:3]}")
    return items


def _names_of(fixations: dict[str, Any], split: str | None) -> list[str]:
    names = sorted(fixations)
    if split in (None, "all"):
        return names
    random.Random(_SPLIT_SEED).shuffle(names)
    return sorted(names[:_NUM_VAL] if split == "val" else names[_NUM_VAL:])


def _read_item(name: str, root: Path, key: str, index: dict[str, Any]) -> FixationItem:
    width, height = (index["sizes"][key] if "sizes" in index else index)["original_size"]
    observers = [index["fixations"][key]] if name == "etto" else index["fixations"][key]
    points = tuple(np.array([point[:2] for point in points], np.float64).reshape(-1, 2) for points in observers)
    file = f"{key}.jpg" if name == "etto" else key
    return FixationItem(key, root / "images" / file, float(width), float(height), points)


def scale_points(relative: np.ndarray, width: float, height: float) -> np.ndarray:
    """Points (n, 2) given as shares of an image's sides, in pixels of a map; NaN and those outside are dropped."""
    points = relative * (width, height)
    return points[((points >= 0) & (points < (width, height))).all(1)]


def blur_points(points: np.ndarray, size: tuple[int, int], sigma_share: float, aspect: float) -> np.ndarray:
    """Sum of a Gaussian around each point, normalised.

    Args:
        points: (n, 2) (x, y) in pixels of the map.
        size: (height, width) of the map.
        sigma_share: standard deviation as a share of the image's width.
        aspect: width / height of the image, of which the map may be a stretched copy.

    Returns:
        ``size`` float32 that sums to 1; all zeros without points.
    """
    if not 0.0 < sigma_share < float("inf"):
        raise ValueError(f"sigma_share must be finite and above 0, got {sigma_share}")
    height, width = size
    x, y = points.T
    # A Gaussian is a product of its two sides: one matrix product adds up all points where they are, on no grid.
    columns = np.exp(-(((np.arange(width) + 0.5 - x[:, None]) / (sigma_share * width)) ** 2) / 2)
    rows = np.exp(-(((np.arange(height) + 0.5 - y[:, None]) / (sigma_share * aspect * height)) ** 2) / 2)
    density = rows.T @ columns
    return (density / max(density.sum(), np.finfo(np.float64).tiny)).astype(np.float32)
