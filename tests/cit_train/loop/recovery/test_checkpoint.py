"""What a trainer takes over from a checkpoint."""

from pathlib import Path

import pytest
import torch
from lane_batches import lane_batch
from tiny import make_config

from cit_train.loop.recovery.checkpoint import (
    load_checkpoint,
    on_device,
    save_checkpoint,
    take_snapshot,
)
from cit_train.loop.session import open_session


@pytest.mark.parametrize("is_fused", [True, False])
def test_the_steps_of_a_fused_optimizer_go_to_its_device(is_fused: bool) -> None:
    """The meta device stands in for a GPU, whose one kernel reads the steps there."""
    names = ("step", "exp_avg", "exp_avg_sq")
    moved = on_device({name: torch.ones(()) for name in names}, torch.device("meta"), is_fused)
    devices = {name: value.device.type for name, value in moved.items()}
    assert devices == {
        "step": "meta" if is_fused else "cpu",
        "exp_avg": "meta",
        "exp_avg_sq": "meta",
    }


@pytest.mark.parametrize(("before", "after"), [("float32", "float16"), ("float16", "float32")])
def test_a_run_may_go_on_with_or_without_a_scaler(
    world: Path, tmp_path: Path, before: str, after: str
) -> None:
    """As `--allow-change precision` has it."""
    saved = open_session(make_config(world, precision=before), tmp_path / "saved")
    saved.trainer.step([lane_batch(0, 0)], saved.state)
    save_checkpoint(tmp_path / "checkpoint", take_snapshot(saved.trainer))
    opened = open_session(make_config(world, precision=after), tmp_path / "opened")
    scale = opened.trainer.scaler.get_scale()
    load_checkpoint(tmp_path / "checkpoint", opened.trainer)
    assert opened.trainer.scaler.get_scale() == scale
    for name, value in saved.trainer.model.state_dict().items():
        assert torch.equal(value, opened.trainer.model.state_dict()[name]), name
