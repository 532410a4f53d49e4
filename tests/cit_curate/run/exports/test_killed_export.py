"""An export that is killed by kill -9 at each moment at which it makes a file safe."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from run_fixtures import image_bytes, small_run

from cit_curate.pool.pool import Pool
from cit_curate.run.exports.export import export_counts, export_webdataset
from cit_curate.run.ledger import Run
from cit_curate.sources.columns import Columns


def real_pool(path: Path) -> Path:
    """The eight pairs of `small_run`, with their images in files."""
    path.mkdir()
    lines = ["image_id,image,t"]
    for index in range(8):
        (path / f"{index}.png").write_bytes(image_bytes())
        lines.append(f"{index:08d},{index}.png,caption {index}")
    (path / "table.csv").write_text("\n".join(lines) + "\n")
    Pool.build([path / "table.csv"], path / "pool", columns=Columns(image="image", text=("t",)))
    return path / "pool"


def export(run: Path, pool: Path, out: Path) -> None:
    if out.suffix:
        export_counts(Run.open(run), out, pool=Pool.open(pool))
    else:
        export_webdataset(Run.open(run), Pool.open(pool), out, pairs_per_shard=3)


def export_until(number: int, run: Path, pool: Path, out: Path) -> None:
    """Export, and be killed instead of the fsync of this number."""
    sync, times = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        times[0] += 1
        if times[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = fsync
    export(run, pool, out)


def content(out: Path) -> dict[str, bytes]:
    files = sorted(out.rglob("*")) if out.is_dir() else [out]
    return {path.name: path.read_bytes() for path in files if path.is_file()}


@pytest.fixture
def ended() -> Callable[..., int | None]:
    """Runs `export_until` in a process of its own, and gives its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cit_curate.run.exports.export", "cit_curate.pool"])

    def run(*args: object) -> int | None:
        process = context.Process(target=export_until, args=args)
        process.start()
        process.join(60)
        return process.exitcode

    return run


@pytest.mark.faults("Q4")
@pytest.mark.parametrize("name", ["counts.json", "counts.parquet", "counts.csv", "folder"])
@pytest.mark.slow
def test_a_killed_export_is_whole_or_absent_and_the_next_one_is_the_same_bytes(
    tmp_path: Path, ended: Callable[..., int | None], name: str
) -> None:
    run, pool = small_run(tmp_path / "run").path, real_pool(tmp_path / "data")
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    export(run, pool, tmp_path / "whole" / name)
    whole, out = content(tmp_path / "whole" / name), tmp_path / "killed" / name
    number = 1
    while (code := ended(number, run, pool, out)) != 0:
        assert code == -signal.SIGKILL
        if out.exists():
            assert content(out) == whole
            break  # what comes after the rename
        number += 1
    assert number > 1, "it must have been killed before the rename for this to mean something"
    if code:
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        export(run, pool, out)
    assert content(out) == whole
