"""The teacher map cache: a folder of quantised maps, so that a teacher runs once however often students train on it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from salcap import __version__
from salcap.datasets.captioned_images import decode_density, encode_density, iter_map_shards
from salcap.frames import Frames
from salcap.hashing import weights_sha256
from salcap.saliency import SaliencyModel, resize_log_density
from salcap.video import read_frames
from salcap.weighting import pool_to_grid

KINDS = ("images", "videos")
_RECORD = "cache.json"
# What a kill can cost at most
_SHARD_MAPS = 512
_SHARD_SECONDS = 60.0
_SHORTEST_SIDE = 720  # of video frames: no teacher looks closer, and long clips of large frames fill the memory


@dataclass
class CacheReport:
    """What a run of `build_map_cache` did, counted in files.

    Attributes:
        failures: file, as the cache names it, to the reason why it has no map.
        warnings: file to what its reader had to say of it.
    """

    num_written: int = 0
    num_already_done: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)


def build_map_cache(
    model: SaliencyModel,
    source: str | Path,
    output: str | Path,
    kind: str = "images",
    *,
    pattern: str = "*",
    size: tuple[int, int] = (60, 80),
    num_frames: int = 8,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> CacheReport:
    """Run a teacher over a folder and store its maps; run again after a stop, it does what is missing.

    ``output`` gets .npz shards, each whole or not there at all: ``names`` (N,), paths relative to ``source`` with "/",
    those of video frames followed by "#" and the frame's number in its clip; ``states`` (N,), by which a file that has
    changed since is known; ``maps`` (N, h, w) uint8 (see `encode_density`); for videos ``pts_seconds`` (N,). Beside
    them ``cache.json`` says what made them. At most a minute of work is lost by a kill. One process at a time may write
    a folder.

    Pixels are read as they are stored: photographs are not turned by their EXIF orientation.

    Args:
        model: its maps are taken in eval mode, on the device where it is.
        source: folder; every file in it and in its sub-folders that is not hidden is read.
        kind: "images" or "videos".
        pattern: of the names of the files to read, such as "*.mp4".
        size: (height, width) of the stored maps. Mass is summed over cells where the teacher's maps are finer, else
            interpolated.
        num_frames: of each video, spread evenly; see `read_frames`.
        options: with which the model was made, as far as they change its maps; they become part of the record.
        progress: called with 1 after each file of `list_files`.

    Raises:
        ValueError: another kind or size, an empty or overlapping folder, or an ``output`` that holds other maps.
    """
    source, output = Path(source).resolve(), Path(output).resolve()
    if kind not in KINDS:
        raise ValueError(f"kind must be {' or '.join(KINDS)}, got {kind!r}")
    if min(size) < 1 or num_frames < 1:
        raise ValueError(f"size and num_frames must be at least 1, got {size} and {num_frames}")
    if output.is_relative_to(source):
        raise ValueError(f"output {output} lies inside {source}, whose files are read; name another folder")
    files = list_files(source, pattern)
    record = {
        "teacher": model.name,
        "options": dict(options or {}),
        "weights_sha256": weights_sha256(model),
        "size": list(size),
        "kind": kind,
        "source": str(source),
        **({"num_frames": num_frames} if kind == "videos" else {}),
    }
    shards, report = _ShardWriter(output, record), CacheReport()
    model.eval()
    for path in files:
        name = path.relative_to(source).as_posix()
        if name in shards.done:
            if shards.done[name] in (None, describe_state(path)):
                report.num_already_done += 1
            else:
                report.failures[name] = f"changed since its map was made; delete {output}, or name another folder"
        else:
            try:
                state = describe_state(path)
                frames = _read_image(path) if kind == "images" else _read_video(path, num_frames)
                maps = encode_density(predict_density(model, frames, size).cpu().numpy())
            except Exception as error:  # damaged files raise anything; one of them must not end a night's work
                report.failures[name] = f"{type(error).__name__}: {error}"
            else:
                if frames.warnings:
                    report.warnings[name] = "; ".join(frames.warnings)
                shards.add(name, state, maps, frames.pts_seconds.numpy() if kind == "videos" else None)
                report.num_written += 1
        progress(1)
    shards.flush()
    return report


def describe_state(path: Path) -> str:
    """A file's size and time of change, by which it is known to have changed."""
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns}"


def list_files(folder: Path, pattern: str = "*") -> list[Path]:
    """What `build_map_cache` reads: the files in a folder and its sub-folders that are not hidden, sorted.

    Args:
        pattern: of their names, such as "*.mp4".

    Raises:
        ValueError: no folder, or none with such files.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    inside = (path for path in folder.rglob(pattern) if path.is_file())
    files = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise ValueError(f"folder {folder} holds no files" + ("" if pattern == "*" else f" that match {pattern!r}"))
    return sorted(files)


def read_map_cache(folder: str | Path) -> MapCache:
    """Open a folder of teacher maps: `MapCache`.

    Raises:
        FileNotFoundError: no maps there.
        ValueError: a file that holds no maps, maps of several sizes, or a name that comes twice.
    """
    return MapCache(folder)


class MapCache(Mapping[str, np.ndarray]):
    """Teacher maps by name: image -> density (h, w) float32 that sums to 1.

    Maps stay in memory as they are stored, one byte for each value, and are decoded when they are asked for.

    Attributes:
        size: (height, width) of the maps.
        record: what ``cache.json`` says; empty where there is none.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self._maps: list[np.ndarray] = []
        self._place: dict[str, tuple[int, int]] = {}
        self._pts_seconds: dict[str, float] = {}
        self._clips: dict[str, list[str]] = {}
        for number, shard in enumerate(iter_map_shards(folder)):
            names = shard["names"].tolist()
            for row, name in enumerate(names):
                if name in self._place:
                    raise ValueError(f"{folder} holds two maps of {name!r}")
                self._place[name] = (number, row)
            if "pts_seconds" in shard:
                self._pts_seconds.update(zip(names, shard["pts_seconds"].tolist(), strict=True))
                for name in names:
                    self._clips.setdefault(_video_of(name), []).append(name)
            self._maps.append(shard["maps"])
        if not self._maps:
            raise FileNotFoundError(f"{folder} holds no .npz files of teacher maps; salcap saliency-cache makes them")
        sizes = {maps.shape[1:] for maps in self._maps}
        if len(sizes) > 1:
            raise ValueError(f"{folder} holds maps of several sizes: {sorted(sizes)}")
        self.size: tuple[int, int] = sizes.pop()
        path = folder / _RECORD
        self.record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def __getitem__(self, name: str) -> np.ndarray:
        shard, row = self._place[name]
        return decode_density(self._maps[shard][row])

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def videos(self) -> tuple[str, ...]:
        """The videos whose frames have maps, by the names of their files."""
        return tuple(self._clips)

    def clip(self, video: str) -> tuple[np.ndarray, np.ndarray]:
        """Maps (T, h, w) of a video's frames in order, and their times in seconds (T,) float64."""
        names = self._clips[video]
        return np.stack([self[name] for name in names]), np.array([self._pts_seconds[name] for name in names])


def predict_density(model: SaliencyModel, frames: Frames, size: tuple[int, int]) -> torch.Tensor:
    """A backbone's densities of a clip, (T, *size), each sums to 1: no mass is lost where its own maps are finer."""
    log_density = model.predict(frames, "native")
    if all(own >= asked for own, asked in zip(log_density.shape[1:], size, strict=True)):
        return pool_to_grid(log_density.exp(), size)
    return resize_log_density(log_density, size).exp()


class _ShardWriter:
    """Collects maps and writes them as shards that appear at one stroke."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder, record = folder, json.loads(json.dumps(record))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _RECORD
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            stored.pop("salcap", None)  # a newer salcap may go on
            other = [key for key in {**record, **stored} if stored.get(key) != record.get(key)]
            if other:
                told = ", ".join(f"{key} {stored.get(key)!r}, not {record.get(key)!r}" for key in other)
                raise ValueError(f"{folder} was made with {told}; name another folder")
        elif any(folder.glob("*.npz")):
            raise ValueError(f"{folder} holds maps that another program made: no {_RECORD}; name another folder")
        else:
            text = json.dumps({**record, "salcap": __version__}, indent=1)
            _write_whole(path, lambda file: file.write(text.encode()))
        self.done: dict[str, str | None] = {}  # by its file's name, the state that this had
        for shard in iter_map_shards(folder):
            names = shard["names"].tolist()
            states = shard["states"].tolist() if "states" in shard else [None] * len(names)
            self.done |= zip(map(_video_of, names) if "pts_seconds" in shard else names, states, strict=True)
        self._number = max((int(path.stem.rpartition("-")[2]) for path in folder.glob("maps-*.npz")), default=-1) + 1
        self._clear()

    def add(self, name: str, state: str, maps: np.ndarray, pts_seconds: np.ndarray | None) -> None:
        """Take the maps (T, h, w) of one file."""
        self._states += [state] * len(maps)
        self._names += [name] if pts_seconds is None else [f"{name}#{frame}" for frame in range(len(maps))]
        self._maps.append(maps)
        if pts_seconds is not None:
            self._pts_seconds.append(pts_seconds)
        if len(self._names) >= _SHARD_MAPS or time.monotonic() - self._since >= _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        if not self._names:
            return
        arrays = {"names": np.array(self._names), "states": np.array(self._states), "maps": np.concatenate(self._maps)}
        if self._pts_seconds:
            arrays["pts_seconds"] = np.concatenate(self._pts_seconds)
        path = self.folder / f"maps-{self._number:06d}.npz"
        _write_whole(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
        self._number += 1
        self._clear()

    def _clear(self) -> None:
        self._names: list[str] = []
        self._states: list[str] = []
        self._maps: list[np.ndarray] = []
        self._pts_seconds: list[np.ndarray] = []
        self._since = time.monotonic()


def _write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file that is there whole or not at all, even if the power fails."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _read_image(path: Path) -> Frames:
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    return Frames(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(), torch.zeros(1), str(path))


def _read_video(path: Path, num_frames: int) -> Frames:
    return read_frames(path, num_frames, shortest_side=_SHORTEST_SIDE)


def _video_of(name: str) -> str:
    return name.rpartition("#")[0]
