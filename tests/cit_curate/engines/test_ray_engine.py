"""Ray as the engine: the same bytes as here, bad sources named, and nothing left running."""

import json
import os
import signal
import socket
import sys
import tarfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import forked
import pytest
from small_tower import small_tower

from cit_curate.config import CurateConfig, EngineConfig, MetadataConfig
from cit_curate.curation.curate import curate
from cit_curate.engines.ray_engine import open_ray
from cit_curate.errors import ConfigError, DamagedError
from cit_curate.pool.format import read_manifest
from cit_curate.pool.pool import Pool
from cit_curate.run.ledger import Run
from cit_curate.sources.columns import Columns

GOLDEN = Path(__file__).parents[2] / "golden"
CIT = "cit_train.cli:main"
RAY = EngineConfig(engine="ray", workers=2)

# Ray Data warns of its own settings when it reads them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[None]:
    """One Ray for all tests: it takes seconds to start."""
    with open_ray("local", num_workers=2, uses_gpus=False):
        yield


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Pool:
    folder = tmp_path_factory.mktemp("pool")
    lines = (GOLDEN / "captions.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "a.csv").write_text("".join(lines[:301]), encoding="utf-8")
    columns = Columns(text_key="text_key", caption="caption")
    return Pool.build([folder / "a.csv"], folder / "pool", columns=columns)


def write_tar(path: Path, first: int) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + 40):
            for suffix, content in (("jpg", b"\xff\xd8"), ("txt", f"a cat {number}".encode())):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All but the catalog, and what was when and where."""
    varies = ("pool.duckdb", "environment.json", "metrics.jsonl")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in varies]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_without_the_package_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r'pip install "cit\[ray\]"'),
        open_ray("local", num_workers=1, uses_gpus=False),
    ):
        pass


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=rf"--ray-address {address}: .*refused"),
            open_ray(address, num_workers=1, uses_gpus=False),
        ):
            pass


def test_an_address_needs_the_engine():
    with pytest.raises(ConfigError, match="--engine ray"):
        EngineConfig(ray_address="auto")


@pytest.mark.slow
def test_results_come_in_order_and_errors_are_those_of_the_tasks(ray_of_two, pool, tmp_path):
    import ray

    with open_ray("local", num_workers=2, uses_gpus=False) as (mapped, num_workers):
        assert num_workers == 2
        assert list(mapped(abs, range(-30, 0))) == list(range(30, 0, -1))
        assert list(mapped(abs, [])) == []
        manifests = mapped(read_manifest, [pool.path, pool.path, tmp_path / "none", pool.path])
        assert [next(manifests).fingerprint for _ in range(2)] == [pool.fingerprint] * 2
        with pytest.raises(ConfigError, match="none is no pool"):
            next(manifests)
        with pytest.raises(ray.exceptions.RayTaskError, match="invalid literal"):
            list(mapped(int, ["1", "x"]))


@pytest.mark.slow
def test_ray_numbers_captions_and_names_images_as_one_process_does(ray_of_two, tmp_path):
    for name, first in (("a", 0), ("b", 100)):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", first)
        write_tar(tmp_path / name / "1.tar", first + 30)
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "a"]
    here = Pool.build(folders, tmp_path / "here", name="pool")
    there = Pool.build(folders, tmp_path / "there", name="pool", engine=RAY)
    assert (here.num_pairs, here.num_images) == (160, 160)
    assert here.manifest.rejects == {"duplicate_pair": 80}
    assert bytes_of(here.path) == bytes_of(there.path)


@pytest.mark.faults("P3")
@pytest.mark.slow
def test_a_pool_is_the_same_bytes_and_a_cut_shard_is_named_and_mended(ray_of_two, tmp_path):
    shards = [write_tar(tmp_path / f"{number}.tar", 40 * number) for number in range(4)]
    whole = Pool.build(shards, tmp_path / "whole", name="pool")
    content = shards[2].read_bytes()
    shards[2].write_bytes(content[:20_000])
    with pytest.raises(DamagedError, match=r"2\.tar"):
        Pool.build(shards, tmp_path / "pool", engine=RAY)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".staging-pool/*/block*")}
    assert len(made) >= 2  # those of the shards before it
    shards[2].write_bytes(content)
    pool = Pool.build(shards, tmp_path / "pool", engine=RAY)
    assert pool.fingerprint == whole.fingerprint
    ours, theirs = bytes_of(pool.path), bytes_of(whole.path)
    for manifest in (ours, theirs):
        described = json.loads(manifest.pop("pool.json"))
        assert described["num_pairs"] == 160
    assert ours == theirs
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("num_pairs", [None, 20])
def test_a_curation_is_the_same_bytes(ray_of_two, pool, num_pairs, tmp_path):
    text = small_tower(tmp_path / "tower")
    metadata = MetadataConfig(metadata=str(GOLDEN / "labels.txt"))
    rules = CurateConfig(threshold=0.9, batch_size=16, lanes=2, min_ratio=0.1, max_passes=2)
    arguments = (pool, metadata, text, rules)
    options = {"num_pairs": num_pairs, "device": "cpu"}
    here = curate(*arguments, tmp_path / "here", **options)
    there = curate(*arguments, tmp_path / "there", **options, engine=RAY)
    assert bytes_of(here.path) == bytes_of(there.path)
    order = [("pair_key", "ascending"), ("scan_position", "ascending")]
    rows = [run.read("selections").sort_by(order) for run in (here, there)]
    assert rows[0].equals(rows[1])
    assert not list(tmp_path.glob(".*"))


def descendants(pid: int) -> set[int]:
    """Processes below one, of those that /proc knows."""
    below: dict[int, set[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        below.setdefault(parent, set()).add(int(stat.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        fresh = below.get(waiting.pop(), set()) - found
        found |= fresh
        waiting += fresh
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_command_leaves_no_process_and_goes_on(pool, tmp_path):
    text = small_tower(tmp_path / "tower")
    run = tmp_path / "run"
    command = ["curate", str(pool.path)]
    command += ["--metadata", str(GOLDEN / "labels.txt"), "--text-encoder", text.text_encoder]
    command += ["--pooling", "mean", "--threshold", "0.9", "--max-pairs", "all", "--json"]
    ray = ["--engine", "ray", "--workers", "2"]
    # Two agents of Ray outlive it while they look for it: a minute, unless they are told less.
    hurried = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}
    with forked.start(CIT, *command, *ray, "--out", run, environment=hurried) as first:
        while not list(tmp_path.glob(".staging-run/*/index/manifest.json")):
            assert first.poll() is None
            time.sleep(0.05)
        below = descendants(first.pid)
        assert len(below) > 3
        os.kill(first.pid, signal.SIGKILL)
    done = forked.run(CIT, *command, *ray, "--out", run)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scanned"] == pool.num_images
    here = tmp_path / "here"
    assert forked.run(CIT, *command, "--out", here).returncode == 0
    assert Run.open(run).read("selections").equals(Run.open(here).read("selections"))
    deadline = time.monotonic() + 240
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []
