"""The same recipe on 1, 2 and 4 ranks: same batches, same loss, same pairs."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_runs import finish, finish_ranks, start_fresh, start_ranks, told_by

from cit_curate.run.ledger import Run
from cit_curate.run.ledger_tables import LEDGER_TABLES

# 4 lanes on a pool of 96 pictures, some of which are broken.
FIELDS: dict[str, Any] = {"lanes": 4, "batch_size": 4, "eval_every": 4}


def train_on(num_ranks: int, world: Path, out: Path, **fields: Any) -> Run:
    """`train` on some ranks of this machine, each in a process of its own."""
    ranks = start_ranks(world, out, ranks=num_ranks, **FIELDS, **fields)
    assert finish_ranks(ranks) == [0] * num_ranks, told_by(out).read_text()
    return Run.open(out)


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics() if line["kind"] == "train"]


def assert_equivalent(one: Run, other: Run) -> None:
    """The first outer step's bytes, later pairs and reasons, batches, losses and weights."""
    for table in LEDGER_TABLES:
        paths = zip(one.files(table), other.files(table), strict=True)
        for first, second in paths:
            if "step=000000" in first.parts:
                assert first.read_bytes() == second.read_bytes(), first
    for table, columns in (
        ("selections", ["outer_step", "lane", "scan_position", "pair_key", "reason"]),
        ("used", one.read("used").column_names),
        ("rejects", ["outer_step", "lane", "scan_position", "pair_key", "reason"]),
    ):
        assert one.read(table).select(columns).equals(other.read(table).select(columns)), table
    assert losses(one) == pytest.approx(losses(other), abs=1e-5)
    first, second = (load_file(r.path / "checkpoints/last/model.safetensors") for r in (one, other))
    for name, value in first.items():
        assert (value - second[name]).abs().max() < 1e-5, name
    evaluations = [[m for m in run.metrics() if m["kind"] == "eval"] for run in (one, other)]
    assert [e["update"] for e in evaluations[0]] == [e["update"] for e in evaluations[1]] == [4, 6]
    # Training order, as the shards have it: the global batches are the same sets.
    for path in sorted((one.path / "shards" / "step=000001").glob("*.tar")):
        twin = other.path / path.relative_to(one.path)
        assert path.stat().st_size == twin.stat().st_size


@pytest.mark.faults("D1")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"loss": "clip", "local_loss": True, "clip_grad": 1.0},
        {"micro_batch": 3, "accumulate": 2, "max_passes": 6},
        {"vision_features": "cached", "num_workers": 1, "keep_shards": "all"},
        {"keep_ratio": 0.3, "balance": 1.2, "anchor": 0.5, "mix_random": 0.2},
    ],
    ids=["plain", "local", "micro", "cached", "policies"],
)
def test_ranks_do_not_change_the_run(world: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    alone = train_on(1, world, tmp_path / "1", **fields)
    assert sum(alone.counts().values()) == 6 * 16 * fields.get("accumulate", 1)
    for num_ranks in (2, 4) if not fields else (2,):
        assert_equivalent(alone, train_on(num_ranks, world, tmp_path / str(num_ranks), **fields))
    if not fields:
        through_torchrun = tmp_path / "torchrun"
        ranks = start_fresh(world, through_torchrun, ranks=2, **FIELDS)
        assert finish(ranks) == 0, told_by(through_torchrun).read_text()
        assert_equivalent(alone, Run.open(through_torchrun))
