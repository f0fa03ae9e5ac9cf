"""Line charts as SVG, to be put into a page as they are.

Colours and fonts come from the page's style (`benchmarks.page`), so that a chart follows its dark
mode; hovering a point shows its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 74, 30, 40, 54

Point = tuple[float, float]


@dataclass(slots=True)
class Series:
    """One line: points in order of x, with a note for each where hovering shall tell more."""

    name: str
    points: Sequence[Point]
    colour: int
    """Number of its colour in the page's palette, so that a name has the same one everywhere."""
    markers: bool = True
    notes: Sequence[str] = field(default_factory=list)
    ranges: Sequence[Point | None] = field(default_factory=list)
    """For each point, from where to where its y may lie; None: not known."""


@dataclass(slots=True, frozen=True)
class Axis:
    """What an axis shows; `low` and `high` widen its range."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None


class _Scale:
    """From values to pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self.log = axis.log
        values = [value for value in values if value > 0] if axis.log else list(values)
        given = [bound for bound in (axis.low, axis.high) if bound is not None]
        low, high = min([*values, *given], default=0.1), max([*values, *given], default=1.0)
        if not axis.log:
            low = min(low, 0.0) if axis.low is None else low
        if high <= low:
            high = low * 2 if low > 0 else low + 1.0
        self.ticks = _log_ticks(low, high) if axis.log else linear_ticks(low, high)
        self._low, self._high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        low, high = self._low, self._high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self._start + (value - low) / (high - low) * (self._end - self._start)


def linear_ticks(low: float, high: float) -> list[float]:
    """About five round numbers that cover the range."""
    rough = (high - low) / 5
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(nice * magnitude for nice in (1, 2, 2.5, 5, 10) if nice * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that cover the range; powers alone where that is many."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    powers = [10.0**i for i in range(first, max(last, first + 1) + 1)]
    ticks = [nice * power for power in powers for nice in (1, 2, 5)] if len(powers) <= 3 else powers
    above = [tick for tick in ticks if tick >= high * 0.999]
    below = [tick for tick in ticks if tick <= low * 1.001]
    return [tick for tick in ticks if max(below) <= tick <= min(above)]


def number(value: float) -> str:
    """A number as short as can be read: three digits, thousands with a comma."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """The chart as an SVG element."""
    points = [point for line in series for point in line.points]
    ends = [end for line in series for pair in line.ranges if pair is not None for end in pair]
    scale_x = _Scale(x, [px for px, _ in points], LEFT, WIDTH - RIGHT)
    scale_y = _Scale(y, [*(py for _, py in points), *ends], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>',
        *_grid(scale_x, scale_y),
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" '
        f'text-anchor="middle">{escape(x.label)}</text>',
        f'<text class="label" transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.label)}</text>',
    ]
    for line in series:
        parts += _line(line, scale_x, scale_y)
    return "".join(parts) + "</svg>"


def _grid(scale_x: _Scale, scale_y: _Scale) -> list[str]:
    parts = []
    bottom = HEIGHT - BOTTOM
    for tick in scale_x.ticks:
        at = f"{scale_x(tick):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at}" y="{bottom + 18}" text-anchor="middle">{number(tick)}</text>'
        )
    for tick in scale_y.ticks:
        at = f"{scale_y(tick):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at}" dy="0.35em" text-anchor="end">{number(tick)}</text>'
        )
    return parts


def _line(line: Series, scale_x: _Scale, scale_y: _Scale) -> list[str]:
    places = [(scale_x(px), scale_y(py)) for px, py in line.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
    parts = [f'<polyline class="line c{line.colour}" points="{path}"/>']
    for (px, _), pair in zip(places, line.ranges, strict=False):
        if pair is not None:
            parts += _whisker(line.colour, px, scale_y(pair[0]), scale_y(pair[1]))
    if line.markers:
        for i, (px, py) in enumerate(places):
            value_x, value_y = line.points[i]
            told = line.notes[i] if i < len(line.notes) else f"{number(value_x)}, {number(value_y)}"
            parts.append(
                f'<circle class="dot c{line.colour}" cx="{px:.1f}" cy="{py:.1f}" r="4">'
                f"<title>{escape(line.name)}: {escape(told)}</title></circle>"
            )
    return parts


def _whisker(colour: int, x: float, low: float, high: float) -> list[str]:
    """An upright line from `low` to `high` with a cap at each end."""
    ends = [(x, low, x, high), (x - 4, low, x + 4, low), (x - 4, high, x + 4, high)]
    return [
        f'<line class="whisker c{colour}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        for x1, y1, x2, y2 in ends
    ]


def cumulative(values: Sequence[float], points: int = 100) -> list[Point]:
    """Points of the cumulative distribution: (value, share in percent that is at most it)."""
    ordered = sorted(values)
    if not ordered:
        return []
    last = len(ordered) - 1
    ranks = sorted({round(i * last / max(points - 1, 1)) for i in range(points)})
    return [(ordered[rank], 100 * (rank + 1) / len(ordered)) for rank in ranks]
