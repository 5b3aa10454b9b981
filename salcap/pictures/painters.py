"""What is painted on the frames of a clip: a backbone's heat map, or the patches that a captioner keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from salcap.evaluation.witness import show
from salcap.frames import Frames
from salcap.pictures.contact_sheet import TILE_SIDE, ContactSheet
from salcap.pictures.painting import DROPPED, KEPT, MERGED, heat, paint_heat, paint_overlay, paint_patches
from salcap.saliency import SaliencyModel
from salcap.saliency_captioner import DEFAULT_NUM_FRAMES, SaliencyCaptioner
from salcap.views import view_size
from salcap.weighting.pooling import WHOLE_FRAME

_PART = 8  # frames of a video that are looked at together

Size = tuple[int, int]
Brush = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 in, painted out


class Painter(Protocol):
    """Looks at frames and says how to paint each.

    Attributes:
        part: frames of a long video that are looked at together.
        context: of them, frames of the part before, which are not painted again.
        read_options: how `read_frames` reads what it looks at.
    """

    part: int
    context: int
    read_options: dict[str, Any]

    def resolve_num_frames(self, num_frames: int | None) -> int:
        """The number of frames asked for, or the default one."""

    def seen_size(self, frame_size: Size) -> Size | None:
        """(height, width) of the frames to look at in a video; None: that of the pictures."""

    def look(self, frames: Frames, size: Size) -> list[Brush]:
        """A brush for each frame's picture of ``size``, (height, width)."""

    def describe(self) -> str:
        """A line for the head of a contact sheet."""

    def add_legend(self, sheet: ContactSheet) -> None:
        """Tell on a contact sheet what the colours mean."""


class HeatPainter(Painter):
    """Paints a backbone's maps, over the frames or alone."""

    part, context = _PART, 1  # backbones that see motion compare a frame with the one before

    def __init__(self, saliency: SaliencyModel, over_frames: bool) -> None:
        self.read_options = {"shortest_side": 2 * TILE_SIDE}
        self._saliency, self._over_frames = saliency.eval(), over_frames

    def resolve_num_frames(self, num_frames: int | None) -> int:
        return DEFAULT_NUM_FRAMES if num_frames is None else num_frames

    def seen_size(self, frame_size: Size) -> Size | None:
        return None

    def look(self, frames: Frames, size: Size) -> list[Brush]:
        densities = self._saliency.predict(frames, size).exp_().cpu().numpy()
        return [partial(self._paint, density) for density in densities]

    def describe(self) -> str:
        return f"Where people look, by {self._saliency.name}"

    def add_legend(self, sheet: ContactSheet) -> None:
        sheet.add_heat_legend()

    def _paint(self, density: np.ndarray, picture: np.ndarray) -> np.ndarray:
        values = heat(density * density.size)
        return paint_overlay(picture, values) if self._over_frames else paint_heat(values)


class PatchPainter(Painter):
    """Paints what a captioner's "prune" leaves of its frames, by asking the captioner itself.

    Raises:
        ValueError: it does not prune, or is shown two views of each frame.
    """

    context = 0

    def __init__(self, captioner: SaliencyCaptioner) -> None:
        weighting = captioner.weighting
        if "prune" not in weighting.modes or captioner.zooms:
            needed = "a mode with 'prune' and without 'zoom' (give keep_ratio)"
            raise ValueError(
                f"show 'patches' needs {needed}, got mode {weighting.mode!r} of {captioner.captioner.name}"
            )
        self._captioner = captioner
        self.read_options = captioner.read_options
        self.part = min(_PART, captioner.captioner.max_frames or _PART)
        self._states = {KEPT}

    def resolve_num_frames(self, num_frames: int | None) -> int:
        return self._captioner.resolve_num_frames(num_frames)

    def seen_size(self, frame_size: Size) -> Size | None:
        if self._captioner.weighting.scope == "clip":
            raise ValueError("patches of a video need a budget for each frame (scope 'frame'), got scope 'clip'")
        return view_size(frame_size, self.read_options, 1.0)

    def look(self, frames: Frames, size: Size) -> list[Brush]:
        patches = show(self._captioner, frames, {"num_frames": len(frames)}).patches
        if patches is None:
            return [np.copy] * len(frames)
        states = np.full(tuple(patches.kept.shape), DROPPED)
        states[patches.merged.numpy()] = MERGED
        states[patches.kept.numpy()] = KEPT
        beyond = () if patches.box == WHOLE_FRAME else (DROPPED,)
        self._states.update(np.unique(states).tolist(), beyond)
        return [partial(paint_patches, states=row, grid=patches.grid, box=patches.box) for row in states]

    def describe(self) -> str:
        weighting = self._captioner.weighting
        setting = (
            f"policy {weighting.policy}, keep_ratio {weighting.keep_ratio:g}, saliency {self._captioner.saliency.name}"
        )
        return f"What {self._captioner.captioner.name} keeps: {setting}"

    def add_legend(self, sheet: ContactSheet) -> None:
        sheet.add_patch_legend(self._states)
