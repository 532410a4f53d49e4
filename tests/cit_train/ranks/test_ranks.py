"""The same recipe on 1, 2 and 4 ranks: same batches, same loss, same pairs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cit_curate.run.ledger import Run
from cit_curate.run.ledger_tables import LEDGER_TABLES

HERE = Path(__file__).parents[1]
# 4 lanes on a pool of 96 pictures, some of which are broken.
FIELDS = {"lanes": 4, "batch_size": 4, "eval_every": 4}


def train_on(num_ranks: int, world: Path, out: Path, **fields: Any) -> Run:
    """`train` on some ranks of this machine, through torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = [f"--nproc-per-node={num_ranks}", str(HERE / "train_tiny.py"), str(world), str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [*torchrun, *script, json.dumps({**FIELDS, **fields})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
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
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"loss": "clip", "local_loss": True, "clip_grad": 1.0},
        {"micro_batch": 3, "accumulate": 2, "max_passes": 6},
        {"vision_features": "cached", "num_workers": 1, "keep_shards": "all"},
    ],
    ids=["plain", "local", "micro", "cached"],
)
def test_ranks_do_not_change_the_run(world: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    alone = train_on(1, world, tmp_path / "1", **fields)
    assert sum(alone.counts().values()) == 6 * 16 * fields.get("accumulate", 1)
    for num_ranks in (2, 4) if not fields else (2,):
        assert_equivalent(alone, train_on(num_ranks, world, tmp_path / str(num_ranks), **fields))
