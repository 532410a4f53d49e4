"""Makes `from tiny import ...` work in this folder, and one tiny world for a session.

`text_towers` comes from the tests of the text encoder.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "cit_curate"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny towers, a pool and pictures; read only."""
    from tiny import make_config

    folder = tmp_path_factory.mktemp("world")
    make_config(folder)
    return folder


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny world that nobody interrupted; read only."""
    from tiny import make_config

    from cit_train.outer_loop import train

    out = tmp_path_factory.mktemp("runs") / "whole"
    train(make_config(world), out)
    return out
