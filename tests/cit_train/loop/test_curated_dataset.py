"""The way of a curated dataset: curated, exported, imported again, and made a pool of its own."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import make_pool, make_text_tower

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curate import curate
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.pool.pool import Pool
from cit_curate.run import commands
from cit_curate.run.exports.counts_command import import_counts
from cit_curate.run.ledger import Run
from cit_curate.run.subset import subset_pool
from cit_train import cli


def selected(run: Run) -> set[str]:
    return set(run.read("selections")["pair_key"].to_pylist())


def pool_keys(pool: Pool) -> Sequence[str]:
    rows = pool.read_row_groups(range(len(pool.row_groups))).to_pylist()
    return [f"{row['image_id']}_{row['text_key']}" for row in rows]


@pytest.mark.faults("Q4")
def test_what_was_curated_comes_back_from_its_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = make_text_tower(tmp_path / "text")
    pool = Pool.open(make_pool(tmp_path / "data", num_images=40))
    (tmp_path / "classes.txt").write_text("red disc\nblue square\n")
    config = CurateConfig(threshold=1.0, min_ratio=0.4, batch_size=8, collection="multiset")
    run = curate(
        pool,
        MetadataConfig(metadata=str(tmp_path / "classes.txt")),
        TextTowerConfig(text_encoder=str(text)),
        config,
        tmp_path / "run",
        num_pairs=None,
        device="cpu",
    )
    commands.export(run.path, tmp_path / "counts.json")
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert sum(counts.values()) == len(run.read("selections"))

    capsys.readouterr()
    import_counts(tmp_path / "counts.json", pool.path, tmp_path / "imported", json=True)
    summary = json.loads(capsys.readouterr().out)
    imported = Run.open(tmp_path / "imported")
    assert summary["num_pairs"] == summary["num_entries"] == len(counts)
    assert (summary["num_uses"], summary["rejects"]) == (sum(counts.values()), {})
    assert imported.counts() == counts
    commands.export(imported.path, tmp_path / "again.json")
    first, again = (tmp_path / f"{name}.json" for name in ("counts", "again"))
    assert again.read_bytes() == first.read_bytes()
    commands.export(imported.path, tmp_path / "shards")
    commands.report(imported.path)
    assert (imported.path / "report.html").is_file()

    of_run = subset_pool(pool, tmp_path / "pool-1", run=run)
    of_import = subset_pool(pool, tmp_path / "pool-2", run=imported)
    assert of_run.fingerprint == of_import.fingerprint
    assert set(pool_keys(of_run)) == set(counts) == selected(run) == selected(imported)


@pytest.mark.faults("C3")
def test_the_summary_is_text_for_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = make_pool(tmp_path / "data", num_images=12)
    counts = {"0003_title": 4, "0004_tag": 1, "[red]\u001b[31m_x": 1}
    (tmp_path / "c.json").write_text(json.dumps(counts))
    import_counts(tmp_path / "c.json", pool, tmp_path / "[red]run")
    out = " ".join(capsys.readouterr().out.split())
    assert "[red]run: 2 of 3 entries are pairs of the pool, used 5 times" in out
    assert "set aside: not_in_pool 1" in out


def test_exit_codes_tell_usage_from_bad_input(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "data", num_images=12)
    texts = {"bad": '{"x": 1}', "cut": '{"0003_title": 1', "far": '{"9_title": 1}'}
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(BadInputError, match=f"{name}.json") as error:
            cli.run(
                [
                    "import-counts",
                    f"{tmp_path}/{name}.json",
                    f"--pool={pool}",
                    f"--out={tmp_path}/x",
                ]
            )
        assert error.value.exit_code == 3
    with pytest.raises(ConfigError, match="there is no file") as usage:
        cli.run(["import-counts", f"{tmp_path}/no.json", f"--pool={pool}", f"--out={tmp_path}/x"])
    assert usage.value.exit_code == 2
