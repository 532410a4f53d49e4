"""Room on a full disk: what goes, how long it is waited for, and that each time is a new one."""

from pathlib import Path

import pytest

from cit_train.streaming import disk_room
from cit_train.streaming.disk_room import DiskRoom


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which goes on by what is slept."""
    now = [100.0]
    monkeypatch.setattr(disk_room.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        disk_room.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    return now


@pytest.mark.faults("S7")
def test_a_full_disk_is_waited_for_a_minute_each_time(
    tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    room = DiskRoom(tmp_path, 5, removes=True)
    for began in (100.0, 10_000.0):
        clock[0] = began
        while room():
            pass
        assert clock[0] - began == disk_room.WAIT_SECONDS
    assert caplog.text.count("waiting 60 s for room") == 2


@pytest.mark.faults("S7")
@pytest.mark.parametrize("removes", [True, False])
def test_only_shards_that_nobody_reads_go_and_only_where_they_may(
    tmp_path: Path, clock: list[float], removes: bool
) -> None:
    steps = [f"step={number:06d}" for number in (2, 3, 4, 5)]
    for name in steps:
        (tmp_path / name).mkdir()
    assert DiskRoom(tmp_path, 5, removes=removes)()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == (steps[2:] if removes else steps)
    assert (clock[0] == 100.0) == removes
