"""A little SVG: shapes, text and charts that follow the reader's light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Say = Callable[[str, str], str]
"""(English, Chinese) → the one of the two that is drawn."""

Words = tuple[str, str]
"""What `Say` takes."""

STYLE = """
svg { --ink: #1f2328; --faint: #8b949e; --grid: #d8dee4; --a: #0969da; --b: #bc4c00; --c: #1a7f37;
      --d: #8250df; --waste: #eaeef2; background: #ffffff }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --faint: #8b949e; --grid: #30363d; --a: #58a6ff; --b: #f0883e; --c: #3fb950;
        --d: #bc8cff; --waste: #21262d; background: #0d1117 } }
text { font: 13px system-ui, -apple-system, "Noto Sans CJK SC", "PingFang SC", sans-serif; fill: var(--ink) }
.small { font-size: 11px } .faint { fill: var(--faint) } .bold { font-weight: 600 }
.a { fill: var(--a) } .b { fill: var(--b) } .c { fill: var(--c) } .d { fill: var(--d) }
.waste { fill: var(--waste) }
.box { fill: none; stroke: var(--faint) } .grid { stroke: var(--grid); stroke-width: 1 }
.pale { fill-opacity: .35 } .on { fill: #ffffff }
polyline, .line { fill: none; stroke-width: 2 } .dash { stroke-dasharray: 5 4 }
.sa { stroke: var(--a) } .sb { stroke: var(--b) } .sc { stroke: var(--c) } .sd { stroke: var(--d) }
.sf { stroke: var(--faint) }
""".strip()


class Svg:
    """A drawing; sizes are in pixels, and screen readers read `label`."""

    def __init__(self, width: int, height: int, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self.parts.append(f'<text {place} class="{kind}">{escape(text)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect {size} rx="2" class="{kind}"/>')

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{joined}" class="{kind}"/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 4) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}"/>')

    def __str__(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img"'
        title = f"<title>{escape(self.label)}</title>"
        return "\n".join([f"{head}>", title, f"<style>{STYLE}</style>", *self.parts, "</svg>\n"])


class Chart:
    """Axes on a drawing, linear or logarithmic.

    Args:
        svg: gets them.
        x, y: (least, greatest) of each axis.
        log: which axes are logarithmic: "", "x", "y" or "xy".
    """

    LEFT, RIGHT, TOP, BOTTOM = 62, 20, 34, 46

    def __init__(
        self, svg: Svg, x: tuple[float, float], y: tuple[float, float], names: tuple[str, str], log: str = ""
    ) -> None:
        self.svg, self.log, self.ranges = svg, log, {"x": x, "y": y}
        right, bottom = svg.width - self.RIGHT, svg.height - self.BOTTOM
        for value in self._ticks("x"):
            at = self.place(value, y[0])[0]
            svg.line([(at, self.TOP), (at, bottom)], "grid")
            svg.text(at, bottom + 16, _number(value), "small faint", "middle")
        for value in self._ticks("y"):
            at = self.place(x[0], value)[1]
            svg.line([(self.LEFT, at), (right, at)], "grid")
            svg.text(self.LEFT - 6, at + 4, _number(value), "small faint", "end")
        svg.text((self.LEFT + right) / 2, svg.height - 10, names[0], "small", "middle")
        svg.text(8, 20, names[1], "small")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        width = self.svg.width - self.LEFT - self.RIGHT
        height = self.svg.height - self.TOP - self.BOTTOM
        return self.LEFT + width * self._share("x", x), self.TOP + height * (1 - self._share("y", y))

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        self.svg.line([self.place(*point) for point in points], kind)

    def label(self, x: float, y: float, text: str, kind: str) -> None:
        """A small text that begins at a point."""
        self.svg.text(*self.place(x, y), text, f"small {kind}")

    def _share(self, axis: str, value: float) -> float:
        low, high = self.ranges[axis]
        if axis in self.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def _ticks(self, axis: str) -> list[float]:
        low, high = self.ranges[axis]
        if axis in self.log:
            powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
            return [10.0**power for power in powers]
        magnitude = 10 ** math.floor(math.log10((high - low) / 4))
        step = next(s * magnitude for s in (1, 2, 5, 10) if s * magnitude >= (high - low) / 5)
        return [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]


def chart_of(
    say: Say,
    title: Words,
    across: tuple[Words, float, float],
    up: tuple[Words, float, float],
    log: str = "",
    height: int = 330,
) -> Chart:
    """Axes on a drawing of their own, each with its (name, least, greatest)."""
    svg = Svg(640, height, say(*title))
    (x, *xs), (y, *ys) = across, up
    return Chart(svg, (xs[0], xs[1]), (ys[0], ys[1]), (say(*x), say(*y)), log)


def _number(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000:
            return f"{value:g}{unit}"
        value /= 1000
    return f"{value:g}P"
