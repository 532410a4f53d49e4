"""Killed or stopped in every phase, on one rank and on two, a run goes on as if it never was."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import assert_same_run, finish_ranks, start_ranks, status, told_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

# 2 outer steps of 3 updates. Saved in their middles at 2 and at 5, evaluated at 2, 4 and 6.
FIELDS: dict[str, Any] = {
    "lanes": 2,
    "batch_size": 4,
    "pairs_per_shard": 4,
    "curate_every": 3,
    "eval_every": 2,
    "save_every": 2,
    "peer_seconds": 4,
}
# Phase -> updates made then; save: of the commit, and of the middle of an outer step.
PHASES = [("curate", 3), ("stream", 3), ("train", 4), ("save", 3), ("save", 5)]


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Gives the run on so many ranks that nobody stopped."""

    @cache
    def run(ranks: int) -> Path:
        out = tmp_path_factory.mktemp("whole") / "run"
        codes = finish_ranks(start_ranks(world, out, ranks=ranks, **FIELDS))
        assert codes == [0] * ranks, told_by(out).read_text()
        return out

    return run


def case(phase: str, update: int, name: str, ranks: int) -> Any:
    return pytest.param(phase, update, name, ranks, id=f"{phase}{update}-{name}-{ranks}")


CASES = [
    *(case(*phase, "SIGKILL", ranks) for phase in PHASES for ranks in (1, 2)),
    *(case(*phase, "SIGTERM", ranks) for phase in PHASES for ranks in (1, 2)),
    case("train", 4, "SIGINT", 2),
    case("train", 4, "SIGUSR1", 2),
    case("train", 4, "SIGUSR2", 2),
    case("train", 4, "SIGHUP", 1),
]


@pytest.mark.faults("K1", "K3", "D2", "D4")
@pytest.mark.parametrize(("phase", "update", "name", "ranks"), CASES)
def test_nothing_is_lost(
    world: Path,
    whole: Callable[[int], Path],
    tmp_path: Path,
    phase: str,
    update: int,
    name: str,
    ranks: int,
) -> None:
    out = tmp_path / "run"
    struck = 0 if phase == "save" else ranks - 1  # rank 0 alone saves
    fault = {"rank": struck, "moment": phase, "update": update, "act": name}
    codes = finish_ranks(start_ranks(world, out, ranks=ranks, faults=[fault], **FIELDS))
    told = told_by(out).read_text()
    if name == "SIGKILL":
        assert codes == [-9 if rank == struck else 6 for rank in range(ranks)], told
        assert (out / "status.json").exists() == (ranks == 2)
    else:
        assert codes == [75] * ranks, told
        left = status(out)
        assert (left["code"], left["reason"], left["resumable"]) == (75, "stopped", True)
        assert update <= left["step"] <= update + 1
    codes = finish_ranks(start_ranks(world, out, ranks=ranks, **FIELDS))
    assert codes == [0] * ranks, told_by(out).read_text()
    assert status(out)["reason"] == "finished"
    assert_same_run(whole(ranks), out)
