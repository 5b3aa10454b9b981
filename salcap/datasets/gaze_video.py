"""Short clips with the gaze of the people who watched them: where they look from one moment to the next."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from salcap.datasets.fixations import SIGMA_SHARE, blur_points, scale_points

WINDOW_SECONDS = 0.1  # at 30 frames a second: the frame and its two neighbours
_WIDTH, _HEIGHT, _FPS = 320, 240, 30.0  # of the clips of `load_gaze_clips`


@dataclass(frozen=True, eq=False)
class GazeClip:
    """One clip and its viewers' gaze, frame by frame.

    Attributes:
        width, height: of the clip in pixels.
        fps: frames a second.
        gaze: (viewers, views, frames, 2) float32 (x, y) in pixels of the clip, origin at the top left corner. NaN where
            the tracker saw no eye; looks beyond the clip's edge are in it.
    """

    clip_id: str
    path: Path
    width: float
    height: float
    fps: float
    gaze: np.ndarray

    @property
    def num_frames(self) -> int:
        """Frames for which there is gaze."""
        return int(self.gaze.shape[2])

    def gaze_in(
        self, width: float, height: float, pts_seconds: Iterable[float], window_seconds: float = WINDOW_SECONDS
    ) -> list[np.ndarray]:
        """Where all viewers look around each of some moments, samples of fixations, pursuit and saccades alike.

        Args:
            width, height: of the map in whose pixels the points are given.
            window_seconds: length of the window that has the moment in its middle.

        Returns:
            For each moment (n, 2) float64 (x, y); missing samples and looks beyond the edge are dropped.
        """
        times = np.arange(self.num_frames) / self.fps
        relative = self.gaze.astype(np.float64) / (self.width, self.height)
        near = (np.abs(times - seconds) <= window_seconds / 2 + 1e-9 for seconds in pts_seconds)
        return [scale_points(relative[:, :, frames].reshape(-1, 2), width, height) for frames in near]

    def density_maps(
        self,
        size: tuple[int, int],
        pts_seconds: Iterable[float],
        sigma_share: float = SIGMA_SHARE,
        window_seconds: float = WINDOW_SECONDS,
    ) -> np.ndarray:
        """Blurred gaze around each of some moments: (T, *size) float32, each sums to 1, or is 0 where nobody looked.

        Args:
            size: (height, width) of the maps.
            sigma_share: standard deviation of the Gaussian as a share of the clip's width.
        """
        aspect = self.width / self.height
        points = self.gaze_in(size[1], size[0], pts_seconds, window_seconds)
        return np.stack([blur_points(each, size, sigma_share, aspect) for each in points])

    def halves(self) -> tuple[GazeClip, GazeClip]:
        """The clip as seen by every other viewer, and by those between them.

        Raises:
            ValueError: fewer than two viewers.
        """
        if len(self.gaze) < 2:
            raise ValueError(f"{self.clip_id}: needs two viewers or more to be halved, got {len(self.gaze)}")
        return replace(self, gaze=self.gaze[::2]), replace(self, gaze=self.gaze[1::2])


def load_gaze_clips(root: str | Path) -> list[GazeClip]:
    """Read "causality": ``root/gaze.npz`` and the 20 clips of colliding balls in ``root/clips``.

    Only the viewers are kept whose tracking the authors of the set found good (``~track_loss``, 31 of 40). There is no
    split: the set is for evaluation only.

    Raises:
        FileNotFoundError: no ``gaze.npz``, or a clip is missing.
        ValueError: a file that is no archive of gaze.
    """
    path = Path(root) / "gaze.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{root} holds no gaze.npz; expected it beside a folder clips")
    try:
        with np.load(path) as archive:
            gaze = archive["gaze"][~archive["track_loss"]].astype(np.float32) * np.array((_WIDTH, _HEIGHT), np.float32)
            shapes = list(zip(archive["clip"].tolist(), archive["frames"].tolist(), strict=True))
        by_clip = gaze.swapaxes(0, 1)
        if by_clip.ndim != 5 or len(by_clip) != len(shapes):
            raise ValueError(f"gaze has shape {gaze.shape} for {len(shapes)} clips")
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no archive of gaze: {type(error).__name__}: {error}") from error
    clips = [
        GazeClip(name, Path(root) / "clips" / f"{name}.mp4", _WIDTH, _HEIGHT, _FPS, each[:, :, :frames])
        for (name, frames), each in zip([(f"clip_{n:02d}", frames) for n, frames in shapes], by_clip, strict=True)
    ]
    missing = [clip.clip_id for clip in clips if not clip.path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(clips)} clips are missing in {Path(root) / 'clips'}: {missing[:3]}"
        )
    return clips
