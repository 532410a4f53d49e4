import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.run.report.charts import (
    MAX_POINTS,
    Series,
    histogram,
    line_chart,
    plain_number,
    round_ticks,
)

PAYLOAD = '"><script>alert(1)</script>'


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, (0, 2, 4, 6, 8, 10)),
        (0.5, 1.0, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        (-1, 1, (-1, -0.5, 0, 0.5, 1)),
        (3, 3, (3,)),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert round_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_and_inside(low: float, spread: float) -> None:
    high = low + spread
    ticks = round_ticks(low, high)
    assert len(ticks) <= 6
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert all(low - slack <= tick <= high + slack for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(1500, "1,500"), (25_000, "25k"), (2.5e6, "2.5M"), (0.25, "0.25"), (0, "0")]
)
def test_plain_number_is_short(value: float, text: str) -> None:
    assert plain_number(value) == text


@pytest.mark.faults("R2")
def test_a_chart_without_points_says_no_data() -> None:
    assert "no data" in line_chart([Series("a", [])], label="x", x_label="x")
    assert "no data" in line_chart([Series("a", [(1, math.nan)])], label="x", x_label="x")
    assert "no data" in histogram([0, 0], low=-1, width=1, threshold=0.5, label="x")


@pytest.mark.parametrize("points", [[(0, 0)], [(5, 0.3)], [(0, 2), (1, 2)], [(0, -1), (0, -1)]])
def test_a_chart_of_one_value_is_drawn(points: list[tuple[float, float]]) -> None:
    chart = line_chart([Series("a", points)], label="x", x_label="x", from_zero=True)
    assert "<circle" in chart
    assert "nan" not in chart


def test_a_long_series_is_thinned_to_its_bucket_means() -> None:
    chart = line_chart([Series("a", [(i, i % 7) for i in range(100_000)])], label="x", x_label="x")
    [path] = re.findall(r'points="([^"]*)"', chart)
    assert len(path.split()) == MAX_POINTS


def test_a_histogram_is_trimmed_and_bars_above_the_threshold_stand_out() -> None:
    counts = [0] * 200
    counts[150], counts[154], counts[155], counts[160] = 4, 3, 2, 1
    chart = histogram(counts, low=-1, width=0.01, threshold=0.55, label="x")
    assert re.findall(r'bar (\w+)".*?<title>([^<]*)<', chart) == [
        ("below", "0.50 to 0.51: 4"),
        ("below", "0.54 to 0.55: 3"),
        ("above", "0.55 to 0.56: 2"),
        ("above", "0.60 to 0.61: 1"),
    ]
    assert "threshold 0.55" in chart


@pytest.mark.faults("R1")
def test_every_text_of_a_chart_is_escaped() -> None:
    lines = [Series(PAYLOAD, [(0, 1)]), Series("b", [(0, 1)])]
    chart = line_chart(lines, label=PAYLOAD, x_label=PAYLOAD, y_format=lambda value: PAYLOAD)
    assert "<script" not in chart
    assert chart.count("&lt;script&gt;") >= 4
