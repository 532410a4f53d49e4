"""Every format, cut and flipped at many bytes: reading it or verifying it tells, each time."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import plant
from jobs import FIELDS, JOBS, make_world
from tiny import make_config

from cit_curate.curation.scores.score_range import ScoreRange
from cit_curate.curation.scores.staged import ScoreFile, read_scores
from cit_curate.errors import BadInputError, DamagedError
from cit_curate.pool.build import blocks, reading
from cit_curate.pool.check import check_pool
from cit_curate.pool.pool import Pool
from cit_curate.run.exports.counts_import import import_counts
from cit_curate.run.exports.export import export_counts
from cit_curate.run.ledger import Run
from cit_train.loop.recovery.find import find_damage
from cit_train.outer_loop import train

# Damaged bytes of each file, in the fast tests and in the slow ones.
FEW, MANY = 3, 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the jobs read."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is left in the middle of its second outer step."""
    out = tmp_path_factory.mktemp("out") / "run"
    with pytest.MonkeyPatch.context() as patch:
        plant({"moment": "train", "update": 5, "act": "raise"}, patch.setattr)
        with pytest.raises(RuntimeError, match="planted"):
            train(make_config(world, **FIELDS), out)
    assert (out / "mid_step.json").is_file()
    return out


@pytest.fixture(scope="module")
def staged(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What killed jobs leave beside their results."""
    out = tmp_path_factory.mktemp("staged")
    for name in ("curating", "pooling", "pooling_yfcc"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
            (out / name).mkdir()
            JOBS[name](world, out / name)
    return out


def damages(content: bytes, seed: str, count: int) -> list[bytes]:
    """The content cut, and with one bit flipped, at so many places each; the ends among them."""
    rng = random.Random(seed)
    size = len(content)
    places = [0, size - 1, *(rng.randrange(size) for _ in range(count - 2))]
    found = [content[:place] for place in places]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        found.append(bytes(flipped))
    return found


def assert_told(path: Path, tells: Callable[[], object], count: int) -> None:
    """No damage of a file goes unnoticed: `tells` is true, or raises that it is damaged."""
    content = path.read_bytes()
    try:
        for number, damaged in enumerate(damages(content, path.name, count)):
            path.write_bytes(damaged)
            try:
                told = tells()
            except DamagedError:
                told = True
            assert told, (
                path,
                number,
                [a for a in range(len(damaged)) if damaged[a] != content[a]],
            )
    finally:
        path.write_bytes(content)
    try:
        assert not tells(), f"{path} is whole"
    except DamagedError as error:
        raise AssertionError from error


OF_RUN = [
    *("metrics.jsonl", "status.json"),
    *("config.json", "environment.json", "head.json", "metadata.json", "mid_step.json"),
    "manifests/step=000000.json",
    *(
        f"{name}/step=000000/lane=00000.parquet"
        for name in ("selections", "near_misses", "rounds", "used", "rejects")
    ),
    *("shards/step=000000/lane00000-000001.tar", "shards/step=000000/lane00000-000001.json"),
    *("shards/step=000000/lane00000.json", "shards/step=000000/lane00000.rejects.json"),
    *("shards/step=000001/lane00000-000000.tar", "index/manifest.json", "index/vectors-*.npy"),
    *(f"checkpoints/update-000003/{name}" for name in ("config.json", "model.safetensors")),
    *(f"checkpoints/update-000003/{name}" for name in ("manifest.json", "trainer.json")),
    *(f"checkpoints/update-000003/{name}.json" for name in ("tokenizer", "tokenizer_config")),
    "checkpoints/update-000003/processor_config.json",
    "checkpoints/update-000003/optimizer.safetensors",
    "checkpoints/update-000005/model.safetensors",
    *(f"mid_step/step=000001/lane=00000{name}" for name in (".json", "-selected.parquet")),
    *(f"mid_step/step=000001/lane=00000-{name}.parquet" for name in ("surplus", "near_misses")),
    *("features/*/part-????????????????.npy", "features/*/part-*.keys.npy"),
]


def sweep_run(run: Path, name: str, count: int) -> None:
    path = sorted(run.glob(name))[0]

    def tells() -> object:
        found = find_damage(Run(run))
        return found.damage or [note for note in found.notes if str(path) in note]

    assert_told(path, tells, count)


@pytest.mark.parametrize("name", OF_RUN)
@pytest.mark.faults("L5", "S1", "K2", "E5")
def test_a_few_damaged_bytes_of_a_run_are_told(run: Path, name: str) -> None:
    sweep_run(run, name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_RUN)
@pytest.mark.faults("L5", "S1", "K2", "E5")
def test_many_damaged_bytes_of_a_run_are_told(run: Path, name: str) -> None:
    sweep_run(run, name, MANY)


def test_no_file_of_a_run_is_left_out(run: Path) -> None:
    def kind(path: Path) -> str:
        return re.sub(r"[0-9a-f]{8,}|[0-9]+", "N", str(path.relative_to(run)))

    swept = {kind(path) for name in OF_RUN for path in run.glob(name)}
    files = {kind(path) for path in run.rglob("*") if path.is_file() and not path.is_symlink()}
    assert files - swept == set()


def sweep_pool(world: Path, name: str, count: int) -> None:
    pool = world / "data" / "pool"
    path = pool / name
    assert_told(path, lambda: check_pool(pool).damage, count)


OF_POOL = ["pool.json", "pairs/part-000000.parquet", "rejects/part-000000.parquet"]


@pytest.mark.parametrize("name", OF_POOL)
@pytest.mark.faults("P3")
def test_a_few_damaged_bytes_of_a_pool_are_told(world: Path, name: str) -> None:
    sweep_pool(world, name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_POOL)
@pytest.mark.faults("P3")
def test_many_damaged_bytes_of_a_pool_are_told(world: Path, name: str) -> None:
    sweep_pool(world, name, 4 * MANY)


def sweep_staged(staged: Path, name: str, count: int) -> None:
    path = sorted(staged.glob(name))[0]

    def tells() -> None:
        if path.suffix == ".arrow" and path.parent.name.startswith("lane="):
            start, stop = path.stem.split("-")
            positions = ScoreRange(None, 0, int(start), int(stop))  # type: ignore[arg-type]
            read_scores(ScoreFile(path.parents[1], positions))
        elif path.name == "end.json":
            reading._num_blocks(path.parent)
        else:
            blocks.open_block(path)

    assert_told(path, tells, count)


OF_STAGING = [
    "curating/.staging-run/*/lane=00000/*.arrow",
    "pooling/.staging-pool/*/block-000000.arrow",
    "pooling/.staging-pool/*/end.json",
    "pooling_yfcc/.staging-pool/*/block-000000.arrow",
]


@pytest.mark.parametrize("name", OF_STAGING)
@pytest.mark.faults("P7", "P10")
def test_a_few_damaged_bytes_of_staging_are_told(staged: Path, name: str) -> None:
    sweep_staged(staged, name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_STAGING)
@pytest.mark.faults("P7", "P10")
def test_many_damaged_bytes_of_staging_are_told(staged: Path, name: str) -> None:
    sweep_staged(staged, name, 4 * MANY)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
@pytest.mark.faults("Q4")
def test_damaged_bytes_of_exported_counts_are_told_by_whoever_imports_them(
    world: Path, tmp_path: Path, suffix: str, count: int
) -> None:
    pool = Pool.open(world / "data" / "pool")
    path = tmp_path / f"counts{suffix}"
    export_counts(Run.open(world / "exported" / "run"), path, pool=pool)

    def tells() -> bool:
        try:
            import_counts(path, pool, tmp_path / "imported", overwrite=True)
        except BadInputError:
            return True
        return False

    assert_told(path, tells, count)
