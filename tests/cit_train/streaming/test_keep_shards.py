"""`--keep-shards`: what stays on the disk, and that nothing else depends on it."""

from pathlib import Path

import pytest
from tiny import make_config
from tiny_runs import assert_same_run

from cit_curate.errors import ConfigError
from cit_curate.pool.pool import Pool
from cit_curate.run.exports.export import export_webdataset
from cit_curate.run.ledger import Run
from cit_train.inner_loop.trainer import TrainState, UpdateReport
from cit_train.loop.recovery.find import find_damage
from cit_train.loop.watcher import Watcher
from cit_train.outer_loop import train

pytestmark = pytest.mark.slow

NUM_STEPS = 6


class DiskWatcher(Watcher):
    """Remembers the most outer steps that had shards at once."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.most = 0

    def trained(self, state: TrainState, report: UpdateReport) -> None:
        self.most = max(self.most, len(list((self.run / "shards").glob("step=*"))))


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("none", 0),
        ("0", 0),
        ("1", 1),
        ("2", 2),
        ("4", 4),
        ("all", NUM_STEPS),
    ],
)
@pytest.mark.faults("S7")
def test_so_many_outer_steps_have_shards_and_the_run_is_the_same(
    world: Path, tmp_path: Path, keep: str, kept: int
) -> None:
    fields = {"curate_every": 1, "max_updates": NUM_STEPS, "eval_data": ""}
    out = tmp_path / "run"
    watcher = DiskWatcher(out)
    run = train(make_config(world, keep_shards=keep, **fields), out, watcher=watcher)
    steps = [f"step={number:06d}" for number in range(NUM_STEPS)]
    there = sorted(path.name for path in out.glob("shards/*"))
    assert there == steps[NUM_STEPS - kept :]
    # Those that are kept, the one that is trained on, and the last, which is being committed.
    assert watcher.most <= min(max(kept, 1) + 2, NUM_STEPS)
    found = find_damage(Run(out))
    assert (found.damage, found.notes) == ([], [])
    train(make_config(world, **fields), tmp_path / "default")
    assert_same_run(tmp_path / "default", out)
    exported = export_webdataset(run, Pool.open(world / "data" / "pool"), tmp_path / "pairs")
    assert exported.num_pairs == len(run.counts())


def test_the_current_and_the_previous_outer_step_are_kept_unless_said_otherwise(
    world: Path,
) -> None:
    assert make_config(world).train.keep_shards == "2"


@pytest.mark.parametrize("keep", ["-1", "some", "", "1.5"])
def test_anything_else_is_refused(world: Path, keep: str) -> None:
    with pytest.raises(ConfigError, match="give a number, all or none"):
        make_config(world, keep_shards=keep)


def test_what_a_resumed_run_keeps_may_be_changed(world: Path, tmp_path: Path) -> None:
    fields = {"curate_every": 1, "max_updates": 4, "eval_data": ""}
    out = tmp_path / "run"

    class Stopper(Watcher):
        def trained(self, state: TrainState, report: UpdateReport) -> None:
            if state.update == 3:
                raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        train(make_config(world, keep_shards="all", **fields), out, watcher=Stopper())
    assert len(list(out.glob("shards/step=*"))) == 3
    train(make_config(world, keep_shards="1", **fields), out, resume=True)
    assert [path.name for path in out.glob("shards/step=*")] == ["step=000003"]
