"""The event files of a run, read back with TensorBoard's own reader."""

import sys
import warnings
from pathlib import Path

import pytest
from tiny import make_config

from cit_curate.errors import ConfigError
from cit_train.outer_loop import train


def scalars(folder: Path) -> dict[str, list[int]]:
    """The updates at which each scalar was written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_update_evaluation_and_outer_step_has_its_scalars(
    world: Path, tmp_path: Path
) -> None:
    train(make_config(world, tensorboard=True), tmp_path / "run")
    written = scalars(tmp_path / "run" / "tensorboard")
    assert written["loss"] == written["learning_rate"] == [1, 2, 3, 4, 5, 6]
    assert written["accuracy"] == written["mean_per_class"] == [3, 6]
    assert written["kept_ratio"] == [2, 4, 6]


def test_no_event_file_is_written_unasked(finished: Path) -> None:
    assert not (finished / "tensorboard").exists()


def test_without_the_package_no_run_is_started(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'cit\[tensorboard\]'"):
        train(make_config(world, tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
