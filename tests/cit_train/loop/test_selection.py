"""Training on a fixed selection, on the first images of a pool, and without curation."""

from pathlib import Path

import pytest
from tiny import make_config, make_pool

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curate import curate
from cit_curate.errors import ConfigError
from cit_curate.pool.pool import Pool
from cit_curate.run.ledger import Run
from cit_curate.run.report.page import build_report
from cit_train.outer_loop import train


@pytest.fixture(scope="module")
def selection(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A curation of the tiny pool, without training."""
    return curate(
        Pool.open(world / "data" / "pool"),
        MetadataConfig(metadata=str(world / "classes.txt")),
        TextTowerConfig(text_encoder=str(world / "text")),
        CurateConfig(threshold=0.9, min_ratio=0.1, batch_size=16),
        tmp_path_factory.mktemp("selection") / "run",
        num_pairs=20,
        device="cpu",
    )


def test_a_selection_is_trained_on_pair_by_pair_and_nothing_else(
    world: Path, selection: Run, tmp_path: Path
) -> None:
    # 8 x 3 pairs a step are no multiple of a scanned batch of 16.
    config = make_config(world, selection=str(selection.path), metadata="", curate_every=3)
    run = train(config, tmp_path / "run")
    chosen = set(selection.read("selections")["pair_key"].to_pylist())
    rejected = set(run.read("rejects")["pair_key"].to_pylist())
    counts = run.counts()
    assert set(counts) == chosen - rejected, "every pair of the selection that can be opened"
    assert sum(counts.values()) == 6 * 8
    assert max(counts.values()) - min(counts.values()) <= 1, "each in turn"
    rows = run.read("selections")
    assert set(rows["reason"].to_pylist()) == {"everything"}
    assert (run.path / "pool" / "pool.json").is_file()


@pytest.mark.slow
def test_a_resumed_run_on_a_selection_reuses_its_pool(
    world: Path, selection: Run, tmp_path: Path
) -> None:
    config = make_config(world, selection=str(selection.path))
    train(config, tmp_path / "run")
    before = (tmp_path / "run" / "pool" / "pool.json").stat().st_mtime_ns
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "pool" / "pool.json").stat().st_mtime_ns == before


def test_a_selection_of_another_pool_leaves_no_run_behind(
    world: Path, selection: Run, tmp_path: Path
) -> None:
    other = make_pool(tmp_path / "data", num_images=3)
    with pytest.raises(ConfigError):
        train(make_config(world, pool=str(other), selection=str(selection.path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("named", ["itself", "nowhere"])
def test_a_run_is_not_overwritten_for_a_selection_that_cannot_be_used(
    world: Path, tmp_path: Path, named: str
) -> None:
    run = train(make_config(world, max_updates=2), tmp_path / "itself")
    config = make_config(world, selection=str(tmp_path / named))
    with pytest.raises(ConfigError, match=named):
        train(config, run.path, overwrite=True)
    assert len(Run.open(run.path).commits()) == 1


@pytest.mark.slow
def test_max_sample_trains_on_the_first_images_of_the_pool(world: Path, tmp_path: Path) -> None:
    config = make_config(world, max_sample=30, curation="none")
    run = train(config, tmp_path / "run")
    images = {key.rpartition("_")[0] for key in run.counts()}
    assert images <= {f"{number:04d}" for number in range(30)}
    rejected = {key.rpartition("_")[0] for key in run.read("rejects")["pair_key"].to_pylist()}
    assert len(images | rejected) == 30, "all of them, since 48 pairs go round the 25 that open"


def test_without_curation_the_whole_pool_is_trained_on_and_needs_no_metadata(
    world: Path, tmp_path: Path
) -> None:
    config = make_config(world, curation="none", metadata="", curate_every=6)
    run = train(config, tmp_path / "run")
    [row] = run.read("rounds").to_pylist()
    assert row["selected"] == 48
    assert row["best_similarity"] is None
    assert sum(run.counts().values()) == 48
    assert not (run.path / "index").exists()


@pytest.mark.slow
def test_the_report_of_a_run_without_metadata_can_be_made(world: Path, tmp_path: Path) -> None:
    run = train(make_config(world, curation="none", metadata=""), tmp_path / "run")
    page = build_report(run, Pool.open(world / "data" / "pool"), tmp_path / "report.html")
    assert ">nan<" not in page.read_text(encoding="utf-8").lower()
