"""The benchmark of policies: settings that exist, and steps that keep what they say."""

from pathlib import Path

import pytest

from cit_curate.run.ledger import Run
from scripts.bench import policy_cost
from scripts.bench.fixed_cost import made_pool


@pytest.mark.slow
def test_every_policy_of_the_benchmark_makes_outer_steps(tmp_path: Path) -> None:
    pool = made_pool(tmp_path / "pool-10000", 10_000)
    for number, (name, fields) in enumerate(policy_cost.policies(tmp_path).items()):
        policy_cost._steps.clear()
        run = tmp_path / f"run-{number}"
        policy_cost._open(pool, run, fields)
        step = policy_cost._next_step()
        assert step.scanned > 0, name
        reasons = set(Run.open(run).read("selections")["reason"].to_pylist())
        assert reasons <= {"min_ratio", "keep_ratio", "next_best", "random"}, name
    policy_cost._steps.clear()
