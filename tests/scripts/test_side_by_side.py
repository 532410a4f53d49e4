"""Benchmarks compare ways that take turns in one run."""

import json

import pytest

from scripts.bench.side_by_side import Comparison, Timing, show, take_turns


def test_the_ways_take_turns():
    calls: list[str] = []
    ways = {"plain": lambda: calls.append("plain"), "fast": lambda: calls.append("fast")}
    seconds = take_turns(ways, repeats=2)
    assert calls == ["plain", "fast"] * 3  # the first turn is not timed
    assert {name: len(times) for name, times in seconds.items()} == {"plain": 2, "fast": 2}


def test_a_ratio_is_that_of_the_medians(tmp_path, capsys):
    timings = (Timing("plain", (4.0, 9.0, 3.0), 80), Timing("fast", (0.5,), 80, {"MB": "7"}))
    comparison = Comparison("Reading", "rows", timings, {"rows": 80})
    assert comparison.ratio("fast") == pytest.approx(8)
    show([comparison], tmp_path / "new" / "numbers.json")
    printed = capsys.readouterr().out
    assert "| fast | 160 | 160 | 160 | 8.00 | 7 |" in printed
    assert "| plain | 20 | 8.89 | 26.7 | 1.00 |  |" in printed
    kept = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert kept["comparisons"][0]["baseline"] == "plain"
    assert kept["comparisons"][0]["timings"][0]["seconds"] == [4.0, 9.0, 3.0]
