"""Scores made ahead of the scan: the same ledger from any engine, and after a kill."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_tower import small_tower

from cit_curate.config import CurateConfig, EngineConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curator import Curator, curate
from cit_curate.curation.scan_ledger import round_row
from cit_curate.curation.scores import staged
from cit_curate.curation.scores.staged import (
    EmbedTask,
    ScoredLane,
    ScoreTask,
    Tower,
    read_scores,
    score,
)
from cit_curate.errors import ConfigError, DamagedError, ShortfallError
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.sources.columns import Columns
from cit_curate.text_encoder.encoder import TextEncoder

GOLDEN = Path(__file__).parents[3] / "golden"
METADATA = MetadataConfig(metadata=str(GOLDEN / "labels.txt"))
RULES = CurateConfig(
    threshold=0.9, min_ratio=0.1, batch_size=16, max_passes=2, lanes=2, texts="every"
)


@pytest.fixture(scope="module", autouse=True)
def small_units():
    before, staged.UNIT_CAPTIONS = staged.UNIT_CAPTIONS, 100
    yield
    staged.UNIT_CAPTIONS = before


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> TextTowerConfig:
    return small_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture
def cpu(text) -> Tower:
    return Tower(text, "cpu")


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Pool:
    folder = tmp_path_factory.mktemp("pool")
    lines = (GOLDEN / "captions.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "a.csv").write_text("".join(lines[:301]), encoding="utf-8")
    columns = Columns(text_key="text_key", caption="caption")
    return Pool.build([folder / "a.csv"], folder / "pool", columns=columns)


def ledger(run: Path) -> dict[str, str]:
    files = [*run.glob("*/step=*/*.parquet"), *run.glob("manifests/*.json"), run / "config.json"]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def whole(pool, text, tmp_path_factory) -> dict[str, str]:
    """The ledger of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    curate(pool, METADATA, text, RULES, out, num_pairs=None, device="cpu")
    assert [path.name for path in out.parent.iterdir()] == ["run"]
    return ledger(out)


@pytest.mark.faults("E10")
@pytest.mark.parametrize("num_pairs", [None, 20])
def test_scores_ahead_select_what_the_sequential_scan_selects(pool, text, cpu, num_pairs, tmp_path):
    curator = Curator(pool, METADATA, RULES)
    encoder = TextEncoder.load(text, device="cpu")
    index = curator.refresh(encoder)
    ahead = curator.scores_ahead(map, tmp_path / "staging", cpu, encoder, index)
    one, two = (
        curator.run(
            encoder,
            index,
            [PoolCursor()] * 2,
            outer_step=0,
            update=0,
            num_pairs=num_pairs,
            scores=given,
        )
        for given in (None, ahead)
    )
    for sequential, scored in zip(one, two, strict=True):
        assert sequential.rows.equals(scored.rows)
        assert sequential.scan.cursor == scored.scan.cursor
        assert sequential.scan.near_misses.equals(scored.scan.near_misses)
        rounds = [round_row(each.scan, selected=0) for each in (sequential, scored)]
        assert rounds[0].equals(rounds[1])


def scored_scan(pool, cpu, folder: Path) -> staged.Scan:
    curator = Curator(pool, METADATA, RULES)
    encoder = staged.embedder(map, cpu, curator.prompts)
    lane = curator.scores_ahead(map, folder, cpu, encoder, curator.refresh(encoder))(0)
    assert isinstance(lane, ScoredLane)
    return lane._tasks[0].scan


def test_a_unit_is_scored_once_and_a_cut_one_is_damaged(pool, cpu, tmp_path):
    task = ScoreTask(scored_scan(pool, cpu, tmp_path / "staging"), lane=1, start=30, stop=75)
    score(task)
    similarity, nearest = read_scores(task)
    assert (similarity.dtype, nearest.dtype, len(similarity)) == (np.float32, np.int64, 45)
    made = task.path.stat().st_mtime_ns
    score(task)
    assert task.path.stat().st_mtime_ns == made
    task.path.write_bytes(task.path.read_bytes()[:-20])
    with pytest.raises(DamagedError, match="remove it"):
        read_scores(task)


@pytest.mark.faults("E5")
def test_a_worker_with_other_weights_is_refused(pool, cpu, tmp_path):
    scan = scored_scan(pool, cpu, tmp_path / "staging")
    scan = replace(scan, encoder="another")
    with pytest.raises(ConfigError, match="not the same for all workers"):
        score(ScoreTask(scan, 0, 0, 10))


def test_after_a_shortfall_another_threshold_needs_no_new_scores(pool, text, whole, tmp_path):
    strict = replace(RULES, threshold=0.99, min_ratio=0.0)
    with pytest.raises(ShortfallError):
        curate(pool, METADATA, text, strict, tmp_path / "run", num_pairs=1_000, device="cpu")
    units = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".staging-run/*/lane*/*")}
    assert len(units) >= 4  # of the first lane, which fell short

    def must_be_known(task: ScoreTask) -> None:
        assert task.path not in units

    original, staged.score = staged.score, lambda task: (must_be_known(task), original(task))
    try:
        curate(pool, METADATA, text, RULES, tmp_path / "run", num_pairs=None, device="cpu")
    finally:
        staged.score = original
    assert ledger(tmp_path / "run") == whole
    assert not list(tmp_path.glob(".*"))


def test_scores_of_another_scan_are_not_taken(pool, cpu, tmp_path, caplog):
    first = scored_scan(pool, cpu, tmp_path / "staging")
    curator = Curator(pool, METADATA, replace(RULES, seed=1))
    encoder = staged.embedder(map, cpu, curator.prompts)
    curator.scores_ahead(map, tmp_path / "staging", cpu, encoder, curator.refresh(encoder))
    assert not first.folder.exists()
    assert "scoring starts over" in caplog.text


def test_without_curation_nothing_is_scored(pool, text, tmp_path):
    rules = CurateConfig(curation="none", batch_size=16)
    run = curate(pool, METADATA, text, rules, tmp_path / "run", num_pairs=40, device="cpu")
    assert len(run.read("selections")) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.faults("E10", "L8")
@pytest.mark.slow
def test_spawned_processes_write_the_same_ledger(pool, text, whole, tmp_path):
    engine = EngineConfig(workers=2)
    options = {"num_pairs": None, "device": "cpu", "engine": engine}
    curate(pool, METADATA, text, RULES, tmp_path / "run", **options)
    assert ledger(tmp_path / "run") == whole


CURATE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_staged as t
t.staged.UNIT_CAPTIONS = 100
original = t.staged.score
t.staged.score = lambda task: (original(task), time.sleep(0.3))
text = t.TextTowerConfig(text_encoder=sys.argv[4], pooling="mean")
t.curate(t.Pool.open(Path(sys.argv[2])), t.METADATA, text, t.RULES, Path(sys.argv[3]),
         num_pairs=None, device="cpu")
"""


@pytest.mark.slow
def test_a_killed_curation_goes_on_where_it_was(pool, text, whole, tmp_path):
    out = tmp_path / "run"
    arguments = [str(Path(__file__).parent), str(pool.path), str(out), text.text_encoder]
    with subprocess.Popen([sys.executable, "-c", CURATE, *arguments]) as running:
        while len(list(tmp_path.glob(".staging-run/*/lane*/[0-9]*"))) < 3:
            assert running.poll() is None
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
    units = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".staging-run/*/lane*/[0-9]*")}
    assert not out.exists()
    seen: dict[Path, int] = {}
    original = staged.read_scores

    def remember(task: ScoreTask) -> tuple[np.ndarray, np.ndarray]:
        seen[task.path] = task.path.stat().st_mtime_ns
        return original(task)

    staged.read_scores = remember
    try:
        curate(pool, METADATA, text, RULES, out, num_pairs=None, device="cpu")
    finally:
        staged.read_scores = original
    assert units.items() <= seen.items()
    assert ledger(out) == whole


def test_known_texts_have_the_vectors_of_the_encoder(cpu):
    known = staged.embedder(map, cpu, ["a cat", "a dog", "a cat"])
    vectors = staged.embed(EmbedTask(cpu, ("a dog",))).vectors
    assert np.array_equal(known.embed(["a dog"]), vectors)
