"""What the commands are run on: tiny towers, pictures, pools, and a run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cit_train import cli

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "cit_train")]


@pytest.fixture
def cit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs `cit` in this process, whole: from sys.argv to the exit code."""

    from cli_runs import runner

    return runner(monkeypatch, capsys)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny towers, pictures, and pools: `data/pool` of 24 images, `bad/pool` with 3 bad ones."""
    from cli_runs import png_with_header
    from tiny import make_pictures, make_pool, make_text_tower, make_vision_tower

    folder = tmp_path_factory.mktemp("cli")
    make_text_tower(folder / "text")
    make_vision_tower(folder / "vision")
    make_pictures(folder / "pictures")
    make_pool(folder / "data", num_images=24)
    make_pool(folder / "bad", num_images=16, broken=(2,))
    (folder / "bad" / "images" / "0005.png").write_bytes(b"<html>404 not found</html>")
    (folder / "bad" / "images" / "0009.png").write_bytes(png_with_header(21_000, 11_000))
    (folder / "classes.txt").write_text("red disc\nblue square\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def run_folder(tiny: Path) -> Path:
    """A run of `cit curate`."""
    from cli_runs import text_flags

    out = tiny / "run"
    args = ["curate", tiny / "data/pool", *text_flags(tiny), "--threshold", "-1", "--out", out]
    assert cli.run([*map(str, args), "--max-pairs", "12"]) == 0
    return out
