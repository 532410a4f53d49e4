"""Files that are whole or absent."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cit_curate.errors import DamagedError
from cit_curate.storage.durable import (
    FileEntry,
    atomic_file,
    atomic_folder,
    check_file,
    describe_file,
    read_json,
    sweep_temporary,
    write_json,
)


def _fail_half_way(writing: AbstractContextManager[Path]) -> None:
    with writing as temporary:
        (temporary / "x" if temporary.is_dir() else temporary).write_text("half")
        raise RuntimeError("half way")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(RuntimeError, match="half way"):
        _fail_half_way(atomic_file(path))
    assert read_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        _fail_half_way(atomic_folder(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "new") as temporary:
        (temporary / "x").write_text("whole")
    assert (tmp_path / "new" / "x").read_text() == "whole"


@pytest.mark.faults("L6")
def test_leftovers_of_a_dead_process_are_swept_and_those_of_a_living_one_stay(
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".tmp-{dead.pid}-x.parquet").write_text("half")
    (tmp_path / f".tmp-{dead.pid}-folder").mkdir()
    # A link that was about to become `checkpoints/last`, to a folder and to nothing.
    (tmp_path / f".tmp-{dead.pid}-last").symlink_to(tmp_path)
    (tmp_path / f".tmp-{dead.pid}-best").symlink_to(tmp_path / "gone")
    living = tmp_path / f".tmp-{os.getppid()}-y.parquet"
    living.write_text("being written")
    assert len(sweep_temporary(tmp_path)) == 4
    assert list(tmp_path.iterdir()) == [living]


def test_the_leftovers_of_one_name_are_swept_alone(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("page[1].html", "other.html"):
        (tmp_path / f".tmp-{dead.pid}-{name}").write_text("half")
    assert sweep_temporary(tmp_path, below=False, name="page[1].html") == [
        tmp_path / f".tmp-{dead.pid}-page[1].html"
    ]


def test_check_file_tells_missing_cut_and_changed_apart(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    entry = describe_file(path, tmp_path, rows=1)
    assert check_file(tmp_path, entry) == path
    path.write_bytes(b"0123456780")
    check_file(tmp_path, entry, full=False)
    with pytest.raises(DamagedError, match="SHA-256"):
        check_file(tmp_path, entry)
    path.write_bytes(b"01")
    with pytest.raises(DamagedError, match="2 bytes"):
        check_file(tmp_path, entry, full=False)
    path.unlink()
    with pytest.raises(DamagedError, match="missing"):
        check_file(tmp_path, entry)


def test_a_manifest_cannot_name_a_file_outside_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="outside"):
        check_file(tmp_path, FileEntry("../../etc/passwd", 0, 0, ""))


def test_json_that_is_cut_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(DamagedError, match="damaged"):
        read_json(tmp_path / "a.json")
