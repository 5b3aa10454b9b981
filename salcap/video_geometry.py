"""In which proportions and which way up a decoded frame is shown."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType

# Pixels that are stated to be so many times as wide as high, or as high as wide, are taken for square
NONSENSE_ASPECT = 10
# and those that differ by less: encoders round, and to scale by so little would only blur
LEAST_ASPECT = Fraction(101, 100)

Size = tuple[int, int]  # height, width


def square_size(frame: av.VideoFrame, aspect: Fraction) -> tuple[Size, list[str]]:
    """The size of a frame that is upright and whose pixels are square, and what there is to warn of.

    The height of the upright frame is kept.

    Args:
        aspect: width of a stored pixel over its height.
    """
    notes, unlike = [], max(aspect, 1 / aspect)
    if unlike > NONSENSE_ASPECT:
        notes.append(
            f"its pixels are stated to be {float(aspect):.4g} times as wide as high: they are taken for square"
        )
    if not LEAST_ASPECT <= unlike <= NONSENSE_ASPECT:
        aspect = Fraction(1)
    if orientation(frame)[0]:
        return (frame.height, max(1, round(frame.width * aspect))), notes
    return (frame.width, max(1, round(frame.height / aspect))), notes


def scaled_size(shown: Size, size: Size | None, shortest_side: int | None) -> Size:
    """The size to hand frames out in that are shown in another.

    Args:
        size, shortest_side: as for `salcap.video.read_frames`.

    Raises:
        ValueError: both are given, or one is below 1.
    """
    if size is not None and shortest_side is not None:
        raise ValueError(f"give size or shortest_side, not both, got {size} and {shortest_side}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size must be (height, width), each at least 1 pixel, got {size}")
    if shortest_side is not None and shortest_side < 1:
        raise ValueError(f"shortest_side must be at least 1 pixel, got {shortest_side}")
    height, width = shown
    if shortest_side is not None and shortest_side < min(height, width):
        share = Fraction(shortest_side, min(height, width))
        size = (max(1, round(height * share)), max(1, round(width * share)))
    return size or shown


def orientation(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Signs a, b, c, d of the display matrix: a pixel at (x, y), y downwards, is shown at (a x + c y, b x + d y)."""
    try:
        # `frame.side_data` would keep what it returns, which keeps the frame: garbage until Python looks for cycles
        side_data: Any = SideDataContainer(frame)  # type: ignore[call-arg]  # PyAV's stubs leave it out
        matrix = np.frombuffer(bytes(side_data[SideDataType.DISPLAYMATRIX]), np.int32)[[0, 1, 3, 4]]
    except KeyError:
        return 1, 0, 0, 1
    except ValueError:  # PyAV lists no side data at all if one has a type it does not know, such as Exif
        angle = math.radians(-frame.rotation)
        matrix = np.array([math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)])
    a, b, c, d = (int(sign) for sign in np.sign(matrix))
    if abs(matrix[1]) > abs(matrix[0]):
        return 0, b, c or -b, 0
    return a or 1, 0, 0, d or 1
