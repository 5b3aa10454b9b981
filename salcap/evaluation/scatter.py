"""A scatter plot as inline SVG, each point with a label beside it that gets out of the others' way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 10, 42  # margins around the axes
_LETTER, _LINE = 5.9, 12  # width and height that a letter of a label takes
_RADIUS = 5
_FAR = 5  # from which ratio of the greatest x to the least on the axis is logarithmic
_ROUNDS = 4  # of labels that make room for each other
_MARKS = (
    '<circle r="5"/>',
    '<path d="M-4.5-4.5h9v9h-9z"/>',
    '<path d="M0-6L5.8 4.5H-5.8z"/>',
    '<path d="M0-6.3L6.3 0L0 6.3L-6.3 0z"/>',
    '<path d="M0 6L5.8-4.5H-5.8z"/>',
    '<path d="M-1.8-6h3.6v4.2H6v3.6H1.8V6h-3.6V1.8H-6v-3.6h4.2z"/>',
)
_COLOURS = ("#6f7680", "#0077bb", "#d55e00", "#009e73", "#c4589a", "#a67c00", "#33a3dc", "#8a63d2")  # grey for None

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """One point; ``mark`` and ``colour`` count from 0, and start again behind the last."""

    x: float
    y: float
    label: str
    mark: int
    colour: int


def key(mark: int | None = None, colour: int = 0) -> str:
    """What stands for a mark or a colour in a legend; a disc where only the colour matters."""
    shape = _MARKS[0 if mark is None else mark % len(_MARKS)]
    return f'<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{_coloured(shape, colour)}</svg>'


def scatter(points: Sequence[Point], x_name: str, y_name: str, description: str) -> str:
    """The plot of one point or more; where the greatest x is far above the least, its axis is logarithmic.

    Args:
        x_name, y_name: what the axes are called.
        description: for those who do not see it.
    """
    values = [point.x for point in points]
    logarithmic = max(values) > _FAR * min(values) > 0
    x_ticks, y_ticks = (_log_ticks if logarithmic else _ticks)(values), _ticks([p.y for p in points])
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    scale = math.log if logarithmic else float

    def across(x: float) -> float:
        first, last = scale(x_ticks[0]), scale(x_ticks[-1])
        return _LEFT + (scale(x) - first) / (last - first) * (right - _LEFT)

    def up(y: float) -> float:
        return bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - _TOP)

    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">']
    for x in x_ticks:
        parts.append(f'<path class="grid" d="M{across(x):.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{across(x):.1f}" y="{bottom + 15}" text-anchor="middle">{x:g}</text>')
    for y in y_ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {up(y):.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    title = x_name + ", logarithmic" * logarithmic
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(title)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>')
    places = [(across(point.x), up(point.y)) for point in points]
    boxes = place_labels(places, [point.label for point in points], (_LEFT, _TOP, right, bottom))
    for point, (x, y), box in zip(points, places, boxes, strict=True):
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if math.dist(near, (x, y)) > 2 * _RADIUS:
            parts.append(f'<path class="leader" d="M{x:.1f} {y:.1f}L{near[0]:.1f} {near[1]:.1f}"/>')
        mark = _coloured(_MARKS[point.mark % len(_MARKS)], point.colour)
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{mark}</g>')
        parts.append(f'<text class="label" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(point.label)}</text>')
    return "".join((*parts, "</svg>"))


def place_labels(places: Sequence[tuple[float, float]], labels: Sequence[str], frame: Rectangle) -> list[Rectangle]:
    """A box for each label, near its point, where it covers least of the marks, of other labels and of the frame.

    Each label in turn takes the best of some dozen places given where the others are, a few times over.
    """
    marks = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in places]
    candidates = [_around(place, _LETTER * len(label)) for place, label in zip(places, labels, strict=True)]
    boxes = [options[0] for options in candidates]

    def cost(index: int, option: int) -> float:
        box = candidates[index][option]
        others = [other for i, other in enumerate(boxes) if i != index]
        width, height = box[2] - box[0], box[3] - box[1]
        outside = width * height - _overlap(box, frame)
        return option / 10 + 4 * outside + sum(_overlap(box, other) for other in (*marks, *others))

    for _ in range(_ROUNDS):
        for index, options in enumerate(candidates):
            boxes[index] = options[min(range(len(options)), key=lambda option: cost(index, option))]
    return boxes


def _around(place: tuple[float, float], width: float) -> list[Rectangle]:
    """Boxes around a point, the preferred ones first: beside, above, below, then further and further away."""
    x, y = place
    options = []
    for gap in (_RADIUS + 3, 16, 28, 42, 58, 76):
        right, left, middle = x + gap, x - gap - width, x - width / 2
        level, above, below = y - _LINE / 2, y - gap - _LINE, y + gap
        corners = [(right, level), (left, level), (middle, above), (middle, below)]
        corners += [(right, above), (right, below), (left, above), (left, below)]
        options += [(a, b, a + width, b + _LINE) for a, b in corners]
    return options


def _overlap(a: Rectangle, b: Rectangle) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers from below the least of the values to above the greatest, about five steps apart."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * size else size or 1.0  # what differs by less is the same
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough)
    first, last = math.floor((low - span / 20) / step), math.ceil((high + span / 20) / step)
    first = max(first, 0) if low >= 0 else first
    return [_rounded(step * number) for number in range(first, last + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, 20, ...: from below the least of the values to above the greatest."""
    powers = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 1)
    ticks = [_rounded(10.0**power * unit) for power in powers for unit in (1, 2, 5)]
    first = max(number for number, tick in enumerate(ticks) if tick < min(values))
    last = min(number for number, tick in enumerate(ticks) if tick > max(values))
    return ticks[first : last + 1]


def _rounded(value: float) -> float:
    return float(f"{value:.12g}")


def _coloured(shape: str, colour: int) -> str:
    fill = _COLOURS[colour] if colour < len(_COLOURS) else f"hsl({47 * colour % 360} 55% 50%)"
    return shape.replace("/>", f' fill="{fill}"/>')
