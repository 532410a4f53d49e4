"""Two real pools in one run: what the ledger says, and that each pair is found where it lies."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tiny import COLOURS, make_config, make_pool, picture

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.command import curate as curate_command
from cit_curate.curation.curate import curate
from cit_curate.errors import ConfigError, ShortfallError
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.run import commands
from cit_curate.run.exports.export import export_counts, export_webdataset
from cit_curate.run.ledger import Run
from cit_curate.run.pools import run_pool
from cit_curate.run.report.page import build_report
from cit_curate.run.shards import read_shard, shard_entry
from cit_curate.run.subset import subset_pool
from cit_curate.sources.columns import Columns
from cit_train.config import RunConfig
from cit_train.inner_loop.trainer import TrainState, UpdateReport
from cit_train.loop.watcher import Watcher
from cit_train.outer_loop import train
from cit_train.resolve import one_pool_flag
from cit_train.train_command import main


@pytest.fixture(scope="module")
def pools(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pools `shapes` (96 images, of the tiny world) and `discs` (12).

    The discs have the image ids 0000 to 0011, as the first shapes do, and other pictures.
    """
    folder = tmp_path_factory.mktemp("pools")
    make_pool(folder / "data")
    lines = ["image_id,image,title"]
    for number in range(12):
        colour = list(COLOURS)[number % 4]
        name = f"{number:04d}.png"
        (folder / name).write_bytes(picture(colour, "disc", 500 + number))
        lines.append(f"{number:04d},{name},a {colour} disc thing")
    (folder / "discs.csv").write_text("\n".join(lines) + "\n")
    columns = Columns(image_id="image_id", image="image", text=("title",))
    Pool.build([folder / "discs.csv"], folder / "discs", columns=columns)
    columns = Columns(image_id="image_id", image="image", text=("title", "tag"))
    Pool.build([folder / "data" / "pairs.csv"], folder / "shapes", columns=columns)
    return folder


def mixed(pools: Path) -> list[str]:
    return [f"{pools}/shapes=0.75", f"{pools}/discs=0.25"]


def curated(world: Path, pools: Path, out: Path, num_pairs: int | None, **rules: object) -> Run:
    return curate(
        PoolMixture.open(mixed(pools)),
        MetadataConfig(metadata=str(world / "classes.txt")),
        TextTowerConfig(text_encoder=str(world / "text")),
        CurateConfig(**{"threshold": 0.5, "batch_size": 16, **rules}),
        out,
        num_pairs=num_pairs,
        device="cpu",
    )


@pytest.fixture(scope="module")
def run(world: Path, pools: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One whole pass, in which nearly everything is kept."""
    out = tmp_path_factory.mktemp("several") / "run"
    return curated(world, pools, out, None, threshold=-0.99)


@pytest.mark.parametrize("collection", ["unique", "multiset"])
def test_both_collections_keep_pairs_of_both_pools(
    world: Path, pools: Path, tmp_path: Path, collection: str
) -> None:
    run = curated(world, pools, tmp_path / "run", None, threshold=-0.99, collection=collection)
    [row] = run.read("rounds").to_pylist()
    # 96 shapes are 3 quarters of 128 captions, so 12 discs come 32 times.
    assert (row["scanned"], row["pool_passes"]) == (128, 1.0)
    kept = 12 if collection == "unique" else 32
    assert row["pools"] == [
        {"pool": "shapes", "scanned": 96, "kept": 96, "selected": 96},
        {"pool": "discs", "scanned": 32, "kept": kept, "selected": kept},
    ]
    assert sum(pool["kept"] for pool in row["pools"]) == row["kept"]
    assert run.read("selections")["pool"].value_counts().to_pylist() == [
        {"values": "shapes", "counts": 96},
        {"values": "discs", "counts": kept},
    ]


def test_the_scan_of_each_pool_is_that_of_a_run_of_its_own(
    world: Path, pools: Path, tmp_path: Path
) -> None:
    run = curated(world, pools, tmp_path / "run", None, threshold=-0.99, aug_tag=False)
    alone = curate(
        Pool.open(pools / "shapes"),
        MetadataConfig(metadata=str(world / "classes.txt")),
        TextTowerConfig(text_encoder=str(world / "text")),
        CurateConfig(threshold=-0.99, batch_size=16, aug_tag=False),
        tmp_path / "alone",
        num_pairs=None,
        device="cpu",
    )
    own = run.read("selections").filter(pc.equal(run.read("selections")["pool"], "shapes"))
    only = alone.read("selections")
    for column in ("pair_key", "similarity", "metadata_id", "encoder"):
        assert own[column].to_pylist() == only[column].to_pylist(), column
    assert only["pool"].unique().to_pylist() == ["shapes"]
    assert "pools" not in alone.config


def test_config_names_path_fingerprint_and_weight_of_each_pool(run: Run, pools: Path) -> None:
    assert run.config["pools"] == [
        {
            "name": name,
            "path": str(pools / name),
            "fingerprint": Pool.open(pools / name).fingerprint,
            "weight": weight,
        }
        for name, weight in (("shapes", 0.75), ("discs", 0.25))
    ]


def test_a_shortfall_suggests_a_threshold_that_repeats_do_not_spoil(
    world: Path, pools: Path, tmp_path: Path
) -> None:
    rules = {"threshold": 1.0, "min_ratio": 0.0, "batch_size": 8, "aug_tag": False}
    with pytest.raises(ShortfallError) as caught:
        curated(world, pools, tmp_path / "short", 30, **rules)
    suggested = caught.value.suggested_threshold
    assert suggested is not None
    rules["threshold"] = suggested
    assert len(curated(world, pools, tmp_path / "enough", 30, **rules).read("selections")) == 30


def test_the_same_key_in_two_pools_is_two_pairs_everywhere(
    run: Run, pools: Path, tmp_path: Path
) -> None:
    mixture = PoolMixture.open(mixed(pools))
    keys = run.read("selections")["pair_key"].to_pylist()
    both = {key for key in keys if keys.count(key) == 2}
    assert both, "the discs have image ids of the shapes"
    for refused in (run.counts, lambda: export_counts(run, tmp_path / "c.json", pool=mixture)):
        with pytest.raises(ConfigError, match=f"pair key {min(both)} .*column pool"):
            refused()
    assert not (tmp_path / "c.json").exists()
    assert export_counts(run, tmp_path / "c.parquet", pool=mixture) == len(keys)
    rows = pa.parquet.read_table(tmp_path / "c.parquet")
    assert rows.schema.names[:2] == ["pool", "pair_key"]
    for row in rows.to_pylist():
        assert row["caption"].endswith("disc thing") == (row["pool"] == "discs")
    export_counts(run, tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text().startswith("pool,pair_key,image_id,text_key,count\n")


def test_json_counts_have_plain_keys_while_no_two_pools_share_one(
    world: Path, pools: Path, tmp_path: Path
) -> None:
    lines = (pools / "discs.csv").read_text().replace("\n00", "\nd0")
    (pools / "renamed.csv").write_text(lines)
    columns = Columns(image_id="image_id", image="image", text=("title",))
    Pool.build([pools / "renamed.csv"], tmp_path / "discs", columns=columns, overwrite=True)
    (tmp_path / "shapes").symlink_to(pools / "shapes")
    run = curated(world, tmp_path, tmp_path / "run", None, threshold=-0.99)
    assert export_counts(run, tmp_path / "c.json") == 96 + 12
    counts = json.loads((tmp_path / "c.json").read_text())
    assert counts == run.counts()
    assert "d000_title" in counts


def test_exported_shards_have_each_pairs_own_picture(run: Run, pools: Path, tmp_path: Path) -> None:
    mixture = PoolMixture.open(mixed(pools))
    result = export_webdataset(run, mixture, tmp_path / "out", pairs_per_shard=500)
    assert (result.num_pairs, result.num_shards) == (96 + 12, 1)
    [tar] = (tmp_path / "out").glob("*.tar")
    discs = 0
    for sample in read_shard(tar.parent, shard_entry(tar)):
        if sample.info["pool"] == "discs":
            assert sample.image == (pools / f"{sample.info['image_id']}.png").read_bytes()
            discs += 1
        else:
            assert "disc thing" not in sample.caption
    assert discs == 12
    # What `--selection` asks for: one pool of what several gave.
    again = Pool.build([tmp_path / "out"], tmp_path / "pool", columns=Columns(image_id="__key__"))
    assert (again.num_pairs, again.num_images) == (96 + 12, 96 + 12)


def test_queries_and_the_report_tell_the_pools_apart(
    run: Run, pools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run_pool(run)
    assert isinstance(source, PoolMixture)
    sql = "SELECT pool, count(*) AS pairs FROM pairs JOIN counts USING (pool, pair_key) GROUP BY 1"
    with run.database(source) as database:
        rows = database.rows(f"{sql} ORDER BY 1")
    assert rows == [{"pool": "discs", "pairs": 12}, {"pool": "shapes", "pairs": 96}]
    commands.query(run.path, "SELECT unnest(pools).scanned AS n FROM rounds", csv=True)
    assert capsys.readouterr().out == "n\n96\n32\n"
    page = build_report(run, source, tmp_path / "r.html").read_text()
    assert "shapes (75 % of the scan)" in page
    assert "12 kept of 32 scanned, 37.5 %" in page
    assert 'title="discs: 0' in page


def test_moved_pools_are_named_one_by_one(
    run: Run, pools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for pool in config["pools"]:
        pool["path"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    moved = Run.open(tmp_path / "run")
    assert run_pool(moved) is None
    both = (f"{pools}/discs", f"{pools}/shapes")
    commands.query(moved.path, "SELECT count(*) AS n FROM pairs", pool=both, csv=True)
    assert capsys.readouterr().out == f"n\n{Pool.open(pools / 'shapes').num_pairs + 12}\n"
    with pytest.raises(ConfigError, match="made from the pools shapes, discs"):
        run_pool(moved, both[:1])


def trained(world: Path, pools: Path, **fields: object) -> RunConfig:
    return make_config(world, pool=tuple(mixed(pools)), threshold=0.3, **fields)


class StoppingWatcher(Watcher):
    """Interrupts training after an update."""

    def trained(self, state: TrainState, report: UpdateReport) -> None:
        if state.update == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_on_two_pools_resumes_to_the_same_ledger_and_only_with_the_same_weights(
    world: Path, pools: Path, tmp_path: Path
) -> None:
    whole = train(trained(world, pools), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(trained(world, pools), tmp_path / "run", watcher=StoppingWatcher())
    other = [f"{pools}/shapes=0.5", f"{pools}/discs=0.5"]
    config = make_config(world, pool=tuple(other), threshold=0.3)
    with pytest.raises(ConfigError, match=r"pools:.*0\.75.*then.*0\.5.*now"):
        train(config, tmp_path / "run", resume=True)
    run = train(trained(world, pools), tmp_path / "run", resume=True)
    for table in ("selections", "near_misses", "rounds", "used", "rejects"):
        assert run.read(table).equals(whole.read(table)), table
    used = run.read("used")
    assert set(used["pool"].to_pylist()) == {"shapes", "discs"}
    columns = ["outer_step", "pool", "pair_key"]
    selected = run.read("selections").select(columns).to_pylist()
    assert sorted(map(str, selected)) == sorted(map(str, used.select(columns).to_pylist()))
    for tar in sorted((run.path / "shards").rglob("*.tar")):
        for sample in read_shard(tar.parent, shard_entry(tar)):
            assert sample.caption.endswith("disc thing") == (sample.info["pool"] == "discs")


def test_what_is_cut_out_of_one_pool_is_not_cut_out_of_several(
    world: Path, pools: Path, tmp_path: Path, run: Run
) -> None:
    for field in ({"max_sample": 5}, {"selection": str(run.path)}):
        with pytest.raises(ConfigError, match=r"cit export RUN PAIRS\) and build a pool"):
            train(trained(world, pools, **field), tmp_path / "run")
    with pytest.raises(ConfigError, match="selected pairs of several pools"):
        subset_pool(Pool.open(pools / "shapes"), tmp_path / "pool", run=run)
    assert not (tmp_path / "run").exists()


def test_a_pool_without_images_among_several_is_named(
    world: Path, pools: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("image_id,title\n1,a red disc\n")
    Pool.build([tmp_path / "t.csv"], tmp_path / "texts", columns=Columns(text=("title",)))
    both = (f"{pools}/shapes=1", f"{tmp_path}/texts=1")
    with pytest.raises(ConfigError, match="texts names no images"):
        train(make_config(world, pool=both), tmp_path / "run")


def test_the_commands_take_pools_with_weights(
    world: Path, pools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = mixed(pools)
    for flags in (["--pool", first, "--pool", second], [f"--pool={first}", "--pool", second]):
        main(["default", *flags, "--print-config"])
        assert json.loads(capsys.readouterr().out)["pool"] == [first, second]
    assert one_pool_flag(["--pool", "A", "--out", "B"]) == ["--pool", "A", "--out", "B"]
    curate_command(
        (first, second),
        MetadataConfig(metadata=str(world / "classes.txt")),
        TextTowerConfig(text_encoder=str(world / "text")),
        dry_run=True,
        json=True,
        device="cpu",
    )
    assert json.loads(capsys.readouterr().out)["captions"] == 128
    with pytest.raises(ConfigError, match="POOL is missing"):
        curate_command(())


def test_shares_survive_the_config(run: Run) -> None:
    source = run_pool(run)
    assert isinstance(source, PoolMixture)
    assert [each.share for each in source] == [Fraction(3, 4), Fraction(1, 4)]
