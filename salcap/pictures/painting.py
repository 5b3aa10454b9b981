"""Maps and kept patches painted on frames: uint8 RGB arrays in, uint8 RGB arrays out."""

from __future__ import annotations

import numpy as np

from salcap.weighting.pooling import Box, Grid

# "inferno" by Nathaniel Smith and Stefan van der Walt (matplotlib's _cm_listed.py, CC0), every 17th of its 256 colours;
# those between are interpolated, at most 6 of 255 off. Equal steps look equally far apart, in grey as well.
_ANCHORS = bytes.fromhex(
    "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c c73e4c dd513a ed6925 f8850f fca50a fac62d f2e661 fcffa4"
)
COLOURS = np.stack(
    [
        np.interp(np.arange(256), np.arange(0, 256, 17), list(_ANCHORS[channel::3])).round().astype(np.uint8)
        for channel in range(3)
    ],
    1,
)

HOTTEST = 16.0  # times the average: the top of the colours
_VEIL, _COVER = 0.25, 0.65  # share of the colour over a frame where nobody looks, and where it is hottest

DROPPED, MERGED, KEPT = range(3)
_DARK = 0.2  # what is left of a dropped patch's light
_FAINT = 0.55  # of a merged one's, whose colour goes too
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def heat(times_average: np.ndarray) -> np.ndarray:
    """Where on the scale of colours, 0..1, what is looked at so many times as much as the average spot has its place.

    Logarithmic, ln(1 + times) / ln(1 + `HOTTEST`), cut off at 1: few spots get many times what the others do.
    """
    place: np.ndarray = np.minimum(np.log1p(times_average) / np.log1p(HOTTEST), 1.0)
    return place


def paint_heat(values: np.ndarray) -> np.ndarray:
    """The heat map alone: (H, W) in 0..1 to (H, W, 3)."""
    painted: np.ndarray = COLOURS[(values * 255).round().astype(np.uint8)]
    return painted


def paint_overlay(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The heat map (H, W) in 0..1 over a grey (H, W, 3) frame, the less transparent the hotter."""
    cover = (_VEIL + (_COVER - _VEIL) * values)[..., None].astype(np.float32)
    grey = (picture @ _LUMA)[..., None]
    return _to_bytes((1 - cover) * grey + cover * paint_heat(values))


def paint_patches(picture: np.ndarray, states: np.ndarray, grid: Grid, box: Box) -> np.ndarray:
    """Kept patches as they are, those merged into coarse tokens grey, and dropped ones dark, like all beyond the box.

    Args:
        picture: (H, W, 3).
        states: (N,) of DROPPED, MERGED, KEPT, in raster order.
        grid: (gh, gw) patches in the box, N in all.
        box: (left, top, right, bottom) in fractions of the frame.
    """
    left, top, right, bottom = box
    beyond = np.pad(states.reshape(grid), 1, constant_values=DROPPED)  # cell -1 and cell gh are outside
    rows = _cells(picture.shape[0], grid[0], top, bottom)
    columns = _cells(picture.shape[1], grid[1], left, right)
    state = beyond[np.ix_(rows + 1, columns + 1)][..., None]
    grey = (picture @ _LUMA)[..., None]
    return _to_bytes(np.where(state == KEPT, picture, np.where(state == MERGED, _FAINT * grey, _DARK * picture)))


def _cells(length: int, cells: int, start: float, stop: float) -> np.ndarray:
    """(length,) the cell that each pixel's middle lies in, -1 before the first and ``cells`` after the last."""
    middles = (np.arange(length) + 0.5) / length
    return np.floor((middles - start) / (stop - start) * cells).clip(-1, cells).astype(int)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return values.round().astype(np.uint8)
