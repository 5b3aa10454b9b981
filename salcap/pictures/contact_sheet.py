"""A contact sheet: some frames of a video side by side with their times, a heading, and a legend of the colours."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from salcap.outputs import clock
from salcap.pictures.painting import COLOURS, DROPPED, HOTTEST, KEPT, MERGED, heat, paint_patches
from salcap.weighting.pooling import WHOLE_FRAME

TILE_SIDE = 200  # pixels of a tile's shorter side, or of its frames where they are smaller
_LANDSCAPE_COLUMNS, _PORTRAIT_COLUMNS = 4, 6
_MARGIN, _LINE, _ROW_GAP = 12, 26, 6  # pixels; a line of text is so high
_PAPER, _INK = (250, 250, 250), (32, 32, 32)
_BAR_WIDTH = 256
_SWATCH = 16
_ELLIPSIS = "..."
_STATES = {KEPT: "kept", MERGED: "merged into coarse tokens", DROPPED: "dropped, or not seen"}


class ContactSheet:
    """Lays out tiles of one size, left to right and top to bottom.

    Args:
        pictures: (H, W, 3) uint8 each.
        times: seconds at which each is shown.
        heading: cut off where the sheet is narrower.
    """

    def __init__(self, pictures: Sequence[np.ndarray], times: Sequence[float], heading: str) -> None:
        height, width = pictures[0].shape[:2]
        columns = min(len(pictures), _LANDSCAPE_COLUMNS if width >= height else _PORTRAIT_COLUMNS)
        rows = -(-len(pictures) // columns)
        inner = max(columns * (width + _MARGIN) - _MARGIN, _BAR_WIDTH + 2 * _MARGIN)
        row_height = height + _LINE + _ROW_GAP
        size = inner + 2 * _MARGIN, rows * row_height + 2 * _LINE + _SWATCH + 2 * _MARGIN
        self.image = Image.new("RGB", size, _PAPER)
        self._pen = ImageDraw.Draw(self.image)
        self._font = ImageFont.load_default(15)
        self._text((_MARGIN, _MARGIN), self._cut(heading, inner))
        for number, (picture, seconds) in enumerate(zip(pictures, times, strict=True)):
            row, column = divmod(number, columns)
            left, top = _MARGIN + column * (width + _MARGIN), _MARGIN + _LINE + row * row_height
            self.image.paste(Image.fromarray(picture), (left, top))
            self._text((left, top + height + 3), clock(seconds, ".").removeprefix("00:"))
        self._legend_top = _MARGIN + _LINE + rows * row_height + 4

    def add_heat_legend(self) -> None:
        """A bar of the colours, with what they stand for."""
        left, top = 2 * _MARGIN, self._legend_top
        bar = np.broadcast_to(COLOURS[:, None], (256, _SWATCH, 3)).swapaxes(0, 1)
        self.image.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, top))
        for times in (0, 1, 2, 4, 8, HOTTEST):
            x = left + float(heat(np.array(times))) * (_BAR_WIDTH - 1)
            self._pen.line((x, top + _SWATCH, x, top + _SWATCH + 4), _INK)
            self._text((x, top + _SWATCH + 5), f"{times:g}{'+' if times == HOTTEST else ''}", "ma")
        self._text((left + _BAR_WIDTH + _MARGIN, top - 1), "times as much looked at as the average spot")

    def add_patch_legend(self, states: Collection[int]) -> None:
        """How patches of such states look: KEPT, MERGED, DROPPED."""
        left, top = _MARGIN, self._legend_top
        stripes = np.tile(COLOURS[[60, 150, 210]].repeat(6, 0)[:_SWATCH], (_SWATCH, 1, 1))
        for state, name in _STATES.items():
            if state not in states:
                continue
            swatch = paint_patches(stripes, np.array([state]), (1, 1), WHOLE_FRAME)
            self.image.paste(Image.fromarray(swatch), (left, top))
            self._text((left + _SWATCH + 6, top - 1), name)
            left += round(_SWATCH + 6 + self._font.getlength(name) + 2 * _MARGIN)
        self.image = self.image.crop((0, 0, self.image.width, top + _SWATCH + _MARGIN))

    def _text(self, place: tuple[float, float], words: str, anchor: str = "la") -> None:
        self._pen.text(place, words, _INK, self._font, anchor)

    def _cut(self, words: str, width: int) -> str:
        if self._font.getlength(words) <= width:
            return words
        while words and self._font.getlength(words + _ELLIPSIS) > width:
            words = words[:-1]
        return words + _ELLIPSIS
