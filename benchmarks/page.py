"""A self-contained HTML page: style, sections, tables; nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks import bars

STYLE = """
:root { --ground: #ffffff; --text: #1b2430; --soft: #5d6b7a; --line: #dfe5ec; --panel: #f6f8fa;
  --c0: #1f6feb; --c1: #d9580d; --c2: #178a50; --c3: #8a3ffc; --c4: #b3123f; --c5: #0b8494; }
@media (prefers-color-scheme: dark) { :root { --ground: #10151c; --text: #e4eaf1; --soft: #93a1b1;
  --line: #2a3441; --panel: #18202a; --c0: #5c9dff; --c1: #ff9a57; --c2: #4fc88a; --c3: #b794ff;
  --c4: #ff7a9c; --c5: #45c4d4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 72px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; line-height: 1.3; margin: 52px 0 8px; padding-top: 20px;
  border-top: 1px solid var(--line); }
p { margin: 8px 0; max-width: 78ch; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 270px), 1fr)); gap: 16px;
  margin: 24px 0; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; }
.card strong { display: block; font-size: 40px; line-height: 1.1; letter-spacing: -0.02em; }
.card p { margin: 8px 0 12px; font-size: 14px; color: var(--soft); }
.card ul { list-style: none; margin: 0; padding: 10px 0 0; border-top: 1px solid var(--line);
  font-size: 14px; }
.card li { display: flex; justify-content: space-between; gap: 12px; font-variant-numeric: tabular-nums; }
.card li > span:first-child { padding-left: 17px; text-indent: -17px; }
.card li > span:last-child { white-space: nowrap; }
dl.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 20px; margin: 14px 0;
  font-size: 14px; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.verdicts { margin: 12px 0; padding-left: 22px; }
.verdicts li { margin: 7px 0; max-width: 88ch; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; margin: 12px 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 16px; margin: 14px 0; }
.charts figure { margin: 0; border: 1px solid var(--line); border-radius: 12px; padding: 12px; }
svg.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--text); font-family: inherit; }
.chart .title { font-size: 15px; font-weight: 600; }
.chart .label, .chart .tick { fill: var(--soft); font-size: 13px; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.chart .whisker { stroke-width: 1.4; }
.chart .dot { stroke: var(--ground); stroke-width: 1.5; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--soft); }
th, td { padding: 7px 9px; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; }
td { text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
td.best { font-weight: 700; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
details { margin: 12px 0; }
summary { cursor: pointer; color: var(--soft); }
code, pre { font: 13px/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 8px 0; }
@media (max-width: 640px) { main { padding: 24px 16px 56px; } h1 { font-size: 24px; }
  td.text { white-space: normal; } dl.facts { grid-template-columns: 1fr; gap: 0; }
  dl.facts dd { margin-bottom: 8px; }
  .chart .label, .chart .tick { font-size: 17px; } .chart .title { font-size: 20px; } }
"""
COLOURS = 6


def page(title: str, body: Sequence[str]) -> str:
    """The whole document."""
    rules = "".join(
        f".line.c{i}, .whisker.c{i} {{ stroke: var(--c{i}); }} .dot.c{i}, .swatch.c{i}, .fill.c{i} "
        f"{{ fill: var(--c{i}); background: var(--c{i}); }}\n"
        for i in range(COLOURS)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{bars.STYLE}{rules}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def charts(figures: Sequence[str]) -> str:
    """Charts side by side, as many as fit."""
    return '<div class="charts">' + "".join(f"<figure>{svg}</figure>" for svg in figures) + "</div>"


@dataclass(slots=True, frozen=True)
class Card:
    """A number that stands out.

    Attributes:
        value: the number, with its unit.
        what: of what it is; HTML.
        lines: whom it belongs to: (name, colour, value).
    """

    value: str
    what: str
    lines: Sequence[tuple[str, int, str]]


def cards(items: Sequence[Card]) -> str:
    """Cards side by side, as many as fit."""
    made = ""
    for item in items:
        lines = "".join(
            f"<li><span>{named(name, colour)}</span><span>{escape(value)}</span></li>"
            for name, colour, value in item.lines
        )
        made += (
            f'<div class="card"><strong>{escape(item.value)}</strong><p>{item.what}</p><ul>{lines}</ul></div>'
        )
    return f'<div class="cards">{made}</div>'


def legend(names: Sequence[str]) -> str:
    """Whose colour is which; colours are given in order."""
    return (
        '<div class="legend">'
        + "".join(f"<span>{named(n, i % COLOURS)}</span>" for i, n in enumerate(names))
        + "</div>"
    )


def facts(items: Sequence[tuple[str, str]]) -> str:
    """Named facts, one a line."""
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in items)
    return '<dl class="facts">' + "".join(lines) + "</dl>"


def verdicts(lines: Sequence[str]) -> str:
    """What the figures say, in words; `lines` are HTML."""
    return '<ul class="verdicts">' + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def named(name: str, colour: int) -> str:
    """A name with its colour before it."""
    return f'<span class="swatch c{colour}"></span>{escape(name)}'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table of HTML cells; the first columns hold text, the others numbers.

    A cell that begins with ``*`` is the best of its kind and stands out.
    """

    def cell(tag: str, column: int, content: str) -> str:
        names = ["text"] if column < text_columns else []
        if content.startswith("*"):
            names.append("best")
            content = content[1:]
        return f'<{tag} class="{" ".join(names)}">{content}</{tag}>'

    lines = ["<tr>" + "".join(cell("th", i, name) for i, name in enumerate(head)) + "</tr>"]
    lines += [
        "<tr>" + "".join(cell("td", i, content) for i, content in enumerate(row)) + "</tr>" for row in rows
    ]
    return '<div class="scroll" tabindex="0"><table>' + "".join(lines) + "</table></div>"


def details(summary: str, content: str) -> str:
    """Text that is folded away; `content` is shown as it is."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(content)}</pre></details>"
