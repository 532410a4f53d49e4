"""`--compile`: the text tower as torch.compile makes it trains as the plain one does."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lane_batches import gradients, lane_batch, without_dropout
from tiny import make_config

from cit_train.loop.session import open_session


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # those of the compiler's own imports
def test_a_compiled_text_tower_gives_the_plain_gradient(world: Path, tmp_path: Path) -> None:
    found = []
    for name, compiled in (("plain", False), ("compiled", True)):
        session = open_session(make_config(world, lanes=2, compile=compiled), tmp_path / name)
        without_dropout(session.trainer)
        batches = [lane_batch(lane, 0) for lane in range(2)]
        _, report = session.trainer.step(batches, replace(session.state, update=0))
        found.append((report.loss, gradients(session.trainer)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for name, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][name], atol=1e-4), name
