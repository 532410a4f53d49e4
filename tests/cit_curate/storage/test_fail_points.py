"""Faults on purpose: how they are asked for, and that each happens once, at its place."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

from cit_curate.storage.durable import atomic_file, atomic_folder, replace_link, write_json
from cit_curate.storage.fail_points import (
    MOMENTS,
    VARIABLE,
    PlannedError,
    fail_at,
    fail_points,
    kind_of,
)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("run/manifests/step=000001.json", "manifest"),
        ("run/selections/step=000001/lane=00000.parquet", "selections"),
        ("run/shards/step=000001/lane00000-000000.tar", "shard"),
        ("run/shards/step=000001/lane00000-000000.json", "shard_entry"),
        ("run/shards/step=000001/lane00000.json", "shard_list"),
        ("run/shards/step=000001/lane00000.rejects.json", "shard_rejects"),
        ("run/checkpoints/.tmp-7-update-000500/trainer.json", "checkpoint_file"),
        ("run/checkpoints/update-000500", "checkpoint"),
        ("run/checkpoints/last", "checkpoint_link"),
        ("run/config.json", "config"),
        ("POOL/rejects/part-000000.parquet", "pool_rejects"),
        ("some/page.html", "other"),
    ],
)
def test_a_path_tells_what_kind_of_file_it_is(path: str, kind: str) -> None:
    assert kind_of(Path(path)) == kind


@pytest.mark.parametrize(
    "text",
    [
        "manifest",
        "manifest.synced",
        "manifest.synced:1",
        "manifest.synced:0:kill",
        "manifest.synced:x:kill",
        "manifest.synced:1:kill:3",
        "manifest.synced:1:explode",
        "manifest.synced:1:kill=3",
        "manifest.synced:1:sleep=long",
        "manifests.synced:1:kill",
        "manifest.between:1:kill",
    ],
)
def test_a_malformed_value_is_refused_with_what_it_must_be(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match=f"^{VARIABLE} is {text!r}"):
        write_json(tmp_path / "any.json", 1)
    ended = forked.run("cit_train.cli:main", "metadata", "list", imported=forked.OF_FILES)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {VARIABLE} is {text!r}; ")
    assert ended.stdout == ""


def test_without_the_variable_nothing_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert fail_at() is None
    monkeypatch.setenv(VARIABLE, "")
    assert fail_at() is None


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_fault_happens_the_nth_time_and_once(
    moment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, f"status.{moment}:2:raise")
    path = tmp_path / "status.json"
    write_json(path, 1)
    with pytest.raises(PlannedError, match=f"status.{moment}"):
        write_json(path, 2)
    # What is under the final name is whole: the old file before the rename, the new one after it.
    assert path.read_text() == ("2\n" if moment == "renamed" else "1\n")
    write_json(path, 3)
    assert path.read_text() == "3\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", MOMENTS)
def test_folders_and_links_have_the_same_moments(
    moment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()

    def make(name: str) -> None:
        with atomic_folder(folder / name) as temporary:
            (temporary / "weights").write_text(name)

    make("update-000001")
    replace_link(folder / "last", "update-000001")
    monkeypatch.setenv(VARIABLE, f"checkpoint.{moment}:1:enospc")
    with pytest.raises(OSError, match="No space left on device"):
        make("update-000002")
    is_there = moment == "renamed"
    assert (folder / "update-000002").exists() == is_there
    monkeypatch.setenv(VARIABLE, f"checkpoint_link.{moment}:1:enospc")
    with pytest.raises(OSError, match="No space left on device"):
        replace_link(folder / "last", "update-000002")
    assert (folder / "last").readlink().name == ("update-000002" if is_there else "update-000001")
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_is_a_kill(moment: str, tmp_path: Path) -> None:
    code = "import sys; from cit_curate.storage.durable import *; write_json(Path(sys.argv[1]), 1)"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pool.json")],
        env={VARIABLE: f"pool_manifest.{moment}:1:kill", "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "pool.json").exists() == (moment == "renamed")


def test_sleep_sleeps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "other.start:1:sleep=0.2")
    began = time.monotonic()
    with atomic_file(tmp_path / "page.html") as temporary:
        temporary.write_text("x")
    assert 0.2 <= time.monotonic() - began < 5


def test_every_name_is_there_once() -> None:
    names = fail_points()
    assert len(names) == len({*names}) > 100
