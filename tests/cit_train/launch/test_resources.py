"""Time limits in all forms of sbatch, and numbers that cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.errors import ConfigError
from cit_train.launch.cluster import Cluster
from cit_train.launch.resources import Resources, seconds_of


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 90 * 60),
        ("1:30", 90),
        ("02:00:00", 7200),
        ("1-0", 86_400),
        ("1-2:30", 86_400 + 9000),
        ("2-00:00:01", 2 * 86_400 + 1),
    ],
)
def test_every_form_of_sbatch_is_understood(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_days_hours_minutes_and_seconds_add_up(d: int, h: int, m: int, s: int) -> None:
    assert seconds_of(f"{d}-{h:02d}:{m:02d}:{s:02d}") == ((d * 24 + h) * 60 + m) * 60 + s


@pytest.mark.parametrize("time", ["", "1h", "-5", "1:2:3:4", "1-", "٣"])
def test_another_form_is_refused(time: str) -> None:
    with pytest.raises(ConfigError, match="write it as HH:MM:SS"):
        seconds_of(time)


def test_sbatch_gets_whole_minutes_rounded_up() -> None:
    assert Resources(cluster=Cluster(), seconds=121, signal_seconds=1).minutes == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nodes": 0}, "--nodes is 0"),
        ({"gpus_per_node": -1}, "--gpus-per-node is -1"),
        ({"max_requeues": -1}, "--max-requeues is -1"),
        ({"seconds": 0}, "--time is 0"),
        ({"signal_seconds": 3600}, "leaves no time in a job"),
    ],
)
def test_numbers_that_cannot_be_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Resources(**{"cluster": Cluster(), "seconds": 3600, **fields})  # type: ignore[arg-type]
