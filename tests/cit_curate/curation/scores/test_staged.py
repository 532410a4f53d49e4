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
from cit_curate.curation import curate as curate_module
from cit_curate.curation.curate import curate
from cit_curate.curation.curator import Curator
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.curation.scan_ledger import round_row
from cit_curate.curation.scores import staged
from cit_curate.curation.scores.exact import Scores
from cit_curate.curation.scores.score_range import (
    EmbedTask,
    PrecomputedEmbedder,
    ScoreRange,
    ScoreSource,
    Tower,
    embed_texts,
    pool_paths,
    score_range,
)
from cit_curate.curation.scores.staged import (
    ScoreFile,
    read_scores,
    staged_scores,
    write_scores,
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staged, "RANGE_CAPTIONS", 100)
        patch.setattr(curate_module, "STAGED_CAPTIONS", 0)
        yield


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
    sequential = curator.lane_scores(encoder, curator.refresh(encoder))
    ahead = scores_ahead(curator, cpu, tmp_path / "staging")
    step = OuterStep(0, 0, encoder.fingerprint)
    one, two = (
        curator.run(step, [PoolCursor()] * 2, scores, num_pairs=num_pairs)
        for scores in (sequential, ahead)
    )
    for sequential, scored in zip(one, two, strict=True):
        assert sequential.rows.equals(scored.rows)
        assert sequential.scan.cursor == scored.scan.cursor
        assert sequential.scan.near_misses.equals(scored.scan.near_misses)
        rounds = [round_row(each.scan, selected=0) for each in (sequential, scored)]
        assert rounds[0].equals(rounds[1])


def score_source(curator: Curator, cpu: Tower) -> ScoreSource:
    return ScoreSource(
        pools=pool_paths(curator.pools),
        config=curator.config,
        metadata=METADATA,
        metadata_fingerprint=curator.fingerprint,
        tower=cpu,
        index_kind="exact",
        encoder=TextEncoder.load(cpu.text, device="cpu").fingerprint,
    )


def scores_ahead(curator: Curator, cpu: Tower, folder: Path):
    index = curator.refresh(TextEncoder.load(cpu.text, device="cpu"))
    return staged_scores(map, folder, score_source(curator, cpu), index, curator.orders)


def test_a_unit_is_scored_once_and_a_cut_one_is_damaged(pool, cpu, tmp_path):
    source = score_source(Curator(pool, METADATA, RULES), cpu)
    file = ScoreFile(tmp_path, ScoreRange(source, lane=1, start=30, stop=75))
    write_scores(file)
    similarity, nearest, *_ = read_scores(file)
    assert (similarity.dtype, nearest.dtype, len(similarity)) == (np.float32, np.int64, 45)
    made = file.path.stat().st_mtime_ns
    write_scores(file)
    assert file.path.stat().st_mtime_ns == made
    file.path.write_bytes(file.path.read_bytes()[:-20])
    with pytest.raises(DamagedError, match="remove it"):
        read_scores(file)


@pytest.mark.faults("E5")
def test_a_worker_with_other_weights_is_refused(pool, cpu, tmp_path):
    source = score_source(Curator(pool, METADATA, RULES), cpu)
    with pytest.raises(ConfigError, match="not the same for all workers"):
        score_range(ScoreRange(replace(source, encoder="another"), 0, 0, 10))


@pytest.mark.faults("E5")
def test_a_worker_with_other_metadata_is_refused(pool, cpu):
    source = score_source(Curator(pool, METADATA, RULES), cpu)
    with pytest.raises(ConfigError, match="has changed since this run was opened"):
        score_range(ScoreRange(replace(source, metadata_fingerprint="another"), 0, 0, 10))


def test_stored_metadata_gives_the_scores_of_metadata_that_the_worker_embeds(pool, cpu, tmp_path):
    curator = Curator(pool, METADATA, RULES)
    scores_ahead(curator, cpu, tmp_path / "staging")
    source = score_source(curator, cpu)
    (index,) = (tmp_path / "staging").glob("*/index")
    stored, embedded = (
        score_range(ScoreRange(each, 0, 0, 40)) for each in (replace(source, index=index), source)
    )
    assert np.array_equal(stored.similarity, embedded.similarity)
    assert np.array_equal(stored.nearest, embedded.nearest)


def test_after_a_shortfall_another_threshold_needs_no_new_scores(pool, text, whole, tmp_path):
    strict = replace(RULES, threshold=0.99, min_ratio=0.0)
    with pytest.raises(ShortfallError):
        curate(pool, METADATA, text, strict, tmp_path / "run", num_pairs=1_000, device="cpu")
    units = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".staging-run/*/lane*/*")}
    assert len(units) >= 4  # of the first lane, which fell short

    def write_new(file: ScoreFile) -> None:
        assert file.path not in units
        write_scores(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staged, "write_scores", write_new)
        curate(pool, METADATA, text, RULES, tmp_path / "run", num_pairs=None, device="cpu")
    assert ledger(tmp_path / "run") == whole
    assert not list(tmp_path.glob(".*"))


def test_scores_of_another_scan_are_not_taken(pool, cpu, tmp_path, caplog):
    staging = tmp_path / "staging"
    scores_ahead(Curator(pool, METADATA, RULES), cpu, staging)
    (first,) = staging.iterdir()
    scores_ahead(Curator(pool, METADATA, replace(RULES, seed=1)), cpu, staging)
    assert not first.exists()
    assert "scoring starts over" in caplog.text


def test_a_short_scan_in_one_process_leaves_no_files_and_the_same_ledger(
    pool, text, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(curate_module, "STAGED_CAPTIONS", 10**9)
    monkeypatch.setattr(staged, "write_scores", None)  # nobody calls it
    curate(pool, METADATA, text, RULES, tmp_path / "run", num_pairs=None, device="cpu")
    assert ledger(tmp_path / "run") == whole


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
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parents[1])]
import test_staged as t
t.staged.RANGE_CAPTIONS, t.curate_module.STAGED_CAPTIONS = 100, 0
original = t.staged.write_scores
t.staged.write_scores = lambda file: (original(file), time.sleep(0.3))
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

    def remember(file: ScoreFile) -> Scores:
        seen[file.path] = file.path.stat().st_mtime_ns
        return original(file)

    staged.read_scores = remember
    try:
        curate(pool, METADATA, text, RULES, out, num_pairs=None, device="cpu")
    finally:
        staged.read_scores = original
    assert units.items() <= seen.items()
    assert ledger(out) == whole


def test_known_texts_have_the_vectors_of_the_encoder(cpu):
    texts = ("a cat", "a dog", "a cat")
    known = PrecomputedEmbedder(texts, embed_texts(EmbedTask(cpu, texts)))
    vectors = embed_texts(EmbedTask(cpu, ("a dog",))).vectors
    assert np.array_equal(known.embed(["a dog"]), vectors)
