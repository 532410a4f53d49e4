"""Where a pool is built: whole or absent, one builder at a time, and never over another pool."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from long_tables import LONG, bytes_of, pairs_in, write_long

from cit_curate.errors import BadInputError, ConfigError, DamagedError, ResourceError
from cit_curate.pool import format as pool_format
from cit_curate.pool.build import malformed, writing
from cit_curate.pool.check import verify_pool
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from cit_curate.storage.fail_points import VARIABLE


@pytest.mark.faults("P7")
@pytest.mark.parametrize("moment", ["other.renamed", "pool_catalog.start", "pool_catalog.synced"])
@pytest.mark.slow
def test_a_build_that_is_killed_before_its_catalog_is_finished_by_the_same_command(
    tmp_path, moment
):
    source = write_long(tmp_path / "a.csv", [("1", "t", "x"), ("2", "t", ""), ("3", "t", "y")])
    whole = Pool.build([source], tmp_path / "whole", columns=LONG, name="pool")
    command = [sys.executable, "-c", BUILD, str(source), str(tmp_path / "pool")]
    killed = subprocess.run(command, env=os.environ | {VARIABLE: f"{moment}:1:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "pool/pool.duckdb").exists()
    written = {path: path.stat().st_ino for path in (tmp_path / "pool").rglob("*.*")}
    for changes, told in (
        ({"columns": Columns(caption="caption")}, "--text-key was key, now none"),
        ({"clean": "yfcc"}, "--clean was none, now yfcc"),
        ({"name": "other"}, "--name was pool, now other"),
    ):
        with pytest.raises(ConfigError, match=rf"{told}; its catalog is missing; write it with"):
            Pool.build([source], tmp_path / "pool", **{"columns": LONG, **changes})
    pool = Pool.build([source], tmp_path / "pool", columns=LONG)
    assert pool.manifest == Pool.open(whole.path).manifest
    assert (
        written.items()
        >= {
            path: path.stat().st_ino
            for path in pool.path.rglob("*.*")
            if path.name != "pool.duckdb"
        }.items()
    )
    assert bytes_of(pool.path) == bytes_of(whole.path)
    assert verify_pool(pool.path) == []
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.faults("P7", "P10")
def test_a_pool_without_a_catalog_is_not_finished_when_its_sources_have_changed(tmp_path):
    source = write_long(tmp_path / "a.csv", [("1", "t", "x")])
    pool = Pool.build([source], tmp_path / "pool", columns=LONG)
    (pool.path / "pool.duckdb").unlink()
    write_long(source, [("1", "t", "z")])
    with pytest.raises(ConfigError, match=r"a\.csv .*; its catalog is missing; write it with"):
        Pool.build([source], tmp_path / "pool", columns=LONG)
    part = pool.path / "pairs/part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"part-000000\.parquet"):
        Pool.build([source], tmp_path / "pool", columns=LONG)
    assert not (pool.path / "pool.duckdb").exists()


@pytest.mark.faults("P8")
def test_a_disk_that_is_too_full_for_the_list_of_rejects_says_so(tmp_path, monkeypatch):
    source = write_long(tmp_path / "a.csv", [("short",)])
    monkeypatch.setattr(malformed, "atomic_file", full_disk)
    with pytest.raises(ResourceError, match=f"the disk of {tmp_path}/pool is full"):
        Pool.build([source], tmp_path / "pool", columns=LONG)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.faults("P10", "G2c")
def test_a_folder_in_use_is_refused_and_a_pool_is_replaced_only_when_asked(tmp_path):
    source = write_long(tmp_path / "a.csv", [("1", "t", "x")])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds no pool"):
            Pool.build([source], tmp_path / "other", columns=LONG, overwrite=overwrite)
    pool = Pool.build([source], tmp_path / "pool", columns=LONG)
    with pytest.raises(ConfigError, match="its sources have not changed since"):
        Pool.build([source], tmp_path / "pool", columns=LONG)
    os.utime(source, (0, 0))
    with pytest.raises(ConfigError, match=r"a\.csv was written again"):
        Pool.build([source], tmp_path / "pool", columns=LONG)
    write_long(source, [("1", "t", "x"), ("2", "t", "y")])
    assert "has changed" in verify_pool(pool.path)[0]
    with pytest.raises(ConfigError, match=r"a\.csv has changed"):
        Pool.build([source], tmp_path / "pool", columns=LONG)
    assert Pool.build([source], tmp_path / "pool", columns=LONG, overwrite=True).num_pairs == 2
    write_long(source, [])
    with pytest.raises(BadInputError):
        Pool.build([source], tmp_path / "pool", columns=LONG, overwrite=True)
    assert Pool.open(tmp_path / "pool").num_pairs == 2


@pytest.mark.faults("P10")
def test_a_pool_of_other_sources_or_settings_is_refused_naming_each_difference(tmp_path):
    sources = [write_long(tmp_path / f"{name}.csv", [(name, "t", "x")]) for name in "abc"]
    Pool.build(sources[:2], tmp_path / "pool", columns=LONG)

    def refused(asked, **settings):
        with pytest.raises(ConfigError) as caught:
            Pool.build(asked, tmp_path / "pool", **{"columns": LONG, **settings})
        state = str(caught.value).removeprefix(f"{tmp_path / 'pool'} holds a pool already (")
        return state.removesuffix("); --overwrite builds it again").split("; ")

    a, b, c = sources
    assert refused([a, b]) == ["its sources have not changed since"]
    assert refused([b, a]) == [
        "its sources were in another order, or listed a different number of times"
    ]
    assert refused([a, c]) == [f"{b} is no source any more", f"the source {c} is new"]
    assert refused([a, b], columns=Columns(text=("key", "caption"), extra=("key",))) == [
        "--text was none, now key, caption",
        "--text-key was key, now none",
        "--caption was caption, now none",
        "--extra was none, now key",
    ]
    assert refused([a, b], clean="yfcc", format="csv") == ["--clean was none, now yfcc"]
    (tmp_path / "images").mkdir()
    moved = refused([a, b], image_root=tmp_path / "images")
    assert moved == [
        f"the source {path} had its images in {tmp_path}, now {tmp_path / 'images'}"
        for path in (a, b)
    ]
    b.unlink()
    os.utime(a, (0, 0))
    assert refused([a]) == [f"the source {a} was written again", f"{b} is no source any more"]


@pytest.mark.faults("P10")
def test_a_folder_of_images_that_changes_below_is_seen(tmp_path):
    below = tmp_path / "images/a/b"
    below.mkdir(parents=True)
    (below / "1.jpg").write_bytes(b"no image")
    (below / "1.txt").write_text("a cat")
    pool = Pool.build([tmp_path / "images"], tmp_path / "pool")
    assert (pool.sources[0].bytes, len(pool.sources[0].head_sha256)) == (13, 64)
    assert verify_pool(pool.path) == []
    (below / "1.txt").write_text("a dog sits")
    (told,) = verify_pool(pool.path)
    assert told == f"the source {tmp_path / 'images'} has changed (13 bytes, now 18)"
    with pytest.raises(ConfigError, match=r"images has changed \(13 bytes, now 18\)"):
        Pool.build([tmp_path / "images"], tmp_path / "pool")

    def change(what, rows):
        (below / "1.txt").write_text(f"{rows} cats")

    with pytest.raises(DamagedError, match="images changed while it was read"):
        Pool.build([tmp_path / "images"], tmp_path / "other", progress=change)
    inside = Pool.build([tmp_path / "images"], tmp_path / "images/pool")
    assert pairs_in(inside)[0][0] == "a/b/1"


@pytest.mark.faults("P10")
def test_a_folder_in_a_pool_of_an_older_version_is_not_said_to_have_changed(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(b"no image")
    (tmp_path / "images/1.txt").write_text("a cat")
    pool = Pool.build([tmp_path / "images"], tmp_path / "pool")
    entry = replace(pool.sources[0], bytes=0, mtime_ns=7, head_sha256="")
    pool_format.write_manifest(pool.path, replace(pool.manifest, sources=(entry,)))
    assert verify_pool(pool.path) == []


@pytest.mark.faults("P9")
def test_a_second_builder_is_refused_and_a_dead_one_leaves_no_lock(tmp_path):
    source = write_long(tmp_path / "a.csv", [("1", "t", "x")])
    pool, lock = tmp_path / "pool", tmp_path / ".pool.lock"
    code = (
        "import sys, time, pathlib; from cit_curate.storage.lock import writer_lock\n"
        "with writer_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(pool)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(ResourceError, match=f"process {owner.pid} on {os.uname().nodename}"):
            Pool.build([source], pool, columns=LONG)
        owner.kill()
    assert lock.exists()
    assert Pool.build([source], pool, columns=LONG).num_pairs == 1
    assert not lock.exists()


BUILD = (
    "import sys; from cit_curate.pool.pool import Pool; "
    "from cit_curate.sources.columns import Columns\n"
    "Pool.build([sys.argv[1]], sys.argv[2],"
    " columns=Columns(text_key='key', caption='caption'))\n"
)


@pytest.mark.faults("P7")
@pytest.mark.slow
def test_a_killed_build_leaves_nothing_and_the_next_one_is_equal(tmp_path):
    rows = [(str(number % 20_000), f"k{number % 7}", f"text {number}") for number in range(60_000)]
    source = write_long(tmp_path / "a.csv", rows)
    whole = Pool.build([source], tmp_path / "whole", columns=LONG)
    rng = random.Random(5)
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", BUILD, str(source), str(tmp_path / "pool")]
        ) as b:
            time.sleep(0.35 + rng.random() * 0.9)
            b.send_signal(signal.SIGKILL)
        if (tmp_path / "pool").exists():
            assert bytes_of(tmp_path / "pool") == bytes_of(whole.path)
            break
    if not (tmp_path / "pool/pool.duckdb").exists():
        Pool.build([source], tmp_path / "pool", columns=LONG)
    pool = Pool.open(tmp_path / "pool")
    assert bytes_of(pool.path) == bytes_of(whole.path)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.faults("P7")
def test_a_kill_between_the_renames_of_an_overwrite_keeps_the_old_pool(tmp_path):
    source = write_long(tmp_path / "a.csv", [("1", "t", "x")])
    pool = Pool.build([source], tmp_path / "pool", columns=LONG)
    pool.path.rename(tmp_path / ".tmp-0-pool")
    (tmp_path / ".tmp-99999999-pool").mkdir()
    with pytest.raises(ConfigError, match=r"no text column|has no column"):
        Pool.build([source], tmp_path / "pool", columns=Columns(caption="nothing"))
    write_long(source, [])
    with pytest.raises(BadInputError):
        Pool.build([source], tmp_path / "pool", columns=LONG, overwrite=True)
    assert Pool.open(tmp_path / "pool").num_pairs == 1
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.faults("P8")
def test_a_full_disk_is_a_resource_error_and_leaves_nothing(tmp_path, monkeypatch):
    rng = random.Random(0)
    rows = [(str(n), "t", "".join(rng.choices("abcdefghijklmnop", k=60))) for n in range(20_000)]
    source = write_long(tmp_path / "a.csv", rows)
    needed = 3 * source.stat().st_size
    free_bytes(monkeypatch, 1_234_567)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(
            ResourceError,
            match=rf"the disk of {tmp_path}/pool is full: about {needed:,} bytes are needed while "
            r"building, 1,234,567 are free \(",
        ):
            Pool.build([source], tmp_path / "pool", columns=LONG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


def free_bytes(monkeypatch, free):
    """Let every disk have so much room."""
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.faults("P8")
@pytest.mark.parametrize(("image_bytes", "needed"), [(100, "1,048,576"), (50 << 20, "2,621,440")])
def test_of_a_folder_of_images_a_full_disk_needs_captions_and_paths_alone(
    tmp_path, monkeypatch, image_bytes, needed
):
    (tmp_path / "images").mkdir()
    with (tmp_path / "images/1.jpg").open("wb") as stream:
        stream.truncate(image_bytes)
    (tmp_path / "images/1.txt").write_text("a cat")
    free_bytes(monkeypatch, 4_096)
    monkeypatch.setattr(writing, "write_parts", full_disk)
    with pytest.raises(
        ResourceError,
        match=rf"the disk of {tmp_path}/pool is full: about {needed} bytes are needed while "
        r"building, 4,096 are free \(",
    ):
        Pool.build([tmp_path / "images"], tmp_path / "pool")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
