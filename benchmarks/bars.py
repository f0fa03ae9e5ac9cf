"""Bars with intervals as HTML, which stays readable on a phone where a scaled picture would not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.charts import linear_ticks, number

STYLE = """
.bars { margin: 18px 0; }
.bars figcaption { font-size: 14px; font-weight: 600; margin: 0 0 10px; }
.bars .group { display: grid; grid-template-columns: 150px minmax(0, 1fr); gap: 4px 14px; align-items: center;
  padding: 9px 0; border-top: 1px solid var(--line); }
.bars .group > span { font-weight: 600; font-size: 14px; overflow-wrap: anywhere; }
.bars .bar { display: grid; grid-template-columns: minmax(0, 1fr) 8.5em; gap: 10px; align-items: center;
  font-size: 13px; font-variant-numeric: tabular-nums; }
.bars .track { position: relative; height: 15px; border-left: 1px solid var(--soft); background:
  repeating-linear-gradient(to right, transparent 0 calc(var(--tick) - 1px), var(--line) 0 var(--tick)); }
.bars .fill { position: absolute; inset: 1px auto 1px 0; border-radius: 0 3px 3px 0; }
.bars .range { position: absolute; top: 3px; bottom: 3px; border: solid var(--text); border-width: 0 1.5px; }
.bars .range::after { content: ""; position: absolute; left: 0; right: 0; top: calc(50% - 0.75px);
  border-top: 1.5px solid var(--text); }
.bars .scale { position: relative; height: 18px; margin: 0 calc(8.5em + 10px) 0 164px; font-size: 12px;
  color: var(--soft); }
.bars .scale span { position: absolute; transform: translateX(-50%); }
@media (max-width: 640px) { .bars .group { grid-template-columns: 1fr; }
  .bars .scale { margin-left: 0; } .bars .scale span:first-child { transform: none; } }
"""


@dataclass(slots=True, frozen=True)
class Bar:
    """One value, with from where to where it may lie; `text` is what stands beside it."""

    name: str
    colour: int
    value: float
    range: tuple[float, float] | None
    text: str


@dataclass(slots=True, frozen=True)
class Group:
    """Bars that belong together."""

    name: str
    bars: Sequence[Bar]


def bar_chart(title: str, groups: Sequence[Group]) -> str:
    """All groups on one scale that begins at 0."""
    bars = [bar for group in groups for bar in group.bars]
    high = max([*(bar.value for bar in bars), *(bar.range[1] for bar in bars if bar.range)], default=0.0)
    ticks = linear_ticks(0.0, high or 1.0)
    top = ticks[-1]
    rows = "".join(
        f'<div class="group"><span>{escape(group.name)}</span><div>'
        + "".join(_bar(bar, top) for bar in group.bars)
        + "</div></div>"
        for group in groups
    )
    labels = "".join(f'<span style="left:{100 * tick / top:.2f}%">{number(tick)}</span>' for tick in ticks)
    step = 100 / (len(ticks) - 1)
    return (
        f'<figure class="bars" style="--tick:{step:.3f}%"><figcaption>{escape(title)}</figcaption>{rows}'
        f'<div class="scale">{labels}</div></figure>'
    )


def _bar(bar: Bar, top: float) -> str:
    drawn = f'<div class="fill c{bar.colour}" style="width:{100 * bar.value / top:.2f}%"></div>'
    if bar.range is not None:
        low, high = (min(max(end, 0.0), top) for end in bar.range)
        left, width = 100 * low / top, 100 * (high - low) / top
        drawn += f'<div class="range" style="left:{left:.2f}%;width:{width:.2f}%"></div>'
    return (
        f'<div class="bar" title="{escape(bar.name)}: {escape(bar.text)}"><div class="track">{drawn}</div>'
        f"<span>{escape(bar.text)}</span></div>"
    )
