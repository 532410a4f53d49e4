"""Charts of docs/scale.md as SVG files that stand alone: numbers in, markup out.

The charts of `cit report` take their colours from its page and have linear axes; these files are
opened by themselves, so each carries its colours, for a light and a dark page, and a background.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 84, 160, 44, 52
NUM_COLOURS = 8
_LIGHT = ("#1f6fb4", "#c2570c", "#2e7d32", "#8e3b9e", "#b3261e", "#00767c", "#7a6a00", "#59636e")
_DARK = ("#6cb6ff", "#f0a35e", "#7ee08a", "#d8a4e8", "#ff938a", "#5fd3d9", "#d9c65b", "#a8b3bf")


@dataclass(frozen=True)
class Line:
    """One line; `marks` names the shape of each point: circle, square or triangle."""

    name: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[str]


@dataclass(frozen=True)
class Bar:
    """One bar: the length of each part, and what stands behind it."""

    name: str
    parts: Mapping[str, float]
    note: str


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic scale from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """The pixel of a data value, to a tenth."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    x_ticks: Mapping[float, str],
    y_ticks: Mapping[float, str],
    marks: Mapping[str, str],
) -> str:
    """Lines on two logarithmic axes, each named at its right end.

    Args:
        lines: At most `NUM_COLOURS`.
        title: What the chart shows.
        x_label: Under the x axis.
        x_ticks: Positions and texts; the first and last bound the axis.
        y_ticks: The same of the y axis.
        marks: What each shape of a point means.
    """
    x_axis = LogAxis(min(x_ticks), max(x_ticks), LEFT, WIDTH - RIGHT)
    y_axis = LogAxis(min(y_ticks), max(y_ticks), HEIGHT - BOTTOM, TOP)
    parts = [_grid_y(y_axis.place(tick), text) for tick, text in y_ticks.items()]
    for tick, text in x_ticks.items():
        parts.append(_text(x_axis.place(tick), HEIGHT - BOTTOM + 18, text, anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, anchor="middle"))
    for number, line in enumerate(lines):
        placed = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
        path = " ".join(f"{x},{y}" for x, y in placed)
        parts.append(f'<polyline class="line s{number}" points="{path}"/>')
        parts += [_mark(*at, shape, number) for at, shape in zip(placed, line.marks, strict=True)]
        parts.append(_text(placed[-1][0] + 12, placed[-1][1] + 4, line.name, style=f"f{number}"))
    top = TOP
    for shape, meaning in marks.items():
        parts.append(_mark(WIDTH - RIGHT + 26, top, shape, NUM_COLOURS - 1))
        parts.append(_text(WIDTH - RIGHT + 38, top + 4, meaning))
        top += 20
    return _svg(title, HEIGHT, parts)


def stacked_bars(bars: Sequence[Bar], *, title: str, order: Sequence[str]) -> str:
    """Lying bars of 100 %, with a legend below; a part keeps its colour from bar to bar."""
    left, right = 150, 110
    width = WIDTH - left - right
    parts = []
    top = TOP + 4
    for bar in bars:
        total = sum(bar.parts.values())
        at = float(left)
        parts.append(_text(left - 10, top + 17, bar.name, anchor="end"))
        for name in order:
            length = width * bar.parts.get(name, 0.0) / total
            if length >= 0.05:
                parts.append(
                    f'<rect class="b{order.index(name) % NUM_COLOURS}" x="{at:.1f}" y="{top}" '
                    f'width="{max(length - 0.6, 0.4):.1f}" height="24"><title>{escape(name)}: '
                    f"{bar.parts[name] / total:.0%}</title></rect>"
                )
            at += length
        parts.append(_text(WIDTH - right + 8, top + 17, bar.note))
        top += 34
    top += 20
    present = [name for name in order if any(bar.parts.get(name) for bar in bars)]
    for place, name in enumerate(present):
        x, y = left + 140 * (place % 4), top + 22 * (place // 4)
        colour = order.index(name) % NUM_COLOURS
        parts.append(f'<rect class="b{colour}" x="{x}" y="{y - 11}" width="12" height="12"/>')
        parts.append(_text(x + 18, y, name))
    return _svg(title, top + 22 * math.ceil(len(present) / 4) + 4, parts)


def log_bars(
    groups: Sequence[Bar], *, title: str, ticks: Mapping[float, str], order: Sequence[str]
) -> str:
    """Lying bars on a logarithmic axis, one for each part of each group."""
    left, right = 250, 90
    axis = LogAxis(min(ticks), max(ticks), left, WIDTH - right)
    rows = [(group, name) for group in groups for name in order if group.parts.get(name)]
    bottom = TOP + 24 * len(rows) + 12 * len(groups)
    parts = []
    for tick, text in ticks.items():
        x = axis.place(tick)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, text, anchor="middle"))
    top, before = TOP, groups[0]
    for group, name in rows:
        if group is not before:
            top, before = top + 12, group
        value = group.parts[name]
        end = axis.place(max(value, axis.low))
        parts.append(
            f'<rect class="b{order.index(name)}" x="{left}" y="{top}" '
            f'width="{max(end - left, 1):.1f}" height="16"/>'
        )
        parts.append(_text(left - 8, top + 13, f"{group.name}: {name}", anchor="end"))
        parts.append(_text(end + 6, top + 13, _bytes(value)))
        top += 24
    return _svg(title, bottom + 30, parts)


def _bytes(value: float) -> str:
    for size, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _grid_y(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
    return line + _text(LEFT - 8, y + 4, text, anchor="end")


def _mark(x: float, y: float, shape: str, number: int) -> str:
    if shape == "square":
        return f'<rect class="b{number}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    if shape == "triangle":
        corners = f"{x:.1f},{y - 7:.1f} {x - 6.5:.1f},{y + 5:.1f} {x + 6.5:.1f},{y + 5:.1f}"
        return f'<polygon class="b{number}" points="{corners}"/>'
    return f'<circle class="b{number}" cx="{x}" cy="{y}" r="5"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", style: str = "") -> str:
    style = f' class="{style}"' if style else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" role="img" aria-label="{escape(title)}">\n'
        f"<style>{_style()}</style>\n"
        f'<rect class="page" width="{WIDTH}" height="{height:.0f}" rx="8"/>\n'
        f'<text class="title" x="16" y="24">{escape(title)}</text>\n{body}\n</svg>\n'
    )


def _style() -> str:
    base = (
        "text{font:13px system-ui,sans-serif}.title{font-size:15px;font-weight:600}"
        ".line{fill:none;stroke-width:2}"
    )
    light = _theme(_LIGHT, page="#ffffff", ink="#1f2328", grid="#d8dee4")
    dark = _theme(_DARK, page="#151b23", ink="#e6edf3", grid="#3a434d")
    return f"{base}{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _theme(colours: Sequence[str], *, page: str, ink: str, grid: str) -> str:
    rules = [f".page{{fill:{page}}}text{{fill:{ink}}}.grid{{stroke:{grid}}}"]
    for number, colour in enumerate(colours):
        rules.append(f".s{number}{{stroke:{colour}}}.b{number},text.f{number}{{fill:{colour}}}")
    return "".join(rules)
