"""A subset is a pool like any other, of exactly the pairs that were asked for."""

import csv
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_fixtures import image_bytes

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_curate.pool import format as pool_format
from cit_curate.pool import parts as pool_parts
from cit_curate.pool.build.shown import summary
from cit_curate.pool.check import verify_pool
from cit_curate.pool.commands import info
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor, pair_key, split_pair_key
from cit_curate.run.exports.counts_import import import_counts
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import SCHEMAS
from cit_curate.run.subset import subset_pool
from cit_curate.sources.columns import Columns
from cit_curate.storage.lock import writer_lock

NUM_IMAGES = 150


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """150 images with 1 to 4 texts each, in row groups of at most 7 rows and parts of 28."""
    folder = tmp_path_factory.mktemp("pool") / "year=2024 [a] 'b'"
    (folder / "images").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        (folder / "images" / f"{number}.png").write_bytes(image_bytes(size=(number + 1, 2)))
    with (folder / "a.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image_id", "key", "caption", "image", "score"))
        for image in range(NUM_IMAGES):
            for text in range(1 + image % 4):
                row = (f"i_{image:03d}", f"k-{text}", f"{image} {text}", f"images/{image}.png")
                writer.writerow((*row, f"s{image}"))
    columns = Columns(text_key="key", caption="caption", image="image", extra=("score",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_format, "ROW_GROUP_ROWS", 7)
        patch.setattr(pool_format, "MIN_ROW_GROUPS", 1)
        patch.setattr(pool_parts, "PART_ROWS", 28)
        pool = Pool.build([folder / "a.csv"], folder / "pool", columns=columns)
    assert len(pool.parts) > 10
    return pool


def rows_of(pool: Pool) -> list[dict[str, object]]:
    tables = [pq.read_table(pool.path / part.file.path, partitioning=None) for part in pool.parts]
    rows: list[dict[str, object]] = pa.concat_tables(tables).to_pylist()
    return rows


def keys_of(pool: Pool) -> list[str]:
    return [pair_key(str(row["image_id"]), str(row["text_key"])) for row in rows_of(pool)]


def run_of(path: Path, steps: Sequence[Sequence[str]], *, pool: Pool | None = None) -> Run:
    """A run that selected these pair keys, outer step by outer step, in this order."""
    config = {"pool": str(pool.path), "pool_fingerprint": pool.fingerprint} if pool else {}
    run = Run.create(path, config=config, environment={})
    for step, keys in enumerate(steps):
        names = ("image_id", "text_key")
        rows = [
            {
                **dict.fromkeys(SCHEMAS["selections"].names),
                "outer_step": step,
                "pair_key": key,
                **dict(zip(names, split_pair_key(key), strict=True)),
            }
            for key in keys
        ]
        table = pa.Table.from_pylist(rows, schema=SCHEMAS["selections"])
        files = (run.write_table("selections", table, outer_step=step, lane=0),)
        commit = Commit(outer_step=step, update=0, cursors=(PoolCursor(),), files=files)
        run.commit(commit)
    return run


def some_keys(pool: Pool, count: int, seed: int = 0) -> list[str]:
    return random.Random(seed).sample(keys_of(pool), count)


def test_a_subset_has_each_selected_pair_once_in_the_order_of_the_pool(
    tmp_path: Path, pool: Pool
) -> None:
    first, second = some_keys(pool, 60), some_keys(pool, 40, seed=1)
    run = run_of(tmp_path / "run", [[*first, *first[:9]], second], pool=pool)
    subset = subset_pool(pool, tmp_path / "subset", run=run)
    wanted = {*first, *second}
    assert rows_of(subset) == [
        row for row in rows_of(pool) if f"{row['image_id']}_{row['text_key']}" in wanted
    ]
    assert subset.num_pairs == len(wanted)
    assert subset.num_images == len({key.rpartition("_")[0] for key in wanted})
    assert sum(subset.manifest.text_keys.values()) == len(wanted)
    assert verify_pool(subset.path) == []
    assert [path.name for path in subset.path.parent.iterdir() if path.name[0] == "."] == []


def test_a_subset_of_imported_counts_has_their_pairs(tmp_path: Path, pool: Pool) -> None:
    keys = some_keys(pool, 50)
    file = tmp_path / "c.json"
    file.write_text(json.dumps({**dict.fromkeys(keys, 3), "i_999_k-0": 2}))
    run = import_counts(file, pool, tmp_path / "run").run
    subset = subset_pool(pool, tmp_path / "subset", run=run)
    assert keys_of(subset) == [key for key in keys_of(pool) if key in set(keys)]


def test_sources_images_and_extra_columns_are_those_of_the_pool(tmp_path: Path, pool: Pool) -> None:
    subset = subset_pool(
        pool, tmp_path / "subset", run=run_of(tmp_path / "run", [some_keys(pool, 30)])
    )
    for name in ("name", "columns", "cleaning", "sources", "num_records"):
        assert getattr(subset.manifest, name) == getattr(Pool.open(pool.path).manifest, name)
    for row in rows_of(subset):
        data = subset.image_bytes(str(row["image_uri"]), str(row["source"]))
        number = int(str(row["image_id"]).removeprefix("i_"))
        assert data == image_bytes(size=(number + 1, 2))
        assert row["score"] == f"s{number}"


@pytest.mark.parametrize("max_images", [1, 2, 3, 8, 77, 149, 150, 1000])
def test_max_images_keeps_the_first_images_with_all_their_texts(
    tmp_path: Path, pool: Pool, max_images: int
) -> None:
    subset = subset_pool(pool, tmp_path / "subset", max_images=max_images)
    first = [f"i_{number:03d}" for number in range(min(max_images, NUM_IMAGES))]
    assert keys_of(subset) == [key for key in keys_of(pool) if key.rpartition("_")[0] in first]
    assert subset.num_images == len(first)


def test_a_run_and_max_images_together_keep_what_both_keep(tmp_path: Path, pool: Pool) -> None:
    keys = some_keys(pool, 120)
    run = run_of(tmp_path / "run", [keys], pool=pool)
    subset = subset_pool(pool, tmp_path / "subset", run=run, max_images=40)
    small = [key for key in keys_of(pool) if key in set(keys) and int(key[2:5]) < 40]
    assert keys_of(subset) == small
    late = run_of(tmp_path / "late", [[key for key in keys_of(pool) if int(key[2:5]) > 100]])
    with pytest.raises(ConfigError, match=r"selected no pair of .* within its first 3 pairs"):
        subset_pool(pool, tmp_path / "none", run=late, max_images=2)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_a_scan_visits_each_selected_pair_once_a_pass(
    tmp_path: Path, pool: Pool, order: str
) -> None:
    keys = some_keys(pool, 90)
    run = run_of(tmp_path / "run", [keys], pool=pool)
    subset = subset_pool(pool, tmp_path / "subset", run=run)
    seen: Counter[tuple[int, str]] = Counter()
    for lane in range(2):
        scan = MixedOrder(
            PoolMixture.of(subset), seed=1, lane=lane, num_lanes=2, order=order, texts="every"
        )
        for batch in scan.batches(PoolCursor(), 16, 2 * scan.length):
            names = (batch.rows["image_id"].to_pylist(), batch.rows["text_key"].to_pylist())
            visits = zip(batch.pass_index.tolist(), *names, strict=True)
            seen.update((visit, pair_key(image, text)) for visit, image, text in visits)
    assert seen == Counter((visit, key) for visit in range(2) for key in keys)


def test_the_same_subset_is_the_same_bytes_and_is_made_once(tmp_path: Path, pool: Pool) -> None:
    run = run_of(tmp_path / "run", [some_keys(pool, 60)], pool=pool)
    one = subset_pool(pool, tmp_path / "one", run=run)
    two = subset_pool(pool, tmp_path / "two", run=run)
    files = sorted([*one.path.glob("*/*.parquet"), one.path / "pool.json"])
    for file in files:
        assert file.read_bytes() == (two.path / file.relative_to(one.path)).read_bytes()
    times = [file.stat().st_mtime_ns for file in files]
    rows: list[int] = []
    again = subset_pool(pool, one.path, run=run, progress=lambda what, done: rows.append(done))
    assert again.fingerprint == one.fingerprint
    assert [file.stat().st_mtime_ns for file in files] == times
    assert rows == []


@pytest.mark.faults("P7")
def test_a_subset_that_was_killed_before_its_catalog_gets_one(tmp_path: Path, pool: Pool) -> None:
    subset = subset_pool(pool, tmp_path / "subset", max_images=5)
    (subset.path / "pool.duckdb").unlink()
    subset_pool(pool, tmp_path / "subset", max_images=5)
    assert verify_pool(subset.path) == []


def test_what_it_was_made_from_stands_in_the_manifest_and_only_there(
    tmp_path: Path, pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", [some_keys(pool, 20)], pool=pool)
    subset = subset_pool(pool, tmp_path / "subset", run=run, max_images=100)
    origin = subset.manifest.subset
    assert origin is not None
    assert origin == Pool.open(subset.path).manifest.subset
    assert (origin.run, origin.max_images) == ("run", 100)
    assert origin.pool_fingerprint == pool.fingerprint
    assert pool.manifest.subset is None
    assert summary(subset)["subset"]["run"] == "run"
    info(subset.path)
    assert f"cut out of {pool.name}: pairs of the run run, first 100 images" in " ".join(
        capsys.readouterr().out.split()
    )
    assert "subset" not in json.loads((pool.path / "pool.json").read_text())


@pytest.mark.faults("G2c")
def test_another_subset_is_replaced_only_when_asked_and_a_pool_never(
    tmp_path: Path, pool: Pool
) -> None:
    out = tmp_path / "subset"
    subset_pool(pool, out, max_images=5)
    with pytest.raises(ConfigError, match=r"holds another subset .*max_images 5"):
        subset_pool(pool, out, max_images=6)
    assert subset_pool(pool, out, max_images=6, overwrite=True).num_images == 6
    part = out / "pairs" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="is damaged"):
        subset_pool(pool, out, max_images=6)
    assert subset_pool(pool, out, max_images=6, overwrite=True).num_images == 6
    for path in (pool.path, tmp_path):
        with pytest.raises(ConfigError, match=r"a pool of its own|holds no pool"):
            subset_pool(pool, path, max_images=6, overwrite=True)
    with writer_lock(tmp_path / "subset"), pytest.raises(ResourceError, match="is held"):
        subset_pool(pool, out, max_images=6)


def test_pairs_that_the_pool_lacks_are_counted_and_named(tmp_path: Path, pool: Pool) -> None:
    keys = [*some_keys(pool, 9), "z_k-0", "y_k-0", "i_000_other", "x_k-1"]
    message = r"4 of the 13 pairs that .* as i_000_other, x_k-1, y_k-0"
    foreign = run_of(tmp_path / "foreign", [keys])
    with pytest.raises(ConfigError, match=f"{message}.* cit import-counts"):
        subset_pool(pool, tmp_path / "subset", run=foreign)
    own = run_of(tmp_path / "own", [keys], pool=pool)
    with pytest.raises(DamagedError, match=f"{message}.* made from this pool"):
        subset_pool(pool, tmp_path / "subset", run=own)
    assert not (tmp_path / "subset").exists()


def test_a_run_without_a_commit_and_a_useless_call_are_refused(tmp_path: Path, pool: Pool) -> None:
    with pytest.raises(ConfigError, match=r"selected nothing yet"):
        subset_pool(pool, tmp_path / "subset", run=run_of(tmp_path / "run", []))
    with pytest.raises(ConfigError, match="max_images is 0"):
        subset_pool(pool, tmp_path / "subset", max_images=0)
    with pytest.raises(ValueError, match="give a run"):
        subset_pool(pool, tmp_path / "subset")


@pytest.mark.faults("P3")
def test_a_damaged_part_of_the_pool_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image_id,t\n" + "".join(f"{n},x {n}\n" for n in range(500)))
    small = Pool.build([tmp_path / "a.csv"], tmp_path / "pool", columns=Columns(text=("t",)))
    part = small.path / "pairs" / "part-000000.parquet"
    content = bytearray(part.read_bytes())
    content[4:400] = bytes(396)
    part.write_bytes(content)
    run = run_of(tmp_path / "run", [["7_t"]], pool=small)
    for chosen in ({"run": run}, {"max_images": 10}):
        with pytest.raises(DamagedError, match="cannot be read"):
            subset_pool(small, tmp_path / "subset", **chosen)  # type: ignore[arg-type]
