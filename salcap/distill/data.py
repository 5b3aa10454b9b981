"""Training data in memory-mapped arrays: pixels at the size of each network, ground truth, teachers' maps."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from salcap.datasets.fixations import load_fixations
from salcap.distill.map_cache import MapCache, describe_state, list_files, read_map_cache
from salcap.distill.settings import ClipSource, DataSettings, ImageSource
from salcap.frames import Frames
from salcap.video import read_frames

Size = tuple[int, int]

# Pixels are stored finer than a network sees them, since it sees crops. Up to a side of `_SMALL` they are seen at twice
# their size and then averaged, which makes a crop as sharp as a whole picture.
_SMALL, _FINER = 128, 1.125


@dataclass(frozen=True, eq=False)
class View:
    """The part of each image that a batch sees: ``theta`` (B, 2, 3), of `torch.nn.functional.affine_grid`, upright."""

    theta: Tensor

    @classmethod
    def random(cls, rng: np.random.Generator, count: int, smallest: float) -> View:
        """Crops of at least ``smallest`` of each side, half of them mirrored."""
        scale = rng.uniform(smallest, 1.0, (count, 1)) * rng.uniform(0.93, 1.0, (count, 2))
        shift = (1 - scale) * rng.uniform(-1, 1, (count, 2))
        theta = np.zeros((count, 2, 3), np.float32)
        theta[:, 0, 0] = scale[:, 0] * rng.choice((-1, 1), count)
        theta[:, 1, 1], theta[:, :, 2] = scale[:, 1], shift
        return cls(torch.from_numpy(theta))

    def of(self, maps: Tensor, size: Size | None = None) -> Tensor:
        """(B, C, H, W) seen through the view, at ``size`` or their own."""
        size = size or (maps.shape[-2], maps.shape[-1])
        # what affine_grid makes, which for the sake of any angle takes longer than the sampling
        theta = self.theta.to(maps.device)[:, None, None]
        y, x = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=maps.device) for n in size)
        x, y = x * theta[..., 0, 0] + theta[..., 0, 2], y[:, None] * theta[..., 1, 1] + theta[..., 1, 2]
        grid = torch.stack(torch.broadcast_tensors(x, y), -1)
        return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step learns from: B clips of F frames; stills are clips of one frame.

    Attributes:
        pixels: (B, F, 3, *student size) RGB in 0..1.
        pts_seconds: (B, F); None for stills.
        density: (B * F, h, w) ground truth; anything where ``labelled`` is False.
        labelled: (B * F,) bool.
        teachers: teacher's name -> (B * F, h, w) log-density.
        motion: (B * F, h, w) density of what moves by itself; None where that is not known.
        still_indices: (B,) rows of `Stills`; None for clips of videos.
        view: of the stills.
        whole: the clips with the frames that the student does not see; None where it sees all.
    """

    pixels: Tensor
    density: Tensor
    labelled: Tensor
    teachers: dict[str, Tensor]
    pts_seconds: Tensor | None = None
    motion: Tensor | None = None
    still_indices: np.ndarray | None = None
    view: View | None = None
    whole: Batch | None = None

    def frames(self, kept: Tensor) -> Batch:
        """The clips' frames ``kept`` (k,) alone; ``whole`` is the batch itself."""
        clips = self.pixels.shape[:2]

        def some(values: Tensor) -> Tensor:
            return values.unflatten(0, clips)[:, kept].flatten(0, 1)

        return Batch(
            pixels=self.pixels[:, kept],
            density=some(self.density),
            labelled=some(self.labelled),
            teachers={name: some(values) for name, values in self.teachers.items()},
            pts_seconds=None if self.pts_seconds is None else self.pts_seconds[:, kept],
            motion=None if self.motion is None else some(self.motion),
            whole=self,
        )


class Stills:
    """All images of a run, with what is known of each.

    Args:
        settings: of the data.
        size: (height, width) of the student's input.
        progress: takes a line of text.

    Attributes:
        paths: of the images.
        labelled: (N,) bool, whether people's fixations are known.
        density: (N, h, w) float16 ground truth, zeros where unlabelled.
        maps: teacher's name -> (N, h, w) float16 densities, on the grid of the ground truth.
    """

    def __init__(self, settings: DataSettings, size: Size, progress: Callable[[str], None]) -> None:
        self.settings, self.size, self._progress = settings, size, progress
        self.paths: list[Path] = []
        labelled: list[bool] = []
        density: list[np.ndarray] = []
        maps: dict[str, list[np.ndarray]] = {}
        caches = [{name: read_map_cache(folder) for name, folder in s.maps.items()} for s in settings.images]
        for source, known in zip(settings.images, caches, strict=True):
            for path, truth in _items(source, settings):
                self.paths.append(path)
                labelled.append(truth is not None)
                density.append(_per_uniform(truth, settings.map_size))
                for teacher in {name for cache in caches for name in cache}:
                    found = _map_of(known, teacher, path, source)
                    maps.setdefault(teacher, []).append(_per_uniform(found, settings.map_size))
        self.labelled = np.array(labelled)
        self.density = torch.from_numpy(np.stack(density))
        self.maps = {name: torch.from_numpy(np.stack(values)) for name, values in maps.items()}
        self._pixels: dict[Size, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        """Stills seen through random views, as clips of one frame."""
        view = View.random(rng, len(indices), self.settings.crop)
        truth = _normalised(view.of(self.density[indices].float()[:, None])[:, 0])
        teachers = {
            name: (_normalised(view.of(values[indices].float()[:, None])[:, 0])).clamp_min(1e-9).log()
            for name, values in self.maps.items()
        }
        return Batch(
            pixels=_recolour(self.pixels(indices, view, self.size), rng)[:, None],
            density=truth,
            labelled=torch.from_numpy(self.labelled[indices]) & (truth.sum((1, 2)) > 0),
            teachers=teachers,
            still_indices=indices,
            view=view,
        )

    def pixels(self, indices: np.ndarray, view: View, size: Size) -> Tensor:
        """(B, 3, *size) in 0..1: the same view for a network of another input size."""
        return _seen(torch.from_numpy(self._array(size)[indices]), view, size)

    def _array(self, size: Size) -> np.ndarray:
        """(N, 3, H, W) uint8 of all images, of `_stored_size`."""
        if size not in self._pixels:
            stored = _stored_size(size)
            self._pixels[size] = prepare_array(
                Path(self.settings.cache) / f"stills-{stored[0]}x{stored[1]}",
                [describe_file(path) for path in self.paths],
                (3, *stored),
                lambda row: _read_image(self.paths[row], stored),
                self._progress,
            )
        return self._pixels[size]


class Clips:
    """All videos of a run: frames a little finer than the student sees them, their times, the teachers' maps."""

    def __init__(self, sources: Sequence[ClipSource], settings: DataSettings, size: Size) -> None:
        self.settings, self.size = settings, size
        self.pixels: list[Tensor] = []
        self.pts_seconds: list[Tensor] = []
        self.maps: list[dict[str, Tensor]] = []
        teachers = {name for source in sources for name in source.maps}
        for source in sources:
            if missing := sorted(teachers - source.maps.keys()):
                raise ValueError(f"clips of {source.folder} have no maps of {missing[0]!r}, which other clips have")
            caches = {name: read_map_cache(folder) for name, folder in source.maps.items()}
            for path in list_files(Path(source.folder), source.pattern):
                frames = read_frames(path, source.num_frames, size=_stored_size(size))
                name = path.relative_to(source.folder).as_posix()
                self.pixels.append(frames.pixels)
                self.pts_seconds.append(frames.pts_seconds)
                self.maps.append(
                    {t: _clip_maps(c, name, frames, source.maps[t], settings.map_size) for t, c in caches.items()}
                )

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, count: int, num_frames: int, rng: np.random.Generator) -> Batch:
        """``count`` stretches of ``num_frames`` frames, each stretch through one random view."""
        usable = [i for i in range(len(self)) if len(self.pixels[i]) >= num_frames]
        if not usable:
            raise ValueError(f"no clip has {num_frames} frames")
        pixels, times = [], []
        maps: dict[str, list[Tensor]] = {}
        for i in rng.choice(usable, count):
            start = int(rng.integers(len(self.pixels[i]) - num_frames + 1))
            view = View(View.random(rng, 1, self.settings.crop).theta.expand(num_frames, -1, -1))
            window = slice(start, start + num_frames)
            pixels.append(_recolour(_seen(self.pixels[i][window], view, self.size), rng, alike=True))
            times.append(self.pts_seconds[i][window])
            for teacher, values in self.maps[i].items():
                seen = _normalised(view.of(values[window].float()[:, None])[:, 0])
                maps.setdefault(teacher, []).append(seen.clamp_min(1e-9).log())
        size = self.settings.map_size
        return Batch(
            pixels=torch.stack(pixels),
            pts_seconds=torch.stack(times),
            density=torch.zeros(count * num_frames, *size),
            labelled=torch.zeros(count * num_frames, dtype=torch.bool),
            teachers={teacher: torch.cat(values) for teacher, values in maps.items()},
        )


def describe_file(path: Path) -> str:
    """A file's path, size and time of change: what is made of it is made anew where one of them is another."""
    return f"{path} {describe_state(path)}"


def prepare_array(
    stem: Path,
    names: list[str],
    shape: tuple[int, ...],
    make: Callable[[int], np.ndarray],
    progress: Callable[[str], None],
    count: int | None = None,
    dtype: str = "uint8",
) -> np.ndarray:
    """A memory-mapped array (count, *shape), made row by row once and read again by later runs of the same data.

    Args:
        stem: path without its ending; a hash of ``names`` becomes part of the file's name.
        names: what the array is made of.
        count: rows; None for one for each name.
    """
    count = len(names) if count is None else count
    digest = hashlib.sha256(json.dumps([names, shape, dtype]).encode()).hexdigest()[:12]
    path = stem.with_name(f"{stem.name}-{digest}.npy")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        rows = np.lib.format.open_memmap(partial, "w+", dtype, (count, *shape))
        for row in range(count):
            rows[row] = make(row)
            if (row + 1) % 1000 == 0 or row + 1 == count:
                progress(f"{path.name}: {row + 1} of {count}")
        rows.flush()
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")


def _items(source: ImageSource, settings: DataSettings) -> list[tuple[Path, np.ndarray | None]]:
    if source.fixations is None:
        return [(path, None) for path in list_files(Path(source.folder))[: source.most]]
    items = load_fixations(source.fixations, source.folder, source.split)[: source.most]
    return [(item.path, item.density_map(settings.map_size, settings.blur)) for item in items]


def _map_of(known: dict[str, MapCache], teacher: str, path: Path, source: ImageSource) -> np.ndarray:
    if teacher not in known:
        raise ValueError(f"images of {source.folder} have no maps of {teacher!r}, which other images have")
    folder = Path(source.folder) / "images" if source.fixations else Path(source.folder)
    name = path.relative_to(folder).as_posix()
    if name not in known[teacher]:
        raise ValueError(f"{source.maps[teacher]} has no map of {name}; run salcap saliency-cache again")
    return known[teacher][name]


def _clip_maps(cache: MapCache, name: str, frames: Frames, folder: str, size: Size) -> Tensor:
    try:
        maps, _ = cache.clip(name)
    except KeyError:
        raise ValueError(f"{folder} has no maps of {name}; run salcap saliency-cache again") from None
    if len(maps) != len(frames):
        raise ValueError(
            f"{name}: {len(frames)} frames but {len(maps)} teacher maps; make them with the same num_frames"
        )
    return torch.from_numpy(np.stack([_per_uniform(one, size) for one in maps]))


def _per_uniform(density: np.ndarray | None, size: Size) -> np.ndarray:
    """A density as float16 with mean 1 (small shares would vanish), zeros for None."""
    if density is None:
        return np.zeros(size, np.float16)
    if density.shape != size:
        tensor = torch.from_numpy(density)[None, None]
        density = F.interpolate(tensor, size, mode="bilinear", align_corners=False, antialias=True)[0, 0].numpy()
    return (density / density.mean()).astype(np.float16)


def _stored_size(size: Size) -> Size:
    """Of the pixels kept for a network of this input size."""
    finer = 2 if max(size) <= _SMALL else _FINER
    return round(size[0] * finer), round(size[1] * finer)


def _seen(stored: Tensor, view: View, size: Size) -> Tensor:
    """(B, 3, H, W) uint8 of `_stored_size` to (B, 3, *size) in 0..1, through the view."""
    if max(size) > _SMALL:
        return view.of(stored.float() / 255, size)
    return F.avg_pool2d(view.of(stored.float() / 255), 2)


def _normalised(density: Tensor) -> Tensor:
    return density / density.sum((-2, -1), keepdim=True).clamp_min(1e-6)


def _recolour(pixels: Tensor, rng: np.random.Generator, alike: bool = False) -> Tensor:
    """Random brightness, contrast and saturation for each image (B, 3, H, W), or the same for all."""
    count = 1 if alike else len(pixels)
    gain, shift, colour = (
        torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32))
        for low, high in ((0.7, 1.3), (-0.15, 0.15), (0.3, 1.3))
    )
    grey = pixels.mean(1, keepdim=True)
    return (((grey + (pixels - grey) * colour) - 0.5) * gain + 0.5 + shift).clamp(0, 1)


def _read_image(path: Path, size: Size) -> np.ndarray:
    with Image.open(path) as image:
        squeezed = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(squeezed).transpose(2, 0, 1)
