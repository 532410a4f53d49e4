"""The benchmark of an outer step's moments, on runs that nobody trained."""

from pathlib import Path

import pytest

from cit_curate.records import PoolCursor
from cit_curate.run.ledger import Commit, Run
from cit_train.recipes import default
from scripts.bench.overlap import MOMENTS, compare, moments, ways_of


def make_run(folder: Path) -> Run:
    """Three outer steps, each a second slower than the one before."""
    run = Run.create(folder, config={}, environment={}, overwrite=True)
    for step in range(3):
        line = {f"{name}_seconds": step + place / 10 for place, name in enumerate(MOMENTS)}
        run.log({"kind": "outer_step", "update": step, "outer_step": step, "lane": 0, **line})
        run.commit(Commit(outer_step=step, update=step, cursors=(PoolCursor(),), files=()))
    return run


def test_moments_are_medians_of_the_later_outer_steps(tmp_path: Path) -> None:
    found = moments(make_run(tmp_path / "run"), first=1)
    expected = {"select": 1.5, "first_shard": 1.6, "first_batch": 1.7, "last_shard": 1.8}
    assert found == pytest.approx(expected)


def test_the_table_has_each_way_with_its_moments(tmp_path: Path) -> None:
    ways = {name: lambda name=name: make_run(tmp_path / name) for name in ("exact", "ahead")}
    result = compare(ways, updates=3, repeats=2)
    assert result.baseline == "exact"
    assert len(result["ahead"].seconds) == 2
    assert result["ahead"].notes["first batch s"] == "2.20"
    assert "| ahead |" in result.table()


def test_the_ways_share_the_cores(tmp_path: Path) -> None:
    assert list(ways_of(default(), tmp_path, cores=8, threads=3)) == [
        "exact, 8 threads",
        "exact, 3 threads",
        "ahead, 3 threads + 5 processes",
    ]
    alone = ways_of(default(), tmp_path, cores=1, threads=1)
    assert list(alone) == ["exact, 1 thread", "ahead, 1 thread + 1 process"]
