"""Static SVG charts: from numbers to markup, without scripts, fonts or network.

Colours and line widths come from the page's style sheet through class names, so that one chart
serves the light and the dark page. Every text is escaped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH = 560
HEIGHT = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 16, 42
MAX_POINTS = 300

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart; `style` is a class of the page: a, b or rule."""

    name: str
    points: Sequence[Point]
    style: str = "a"


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels, with round ticks.

    Attributes:
        low: The data value at `start`.
        high: The data value at `end`, greater than `low`.
        start: The pixel of `low`.
        end: The pixel of `high`.
        ticks: The round data values from `low` to `high`.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def pixel(self, value: float) -> float:
        """The pixel of a data value, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def round_ticks(low: float, high: float, *, most: int = 6) -> tuple[float, ...]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    if not high > low:
        return (low,)
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        first, last = (
            math.ceil(low / (step * factor) - 1e-9),
            math.floor(high / (step * factor) + 1e-9),
        )
        if last - first < most:
            return tuple(round(index * step * factor, 10) for index in range(first, last + 1))
    return (low, high)


def plain_number(value: float) -> str:
    """A number in the form of an axis label: 1,500 and 0.25, but 2.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            divisor = 1e3 if letter == "k" else size
            return f"{value / divisor:,.4g}{letter}"
    return f"{value:,.6g}"


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_format: Callable[[float], str] = plain_number,
    from_zero: bool = False,
) -> Markup:
    """Lines over a common x axis, with a legend when there are several.

    Args:
        series: The lines. Long ones are thinned to `MAX_POINTS` bucket means; points that are not
            finite are left out.
        label: The description of the chart, for a screen reader.
        x_label: The name under the x axis.
        y_format: The format of a value on the y axis.
        from_zero: Whether the y axis starts at 0.
    """
    lines = [Series(line.name, _thinned(_finite(line.points)), line.style) for line in series]
    lines = [line for line in lines if line.points]
    if not lines:
        return no_data()
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_axis = _axis(min(xs), max(xs), _LEFT, WIDTH - _RIGHT, margin=0.0, whole=True)
    low = 0.0 if from_zero and min(ys) >= 0 else min(ys)
    y_axis = _axis(
        low, max(ys), HEIGHT - _BOTTOM, _TOP, margin=0.08, floor=low if from_zero else None
    )
    parts = [_frame(x_axis, y_axis, x_label, y_format)]
    parts += [_line(line, x_axis, y_axis, y_format) for line in lines]
    legend = _legend(lines) if len(lines) > 1 else Markup("")
    return _svg(label, parts) + legend


def histogram(
    counts: Sequence[int], *, low: float, width: float, threshold: float | None, label: str
) -> Markup:
    """Bars of equal width over the bins that have counts; those above the threshold stand out.

    Args:
        counts: The count of each bin.
        low: The lower edge of the first bin.
        width: The width of a bin.
        threshold: The threshold, marked by a vertical line; None = no mark.
        label: The description of the chart, for a screen reader.
    """
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return no_data()
    edges = [low + filled[0] * width, low + (filled[-1] + 1) * width]
    if threshold is not None:
        edges += [threshold - 2 * width, threshold + 2 * width]
    x_axis = _axis(min(edges), max(edges), _LEFT, WIDTH - _RIGHT, margin=0.0)
    y_axis = _axis(0, max(counts), HEIGHT - _BOTTOM, _TOP, margin=0.1, floor=0)
    parts = [_frame(x_axis, y_axis, "best similarity over the metadata", plain_number)]
    base = y_axis.pixel(0)
    for index in filled:
        start = low + index * width
        # A bin's lower edge carries the rounding of 0.01 × index.
        above = threshold is not None and start >= threshold - width * 1e-6
        left, top = x_axis.pixel(start), y_axis.pixel(counts[index])
        parts.append(
            Markup(
                '<rect class="bar {}" x="{}" y="{}" width="{}" height="{}">'
                "<title>{:.2f} to {:.2f}: {:,}</title></rect>"
            ).format(
                "above" if above else "below",
                left,
                top,
                round(max(x_axis.pixel(start + width) - left - 0.6, 0.6), 1),
                round(max(base - top, 0.6), 1),
                start,
                start + width,
                counts[index],
            )
        )
    if threshold is not None:
        parts.append(_threshold_mark(x_axis.pixel(threshold), threshold))
    return _svg(label, parts)


def no_data() -> Markup:
    """The markup instead of a chart when there is nothing to draw."""
    return Markup('<p class="nodata">no data</p>')


def _threshold_mark(x: float, threshold: float) -> Markup:
    right = x < WIDTH * 0.72
    return Markup(
        '<line class="rule" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
        '<text class="mark" x="{3}" y="{4}" text-anchor="{5}">threshold {6:g}</text>'
    ).format(
        x, _TOP - 6, HEIGHT - _BOTTOM, x + (6 if right else -6), _TOP + 4,
        "start" if right else "end", threshold,
    )  # fmt: skip


def _axis(
    low: float,
    high: float,
    start: float,
    end: float,
    *,
    margin: float,
    floor: float | None = None,
    whole: bool = False,
) -> Axis:
    if high <= low:
        spread = abs(low) * 0.1 or 1.0
        low, high = (low, high + spread) if floor is not None else (low - spread, high + spread)
    spread = (high - low) * margin
    low, high = low - (0 if floor is not None else spread), high + spread
    ticks = round_ticks(low, high)
    if whole:
        ticks = tuple(tick for tick in ticks if tick == int(tick)) or ticks
    return Axis(low, high, start, end, ticks)


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_format: Callable[[float], str]) -> Markup:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.pixel(tick)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(_LEFT, WIDTH - _RIGHT, y, y, _LEFT - 8, y + 4, y_format(tick))
        )
    base = HEIGHT - _BOTTOM
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            _LEFT, WIDTH - _RIGHT, base, base
        )
    )
    for tick in x_axis.ticks:
        x = x_axis.pixel(tick)
        parts.append(
            Markup(
                '<line class="axis" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
                '<text class="tick" x="{0}" y="{3}" text-anchor="middle">{4}</text>'
            ).format(x, base, base + 4, base + 18, plain_number(tick))
        )
    parts.append(
        Markup('<text class="name" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_label
        )
    )
    return Markup("").join(parts)


def _line(line: Series, x_axis: Axis, y_axis: Axis, y_format: Callable[[float], str]) -> Markup:
    pixels = [(x_axis.pixel(x), y_axis.pixel(y)) for x, y in line.points]
    path = " ".join(f"{x},{y}" for x, y in pixels)
    drawn = Markup('<polyline class="line {}" points="{}"/>').format(line.style, path)
    if len(pixels) > 40:
        return drawn
    dots = [
        Markup(
            '<circle class="dot {}" cx="{}" cy="{}" r="3"><title>{}: {}</title></circle>'
        ).format(line.style, px, py, plain_number(x), y_format(y))
        for (px, py), (x, y) in zip(pixels, line.points, strict=True)
    ]
    return drawn + Markup("").join(dots)


def _legend(lines: Sequence[Series]) -> Markup:
    keys = [
        Markup('<span class="key {}">{}</span>').format(line.style, line.name) for line in lines
    ]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(keys))


def _svg(label: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, escape(label), Markup("").join(parts)
    )


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    if len(points) <= MAX_POINTS:
        return list(points)
    edges = [round(index * len(points) / MAX_POINTS) for index in range(MAX_POINTS + 1)]
    buckets = [points[first:last] for first, last in pairwise(edges)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in buckets
    ]
