"""How well a saliency backbone predicts where people look in a set of images, or from moment to moment in clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salcap.config import check_choice
from salcap.datasets.fixations import SPLITS, FixationItem, load_fixations, scale_points
from salcap.datasets.gaze_video import GazeClip, load_gaze_clips
from salcap.frames import Frames
from salcap.saliency.baselines import Center
from salcap.saliency.metrics import METRICS, score_saliency
from salcap.saliency.model import SaliencyModel
from salcap.video import read_frames

GazeItem = FixationItem | GazeClip
Scores = dict[str, float | None]

SALIENCY_DATASETS: dict[str, tuple[str, ...]] = {**SPLITS, "causality": ("all",)}
FRAMES_BETWEEN = 10  # of a clip, one is looked at: three a second
MAX_SIDE = 1024  # pixels
_UNIFORM_SHARE = 0.05  # of a human map: so that no place is impossible


@dataclass(frozen=True)
class SaliencyEvaluation:
    """Scores of one backbone on a data set.

    Attributes:
        scores: metric -> mean over the items (of a clip: the mean over its frames); None where none could be scored.
        standard_errors: of those means; None for fewer than two items.
        per_item: id of an image or clip -> its own scores.
    """

    dataset: str
    split: str
    num_items: int
    saliency: str
    max_side: int
    scores: Scores
    standard_errors: Scores
    per_item: dict[str, Scores] = field(repr=False)

    def to_dict(self, per_item: bool = True) -> dict[str, Any]:
        """A JSON-ready dictionary; without ``per_item`` of the means alone."""
        record = asdict(self)
        if not per_item:
            del record["per_item"]
        return record


def load_gaze(dataset: str, root: str | Path, split: str | None = None) -> tuple[list[GazeItem], str]:
    """Items of a named data set, and the name of their split.

    Args:
        split: None for "val" where the set has it (so that no training image is scored by mistake), else "all".

    Raises:
        ValueError: unknown data set or split.
        FileNotFoundError: the set is not there, or not whole.
    """
    check_choice("dataset", dataset, tuple(SALIENCY_DATASETS))
    splits = SALIENCY_DATASETS[dataset]
    if split is None:
        split = "val" if "val" in splits else "all"
    check_choice(f"split of {dataset}", split, splits)
    if dataset == "causality":
        return [*load_gaze_clips(root)], split
    return [*load_fixations(dataset, root, split)], split


def evaluate_saliency(
    model: SaliencyModel,
    items: Sequence[GazeItem],
    *,
    dataset: str,
    split: str = "all",
    max_side: int = MAX_SIDE,
    progress: Callable[[int], object] = lambda done: None,
) -> SaliencyEvaluation:
    """Score a backbone's maps against the looks of all observers.

    Maps are brought to the size of the original image (as `SaliencyModel.predict` does, bilinear in log space) and
    scored there by `score_saliency`. Negatives of s_auc are the fixations of all other items, each one once, so nothing
    is drawn; information_gain is over the `center` backbone; kld, cc and sim compare with the fixations
    blurred by a Gaussian of 3 % of the width. Of a clip every tenth frame is looked at, all in one call, so that
    backbones see it move, and each is scored against the gaze within 0.05 s of its time.

    Args:
        max_side: pixels to which the longer side of bigger originals is brought, for time: at 1024 the NSS on ETTO and
            SUN-500 is within 0.01 of that at full size.
        progress: called with the number of items just done.

    Raises:
        ValueError: no items, or a ``max_side`` below 1.
        OSError, VideoDecodeError: an image or clip that cannot be read.
    """

    def predict(item: GazeItem, frames: Frames, size: tuple[int, int]) -> Iterator[tuple[Tensor, GazeItem]]:
        yield model.predict(frames, size).cpu(), item

    return _evaluate(model.name, predict, items, dataset, split, max_side, progress)


def evaluate_human(
    items: Sequence[GazeItem],
    *,
    dataset: str,
    split: str = "all",
    max_side: int = MAX_SIDE,
    progress: Callable[[int], object] = lambda done: None,
) -> SaliencyEvaluation:
    """Score people as a backbone: the blurred looks of half of the observers against the looks of the other half.

    Both ways round, averaged; halves are every other observer. The Gaussian is that of the ground truth (24 pixels of
    OSIE's 800). A twentieth of uniform density is mixed in, which leaves nss, cc and both AUCs as they are. kld, cc and
    sim compare two noisy halves, so a good backbone, held against all observers, may pass them; nss has no such bias.

    Raises:
        ValueError: an item whose observers are not told apart (ETTO).
    """

    def predict(item: GazeItem, frames: Frames, size: tuple[int, int]) -> Iterator[tuple[Tensor, GazeItem]]:
        first, second = item.halves()
        for seer, truth in ((first, second), (second, first)):
            _, density = _looks(seer, size, frames.pts_seconds)
            yield (density + _UNIFORM_SHARE / (1 - _UNIFORM_SHARE) / (size[0] * size[1])).log(), truth

    return _evaluate("human", predict, items, dataset, split, max_side, progress)


def _evaluate(
    name: str,
    predict: Callable[[GazeItem, Frames, tuple[int, int]], Iterator[tuple[Tensor, GazeItem]]],
    items: Sequence[GazeItem],
    dataset: str,
    split: str,
    max_side: int,
    progress: Callable[[int], object],
) -> SaliencyEvaluation:
    """Read each item and score all that ``predict`` gives for it: maps, and the item whose looks they are to match."""
    if not items:
        raise ValueError(f"no items of {dataset} to evaluate on")
    if max_side < 1:
        raise ValueError(f"max_side must be at least 1, got {max_side}")
    looks = [_all_looks(item) for item in items]
    per_item: dict[str, Scores] = {}
    for number, item in enumerate(items):
        share = min(1.0, max_side / max(item.width, item.height))
        height, width = size = max(1, round(item.height * share)), max(1, round(item.width * share))
        others = np.concatenate([np.empty((0, 2)), *looks[:number], *looks[number + 1 :]])
        others = scale_points(others, width, height)
        frames = _read(item)
        baseline = Center().predict(frames, size)
        rows = []
        for log_density, truth in predict(item, frames, size):
            fixations, density = _looks(truth, size, frames.pts_seconds)
            rows.append(score_saliency(log_density, fixations, density, [others] * len(frames), baseline))
        per_item[item.clip_id if isinstance(item, GazeClip) else item.image_id] = _mean(rows)
        progress(1)
    every = list(per_item.values())
    return SaliencyEvaluation(
        dataset, split, len(items), name, max_side, _mean(every), _standard_error(every), per_item
    )


def _read(item: GazeItem) -> Frames:
    """What the observers saw; of clips every tenth frame."""
    if isinstance(item, GazeClip):
        return read_frames(item.path, max(1, item.num_frames // FRAMES_BETWEEN))
    with Image.open(item.path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return Frames(pixels[None].contiguous(), torch.zeros(1), str(item.path))


def _looks(item: GazeItem, size: tuple[int, int], pts_seconds: Tensor) -> tuple[list[np.ndarray], Tensor]:
    """Where people looked at each frame, as points and as densities."""
    height, width = size
    if isinstance(item, GazeClip):
        times = pts_seconds.tolist()
        return item.gaze_in(width, height, times), torch.from_numpy(item.density_maps(size, times))
    return [item.fixations_in(width, height)], torch.from_numpy(item.density_map(size)[None])


def _all_looks(item: GazeItem) -> np.ndarray:
    """(n, 2) all that anyone looked at, as shares of the sides."""
    points = item.gaze.reshape(-1, 2) if isinstance(item, GazeClip) else item.fixations
    return points / (item.width, item.height)


def _mean(rows: Sequence[Scores]) -> Scores:
    return {name: float(np.mean(values)) if values else None for name, values in _by_metric(rows).items()}


def _standard_error(rows: Sequence[Scores]) -> Scores:
    return {
        name: float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        for name, values in _by_metric(rows).items()
    }


def _by_metric(rows: Sequence[Scores]) -> dict[str, list[float]]:
    return {name: [value for row in rows if (value := row[name]) is not None] for name in METRICS}
