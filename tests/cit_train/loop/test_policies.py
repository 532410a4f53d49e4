"""Policies in training: what the ledger says of them, and a run that goes on."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from faults import train_with
from tiny import make_config
from tiny_runs import assert_same_run

from cit_curate.run.ledger import Run
from cit_train.outer_loop import train

STEADY: dict[str, Any] = {"keep_ratio": 0.3, "balance": 1.2, "anchor": 0.5}


@pytest.fixture(scope="module")
def steady(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steady") / "run"
    train(make_config(world, **STEADY), out)
    return out


def rows_of(run: Run, table: str, step: int) -> list[dict[str, Any]]:
    return [row for row in run.read(table).to_pylist() if row["outer_step"] == step]


def test_the_ledger_says_which_policy_decided(steady: Path) -> None:
    run = Run.open(steady)
    assert "balance" in run.read("near_misses")["reason"].to_pylist()
    for step in range(3):
        rows = rows_of(run, "selections", step)
        assert {row["reason"] for row in rows} <= {"keep_ratio", "next_best"}
        within = [row for row in rows if row["reason"] == "keep_ratio"]
        most = max(Counter(row["metadata_text"] for row in within).values())
        assert most <= 7  # ceil(1.2 * 16 / 3)
        (round_row,) = rows_of(run, "rounds", step)
        assert round_row["threshold"] <= min(row["similarity"] for row in within)


def test_the_anchor_holds_the_selection_back(world: Path, steady: Path, tmp_path: Path) -> None:
    plain = train(make_config(world, **{**STEADY, "anchor": 0.0}), tmp_path / "plain")

    def keys(run: Run, step: int) -> list[str]:
        return [row["pair_key"] for row in rows_of(run, "selections", step)]

    anchored = Run.open(steady)
    assert keys(plain, 0) == keys(anchored, 0)  # under one encoder there is nothing to hold to
    assert keys(plain, 2) != keys(anchored, 2)


@pytest.mark.faults("K1")
@pytest.mark.slow
def test_a_run_goes_on_from_a_commit_with_the_encoder_that_it_began_with(
    world: Path, steady: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = make_config(world, **STEADY), tmp_path / "run"
    with pytest.raises(RuntimeError, match="planted"):
        train_with(monkeypatch, config, out, {"moment": "curate", "update": 2, "act": "raise"})
    assert len(Run.open(out).commits()) == 1
    train(config, out, resume=True)
    assert_same_run(steady, out)
