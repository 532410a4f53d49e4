"""Killed or stopped in every phase, on one rank and on two: the run that nobody interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import finish, start, wait_until_gone
from same_runs import assert_same_run

from cit_train.status import read_status

pytestmark = pytest.mark.slow
FIELDS = {"lanes": 2, "batch_size": 4, "curate_every": 3, "max_updates": 6, "eval_every": 6}
# The update at whose number the fault strikes: within the second outer step.
PHASES = {"curate": 3, "stream": 3, "train": 4, "save": 6}
CASES = [
    *(
        (phase, sign, ranks)
        for phase in PHASES
        for sign in ("SIGKILL", "SIGTERM")
        for ranks in (1, 2)
    ),
    *(("train", sign, 2) for sign in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")),
]


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Runs that nobody interrupted, by number of ranks."""
    made: dict[int, Path] = {}

    def run(num_ranks: int) -> Path:
        if num_ranks not in made:
            made[num_ranks] = tmp_path_factory.mktemp("whole") / "run"
            code, said = finish(start(num_ranks, world, made[num_ranks], FIELDS))
            assert code == 0, said
        return made[num_ranks]

    return run


@pytest.mark.parametrize(("phase", "sign", "num_ranks"), CASES)
def test_interrupted_is_uninterrupted(
    world: Path,
    whole: Callable[[int], Path],
    tmp_path: Path,
    phase: str,
    sign: str,
    num_ranks: int,
) -> None:
    # FAULTS: K1 K3 D2 D4 D5 L4
    out = tmp_path / "run"
    # The signal hits one rank alone: the last, but where rank 0 alone saves.
    rank = 0 if phase == "save" else num_ranks - 1
    fault: dict[str, Any] = {"rank": rank, "moment": phase, "update": PHASES[phase], "act": sign}
    code, said = finish(start(num_ranks, world, out, FIELDS, [fault]))
    status = read_status(out)
    if sign == "SIGKILL":
        assert code == (-9 if num_ranks == 1 else 1), said
    elif phase == "save":  # the last save: what it was asked to stop is done
        assert code == 0, said
    else:
        assert code == (75 if num_ranks == 1 else 1), said
        assert status is not None, said
        assert (status["code"], status["reason"]) == (75, "stopped"), said
    wait_until_gone(out, seconds=20)
    code, said = finish(start(num_ranks, world, out, FIELDS))
    assert code == 0, said
    assert_same_run(whole(num_ranks), out)


def test_another_number_of_ranks_goes_on_with_the_same_pairs(
    world: Path, whole: Callable[[int], Path], tmp_path: Path
) -> None:
    # FAULTS: K4
    from safetensors.torch import load_file

    from cit_curate.ledger import Run

    out = tmp_path / "run"
    for num_ranks, update in ((2, 1), (1, 4)):
        fault = {"rank": 0, "moment": "train", "update": update, "act": "SIGTERM"}
        finish(start(num_ranks, world, out, FIELDS, [fault]))
        assert (out / "mid_step.json").is_file()
    code, said = finish(start(2, world, out, FIELDS))
    assert code == 0, said
    one, other = Run.open(whole(1)), Run.open(out)
    for table in ("selections", "used"):
        columns = ["outer_step", "lane", "pair_key"]
        assert one.read(table).select(columns).equals(other.read(table).select(columns)), table
    first, second = (load_file(r.path / "checkpoints/last/model.safetensors") for r in (one, other))
    for name, value in first.items():
        assert (value - second[name]).abs().max() < 1e-5, name
