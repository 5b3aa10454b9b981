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
_STATES = {KEPT: "kept", MERGED: "merged into coarse tokens", DROPPED: "dropped, or not seen"}


class ContactSheet:
    """Lays out tiles of one size, left to right and top to bottom.

    Args:
        pictures: (H, W, 3) uint8 each.
        times: seconds at which each is shown.
        heading: in as many lines as it needs.
    """

    def __init__(self, pictures: Sequence[np.ndarray], times: Sequence[float], heading: str) -> None:
        height, width = pictures[0].shape[:2]
        columns = min(len(pictures), _LANDSCAPE_COLUMNS if width >= height else _PORTRAIT_COLUMNS)
        rows = -(-len(pictures) // columns)
        inner = max(columns * (width + _MARGIN) - _MARGIN, _BAR_WIDTH + 2 * _MARGIN)
        row_height = height + _LINE + _ROW_GAP
        self._font = ImageFont.load_default(15)
        lines = self._wrap(heading, inner)
        first_top = _MARGIN + len(lines) * _LINE
        self._legend_top = first_top + rows * row_height + 4
        self._extend(Image.new("RGB", (inner + 2 * _MARGIN, 0)), self._legend_top)
        self._lines((_MARGIN, _MARGIN), lines)
        for number, (picture, seconds) in enumerate(zip(pictures, times, strict=True)):
            row, column = divmod(number, columns)
            left, top = _MARGIN + column * (width + _MARGIN), first_top + row * row_height
            self.image.paste(Image.fromarray(picture), (left, top))
            self._text((left, top + height + 3), clock(seconds, ".").removeprefix("00:"))

    def add_heat_legend(self) -> None:
        """A bar of the colours, with what they stand for."""
        left, top = 2 * _MARGIN, self._legend_top
        words = "times as much looked at as the average spot"
        place, lines = (left + _BAR_WIDTH + _MARGIN, top - 1), [words]
        bottom = top + _SWATCH + _LINE
        if place[0] + self._font.getlength(words) > self.image.width - _MARGIN:
            place, lines = (_MARGIN, bottom), self._wrap(words, self.image.width - 2 * _MARGIN)
            bottom += len(lines) * _LINE
        self._extend(self.image, bottom + _MARGIN - 4)
        self._lines(place, lines)
        bar = np.broadcast_to(COLOURS[:, None], (256, _SWATCH, 3)).swapaxes(0, 1)
        self.image.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, top))
        for times in (0, 1, 2, 4, 8, HOTTEST):
            x = left + float(heat(np.array(times))) * (_BAR_WIDTH - 1)
            self._pen.line((x, top + _SWATCH, x, top + _SWATCH + 4), _INK)
            self._text((x, top + _SWATCH + 5), f"{times:g}{'+' if times == HOTTEST else ''}", "ma")

    def add_patch_legend(self, states: Collection[int]) -> None:
        """How patches of such states look: KEPT, MERGED, DROPPED."""
        left, top = _MARGIN, self._legend_top
        self._extend(self.image, top + _SWATCH + _MARGIN)
        stripes = np.tile(COLOURS[[60, 150, 210]].repeat(6, 0)[:_SWATCH], (_SWATCH, 1, 1))
        for state, name in _STATES.items():
            if state not in states:
                continue
            right = left + _SWATCH + 6 + self._font.getlength(name)
            if left > _MARGIN and right > self.image.width - _MARGIN:
                right, left, top = right - left + _MARGIN, _MARGIN, top + _LINE
                self._extend(self.image, top + _SWATCH + _MARGIN)
            swatch = paint_patches(stripes, np.array([state]), (1, 1), WHOLE_FRAME)
            self.image.paste(Image.fromarray(swatch), (left, top))
            self._text((left + _SWATCH + 6, top - 1), name)
            left = round(right + 2 * _MARGIN)

    def _text(self, place: tuple[float, float], words: str, anchor: str = "la") -> None:
        self._pen.text(place, words, _INK, self._font, anchor)

    def _lines(self, place: tuple[float, float], lines: Sequence[str]) -> None:
        for number, line in enumerate(lines):
            self._text((place[0], place[1] + number * _LINE), line)

    def _wrap(self, words: str, width: int) -> list[str]:
        """Lines that fit in ``width``; a word that is longer goes on in the next one."""
        lines = [""]
        for word in words.split():
            joined = f"{lines[-1]} {word}".lstrip()
            if self._font.getlength(joined) <= width:
                lines[-1] = joined
                continue
            lines += [""] if lines[-1] else []
            for letter in word:
                if self._font.getlength(lines[-1] + letter) > width:
                    lines.append("")
                lines[-1] += letter
        return lines

    def _extend(self, image: Image.Image, height: int) -> None:
        """Go on with an image on paper of another height."""
        self.image = Image.new("RGB", (image.width, height), _PAPER)
        self.image.paste(image, (0, 0))
        self._pen = ImageDraw.Draw(self.image)
