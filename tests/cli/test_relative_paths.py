"""The commands one after the other in one's own folder, with every path as one types it there."""

import shutil
from pathlib import Path

import pytest
from cli_runs import Cit

TEXT = ("--metadata", "classes.txt", "--text-encoder", "text")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Towers, pictures, a table and class names, in the working directory."""
    for name in ("text", "vision", "pictures", "data"):
        shutil.copytree(tiny / name, tmp_path / name)
    shutil.rmtree(tmp_path / "data" / "pool")
    shutil.copy(tiny / "classes.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_command_takes_relative_paths(cit: Cit, folder: Path) -> None:
    columns = ("--image-id", "image_id", "--image", "image", "--text", "title,tag")
    updates = ("--batch-size", "4", "--curate-every", "1", "--threshold", "-1")
    towers = ("--vision-encoder", "vision", "--projection-dim", "8")
    train = ("train", "default", *TEXT, *towers, *updates, "--eval-data", "pictures")
    cached = ("--vision-features", "cached", "--save-every", "1", "--out", "run")
    for args in (
        ("pool", "build", "data/pairs.csv", *columns, "--out", "pool"),
        ("pool", "tokenize", "pool", "--text-encoder", "text"),
        ("pool", "info", "pool"),
        ("curate", "pool", *TEXT, "--dry-run"),
        ("curate", "pool", *TEXT, "--threshold", "-1", "--max-pairs", "4", "--out", "picked"),
        (*train, *cached, "--pool", "pool", "--max-updates", "3"),
        (*train, *cached, "--pool", "pool", "--max-updates", "3", "--resume"),
        ("verify", "run"),
        ("repair", "run"),
        ("query", "run", "SELECT count(*) FROM pairs"),
        ("export", "run", "counts.json"),
        ("export", "run", "shards"),
        ("import-counts", "counts.json", "--pool", "pool", "--out", "imported"),
        (*train, "--pool", "pool", "--selection", "run", "--max-updates", "1", "--out", "again"),
        ("eval", "run", "--data", "pictures"),
        ("report", "run"),
        ("report", "run", "--out", "page.html"),
    ):
        ended = cit(*args)
        assert ended.code == 0, (args, ended.err)
    # Nothing was written anywhere else, such as in a folder of the same name further down.
    assert not list(folder.glob("run/**/run"))
    assert {path.name for path in folder.iterdir()} == {
        *("text", "vision", "pictures", "data", "classes.txt", "pool", "picked", "run"),
        *("counts.json", "counts.json.sha256", "shards", "imported", "again", "page.html"),
    }
