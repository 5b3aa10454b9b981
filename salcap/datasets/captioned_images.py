"""Folders of captioned photographs: an ``images`` folder beside a ``captions.jsonl``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from salcap.datasets.captioned_videos import check_captions, check_path, read_json_lines


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
        ValueError: a line of another form, or the split does not occur.
    """
    root, lines = Path(root), _read_index(root)
    found = list_splits(root)
    if split is not None and split not in found:
        raise ValueError(f"{root / 'captions.jsonl'} has no split {split!r}; it has {found}")
    items = [
        CaptionedImage(image, root / "images" / image, captions)
        for name, image, captions in lines
        if split is None or name == split
    ]
    missing = [item.image_id for item in items if not item.path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(items)} images are missing in {root / 'images'}: {missing[:3]}"
        )
    return items


def list_splits(root: str | Path) -> list[str]:
    """The splits that ``root/captions.jsonl`` names, sorted; empty where it names none."""
    return sorted({name for name, _, _ in _read_index(root) if name is not None})


def _read_index(root: str | Path) -> list[tuple[str | None, str, tuple[str, ...]]]:
    """Split, image and captions of each line."""
    index = Path(root) / "captions.jsonl"
    if not index.is_file():
        raise FileNotFoundError(f"{root} holds no captions.jsonl; expected captions.jsonl beside a folder images")
    found = []
    for where, line in read_json_lines(index):
        if not isinstance(line, dict) or not {"image", "captions"} <= line.keys():
            raise ValueError(f"{where}: expected the keys image and captions, and maybe split, got {line!r}")
        split = line.get("split")
        if not isinstance(split, str | None):
            raise ValueError(f"{where}: split must be a name, got {split!r}")
        image = check_path(line["image"], "image", Path(root) / "images", where)
        found.append((split, image, check_captions(line["captions"], where)))
    return found


def iter_density_maps(folder: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``(image name, density (H, W) float32 that sums to 1)`` from a folder of quantised teacher maps."""
    for shard in iter_map_shards(folder):
        for name, stored in zip(shard["names"], shard["maps"], strict=True):
            yield str(name), decode_density(stored)


def iter_map_shards(folder: str | Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the .npz files of a folder of teacher maps as they are stored, by name of file.

    Each holds ``names`` (N,) and ``maps`` (N, H, W) uint8 (see `decode_density`); those of videos ``pts_seconds`` (N,).

    Raises:
        ValueError: a file that is no such archive.
    """
    for path in sorted(Path(folder).glob("*.npz")):
        try:
            with np.load(path) as archive:
                shard = dict(archive)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read as a file of maps: {error}") from error
        if not {"names", "maps"} <= shard.keys() or shard["maps"].ndim != 3 or shard["maps"].dtype != np.uint8:
            raise ValueError(f"{path} must hold names (N,) and maps (N, H, W) uint8, it holds {sorted(shard)}")
        yield shard


def encode_density(density: np.ndarray) -> np.ndarray:
    """Densities (..., H, W), any scale, as uint8 ``round(255 * sqrt(p / max p))``: finer where little is.

    Below 4e-6 of a map's peak all is zero: a quarter of attention_center's values, 4e-5 of their mass. On 140 OSIE
    images the maps of attention_center, fastgaze and glimpse moved by 0.002 to 0.0035 (total variation, mean) and
    their NSS by less than 0.0003 (0.006 on any one image).
    """
    peak = density.max((-2, -1), keepdims=True)
    return np.rint(255 * np.sqrt(density / peak)).astype(np.uint8)


def decode_density(stored: np.ndarray) -> np.ndarray:
    """Undo `encode_density`: (..., H, W) uint8 to float32 that sums to 1 over each map."""
    density = (stored.astype(np.float32) / 255) ** 2
    return density / density.sum((-2, -1), keepdims=True)
