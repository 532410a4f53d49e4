"""A scan that is saved as it goes: after a kill it makes the selection of one that was not."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_lists import ListOrder, WordEncoder, caption_table, open_scan
from small_tower import small_tower

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation import curate as curate_module
from cit_curate.curation import scan_journal
from cit_curate.curation.curate import curate
from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.scan_journal import ScanJournal
from cit_curate.curation.scan_ledger import round_row
from cit_curate.curation.scores.cascade import CascadeScores
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from indexes.build import build_index

RULES = CurateConfig(threshold=0.5, min_ratio=0.1, batch_size=16, texts="every", max_passes=2)
ANGLES = [str(angle) for angle in np.random.default_rng(0).integers(0, 360, 500)]


class KilledError(Exception):
    """The scan ends here, as a killed one does."""


@pytest.fixture(autouse=True)
def at_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_journal, "SAVE_SECONDS", 0.0)


def scan_angles(rules: CurateConfig = RULES) -> LaneScan:
    encoder = WordEncoder()
    index = build_index(encoder.embed(["0", "90"]), "exact")
    entries = [MetadataEntry("east"), MetadataEntry("north")]
    return open_scan(rules, ListOrder(caption_table(ANGLES)), entries, encoder, index)


def killed_after(num_batches: int) -> Callable[[object], None]:
    """A progress callback that ends a scan after so many batches."""
    left = iter(range(num_batches))

    def on_progress(totals: object) -> None:
        if next(left, None) is None:
            raise KilledError

    return on_progress


def kill(folder: Path, num_batches: int, num_pairs: int | None = None) -> None:
    with pytest.raises(KilledError), ScanJournal(folder, scan := scan_angles()) as journal:
        scan.take(num_pairs, killed_after(num_batches), journal.add)


@pytest.mark.parametrize("num_pairs", [None, 200])
@pytest.mark.parametrize("collection", ["unique", "multiset"])
def test_a_scan_that_is_killed_twice_makes_the_same_selection(tmp_path, num_pairs, collection):
    rules = replace(RULES, collection=collection)
    whole = scan_angles(rules)
    expected = whole.take(num_pairs)
    for num_batches in (3, 5):
        scan = scan_angles(rules)
        with pytest.raises(KilledError), ScanJournal(tmp_path, scan) as journal:
            scan.take(num_pairs, killed_after(num_batches), journal.add)
    scan = scan_angles(rules)
    with ScanJournal(tmp_path, scan) as journal:
        assert scan.totals.scanned == (3 + 1 + 5 + 1) * 32
        rows = scan.take(num_pairs, None, journal.add)
    assert rows.equals(expected)
    assert scan.near_misses.equals(whole.near_misses)
    assert round_row(scan, selected=0).equals(round_row(whole, selected=0))
    assert scan.cursor == whole.cursor


def test_a_lane_that_was_finished_is_not_scanned_again(tmp_path):
    whole = scan_angles()
    with ScanJournal(tmp_path, whole) as journal:
        expected = whole.take(200, None, journal.add)
    scan = scan_angles()
    with ScanJournal(tmp_path, scan) as journal:
        rows = scan.take(200, killed_after(0), journal.add)
    assert rows.equals(expected)
    assert scan.totals.scanned == whole.totals.scanned


def test_another_number_of_pairs_goes_on_from_the_same_save(tmp_path):
    kill(tmp_path, 4, num_pairs=200)
    scan = scan_angles()
    with ScanJournal(tmp_path, scan) as journal:
        assert scan.totals.scanned > 0
        assert scan.take(None, None, journal.add).equals(scan_angles().take(None))


@pytest.mark.parametrize("name", ["scan.json", "kept-000001.parquet", "near_misses-*.parquet"])
def test_from_a_damaged_save_the_scan_starts_over_and_says_so(tmp_path, caplog, name):
    kill(tmp_path, 4)
    (path,) = tmp_path.glob(f"lane=00000/{name}")
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    scan = scan_angles()
    with ScanJournal(tmp_path, scan) as journal:
        assert scan.totals.scanned == 0
        assert f"{path} " in caplog.text
        assert "the scan of lane 0 starts over" in caplog.text
        rows = scan.take(None, None, journal.add)
    assert rows.equals(scan_angles().take(None))


def test_files_grow_with_what_is_kept_and_not_with_its_square(tmp_path):
    scan = scan_angles()
    with ScanJournal(tmp_path, scan) as journal:
        rows = scan.take(None, None, journal.add)
    folder = tmp_path / "lane=00000"
    assert sum(entry.rows for entry in journal._kept) == len(rows)
    assert len(list(folder.glob("near_misses-*"))) == 1


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> TextTowerConfig:
    return small_tower(tmp_path_factory.mktemp("tower"))


def made_pool(folder: Path, num_captions: int) -> Pool:
    """A pool of so many definitions."""
    lines = files("timm.data").joinpath("_info/imagenet_synset_to_definition.txt").read_text()
    rows = [line.partition("\t") for line in lines.splitlines()[:num_captions]]
    table = {"image_id": [row[0] for row in rows], "title": [row[2] for row in rows]}
    pq.write_table(pa.table(table), folder / "a.parquet")
    columns = Columns(image_id="image_id", image=None, text=("title",))
    return Pool.build([folder / "a.parquet"], folder / "pool", columns=columns)


def ledger(run: Path) -> dict[str, str]:
    tables = [*run.glob("*/step=*/*.parquet"), *run.glob("manifests/*.json")]
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tables
    }


@pytest.mark.slow
def test_a_cascade_that_was_killed_goes_on_where_it_was(text, tmp_path, monkeypatch):
    pool = made_pool(tmp_path, 4_000)
    (tmp_path / "classes.txt").write_text("a large cat\na river in Europe\nred fruit\n")
    metadata = MetadataConfig(metadata=str(tmp_path / "classes.txt"))
    rules = CurateConfig(
        curation="cascade", threshold=0.9, min_ratio=0.02, batch_size=256,
        calibration_captions=1_100, audit_ratio=0.02, lanes=2,
    )  # fmt: skip
    monkeypatch.setattr(curate_module, "STAGED_CAPTIONS", 0)
    scored: list[int] = []
    original = CascadeScores.__call__

    def counted(self, window, totals):
        scored.append(sum(map(len, window)))
        return original(self, window, totals)

    monkeypatch.setattr(CascadeScores, "__call__", counted)

    def run(out: str, on_progress: Callable[..., None] = lambda *_: None) -> int:
        scored.clear()
        curate(
            pool, metadata, text, rules, tmp_path / out,
            num_pairs=None, device="cpu", on_progress=on_progress,
        )  # fmt: skip
        return sum(scored)

    def kill_in_second_lane(lane, totals):
        if lane == 1 and totals.scanned >= 1_024:
            raise KilledError

    assert run("whole") == 4_000
    with pytest.raises(KilledError):
        run("killed", kill_in_second_lane)
    assert list(tmp_path.glob(".staging-killed/*/lane=0000[01]/scan.json"))
    assert 0 < run("killed") <= 2_000 - 1_024
    assert ledger(tmp_path / "killed") == ledger(tmp_path / "whole")
    assert not list(tmp_path.glob(".staging-*"))


@pytest.mark.slow
def test_other_rules_start_a_cascade_over(text, tmp_path, monkeypatch, caplog):
    (tmp_path / "classes.txt").write_text("cat\n")
    metadata = MetadataConfig(metadata=str(tmp_path / "classes.txt"))
    rules = CurateConfig(curation="cascade", threshold=-1.0, batch_size=32)
    monkeypatch.setattr(curate_module, "STAGED_CAPTIONS", 0)
    inputs = (made_pool(tmp_path, 300), metadata, text)
    with pytest.raises(KilledError):
        curate(
            *inputs, rules, tmp_path / "run",
            num_pairs=100, device="cpu", on_progress=lambda *_: killed_after(0)(None),
        )  # fmt: skip
    curate(*inputs, replace(rules, seed=1), tmp_path / "run", num_pairs=100, device="cpu")
    curate(*inputs, replace(rules, seed=1), tmp_path / "other", num_pairs=100, device="cpu")
    assert "starts over" in caplog.text
    assert ledger(tmp_path / "run") == ledger(tmp_path / "other")
