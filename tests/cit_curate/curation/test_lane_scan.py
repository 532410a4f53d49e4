"""The outer step against the golden selections, with the real text tower."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from caption_lists import ListOrder, WordEncoder, caption_table, open_scan
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.config import CurateConfig, TextTowerConfig
from cit_curate.curation import lane_scan
from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.scan_ledger import ledger_rows, round_row
from cit_curate.errors import ShortfallError
from cit_curate.metadata.entries import MetadataEntry, parse_entries
from cit_curate.metadata.vectors import embed_metadata
from cit_curate.records import PAIR_COLUMNS, PoolCursor
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.texts import Texts
from indexes.build import build_index
from indexes.protocol import MetadataIndex

GOLDEN = Path(__file__).parents[2] / "golden"


def scan_angles(captions: Sequence[str], config: CurateConfig, **kwargs: object) -> LaneScan:
    encoder = WordEncoder()
    index = build_index(encoder.embed(["0"]), "exact")
    order = ListOrder(caption_table(captions))
    return open_scan(config, order, [MetadataEntry("east")], encoder, index, **kwargs)


class Remembering:
    """The real encoder, asked for each text once: a vector does not depend on those beside it."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.fingerprint = encoder.fingerprint
        self.device = encoder.device
        self._encoder = encoder
        self._known: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        fresh = list(dict.fromkeys(text for text in texts if text not in self._known))
        self._known.update(zip(fresh, self._encoder.embed(fresh), strict=True))
        return np.stack([self._known[text] for text in texts])

    def embed_on_device(self, texts: Texts) -> np.ndarray:
        return self.embed(texts.array.to_pylist())


@pytest.fixture(scope="module")
def encoder() -> Remembering:
    return Remembering(TextEncoder.load(TextTowerConfig(text_encoder="package:minilm")))


@pytest.fixture(scope="module")
def golden_pool() -> ListOrder:
    with (GOLDEN / "captions.csv").open(newline="", encoding="utf-8") as stream:
        rows = [{**row, "image_uri": "", "source": "s"} for row in csv.DictReader(stream)]
    return ListOrder(pa.Table.from_pylist(rows).select(PAIR_COLUMNS))


@pytest.fixture(scope="module", params=["exact", "flat"])
def index(request: pytest.FixtureRequest, encoder: Remembering) -> MetadataIndex:
    entries = parse_entries((GOLDEN / "labels.txt").read_text().splitlines())
    return build_index(embed_metadata(encoder.embed, entries, ["{}"]), request.param)


@pytest.mark.parametrize("case", ["case_a", "case_b", "case_c"])
def test_the_golden_selection_comes_out(
    case: str, encoder: Remembering, golden_pool: ListOrder, index: MetadataIndex
) -> None:
    golden = json.loads((GOLDEN / f"{case}.json").read_text())
    config = CurateConfig(
        **{name: golden[name] for name in ("threshold", "min_ratio", "batch_size", "curate_every")},
        collection="multiset",
        order="sequential",
    )
    entries = parse_entries((GOLDEN / "labels.txt").read_text().splitlines())
    scan = open_scan(config, golden_pool, entries, encoder, index)
    kept = scan.take(config.budget)
    # Within a group of equal similarities another member may stand in for the expected one.
    ties = {key: tied[0] for tied in golden["tied_at_the_cut"] for key in tied}
    assert sorted(ties.get(key, key) for key in kept["pair_key"].to_pylist()) == sorted(
        ties.get(key, key) for key in golden["expected"]
    )
    assert kept["scan_position"].to_pylist() == sorted(kept["scan_position"].to_pylist())
    assert scan.totals.scanned == golden["num_scanned"]


def test_what_is_left_of_the_last_batch_is_dropped_and_the_next_step_reads_on() -> None:
    config = CurateConfig(threshold=0.9, min_ratio=0.0, batch_size=2, curate_every=1)
    first = scan_angles(["0", "1", "2", "90", "3", "4", "5", "6"], config)
    assert first.take(2)["scan_position"].to_pylist() == [0, 1]
    assert first.cursor == PoolCursor(0, 4)
    second = scan_angles(
        ["0", "1", "2", "90", "3", "4", "5", "6"], config, cursor=first.cursor, outer_step=1
    )
    assert second.take(2)["scan_position"].to_pylist() == [4, 5]


def test_a_replacement_is_the_next_kept_pair_in_arrival_order() -> None:
    config = CurateConfig(threshold=0.9, min_ratio=0.0, batch_size=1, curate_every=2)
    scan = scan_angles(["0", "1", "2", "90", "3", "90", "4", "5"], config)
    assert scan.take(3)["scan_position"].to_pylist() == [0, 1, 2]
    assert scan.take(1)["scan_position"].to_pylist() == [4]
    assert scan.take(2)["scan_position"].to_pylist() == [6, 7]


def test_batches_run_on_across_the_pass_boundary_and_unique_counts_a_pair_once() -> None:
    config = CurateConfig(threshold=0.9, min_ratio=0.0, batch_size=1, curate_every=4, max_passes=2)
    captions = ["0", "1", "90"]
    multiset = scan_angles(captions, replace(config, collection="multiset"))
    assert multiset.take(4)["scan_position"].to_pylist() == [0, 1, 3, 4]
    with pytest.raises(ShortfallError, match="gave 2 of 4 pairs"):
        scan_angles(captions, config).take(4)


def test_a_short_tail_of_a_bounded_pass_is_judged_by_its_own_size() -> None:
    config = CurateConfig(threshold=1.0, min_ratio=0.5, batch_size=2, curate_every=2)
    scan = scan_angles(["10", "20", "30", "40", "50", "60"], config)
    # Batches of 4 and of 2: the best 2, then the best int(0.5 * 2) = 1.
    assert scan.take(None)["scan_position"].to_pylist() == [0, 1, 4]


@pytest.mark.faults("E3")
def test_one_class_selects_by_its_own_similarity() -> None:
    config = CurateConfig(threshold=0.7, min_ratio=0.0, batch_size=1, curate_every=2)
    rows = scan_angles(["90", "0", "60", "30"], config).take(2)
    assert rows["scan_position"].to_pylist() == [1, 3]
    assert rows["metadata_id"].to_pylist() == [0, 0]


@pytest.mark.faults("E10")
@settings(deadline=None)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=2, max_size=2),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_the_size_of_what_is_embedded_at_once_changes_no_selection(
    captions: list[int], sizes: list[tuple[int, int]], min_ratio: float
) -> None:
    config = CurateConfig(threshold=0.8, min_ratio=min_ratio, batch_size=3, on_shortfall="train")
    seen = []
    for smallest, largest in sizes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lane_scan, "SMALLEST_WINDOW", smallest)
            patch.setattr(lane_scan, "LARGEST_WINDOW", largest)
            scan = scan_angles([str(angle) for angle in captions], config)
            try:
                rows = scan.take(20)
            except ShortfallError as error:
                seen.append(str(error))
            else:
                seen.append((rows.to_pylist(), scan.near_misses.to_pylist(), scan.cursor))
    assert seen[0] == seen[1]


@pytest.mark.faults("L1")
def test_nothing_passing_is_an_error_with_the_best_similarity_and_a_threshold_that_works() -> None:
    config = CurateConfig(threshold=0.99, min_ratio=0.0, batch_size=1, curate_every=2)
    captions = ["30", "40", "50", "60"]
    with pytest.raises(ShortfallError) as caught:
        scan_angles(captions, config).take(2)
    assert caught.value.best_similarity == pytest.approx(np.cos(np.radians(30)), abs=1e-6)
    suggested = caught.value.suggested_threshold
    assert suggested is not None
    assert len(scan_angles(captions, replace(config, threshold=suggested)).take(2)) == 2


@pytest.mark.faults("L1")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_pairs", [64, None])
def test_a_pool_of_noise_is_read_once_and_no_more_before_it_ends_with_3(
    encoder: Remembering, num_pairs: int | None
) -> None:
    letters = np.random.default_rng(0).choice([*"abcdefghijklmnopqrstuvwxyz "], (150, 16))
    captions = ["".join(row) for row in letters]
    entries = parse_entries((GOLDEN / "labels.txt").read_text().splitlines())
    config = CurateConfig(threshold=0.95, min_ratio=0.0, batch_size=16, curate_every=4)
    index = build_index(embed_metadata(encoder.embed, entries, ["{}"]), "exact")
    order = ListOrder(caption_table(captions))
    scan = open_scan(config, order, entries, encoder, index, cursor=PoolCursor(0, 100))
    with pytest.raises(ShortfallError) as caught:
        scan.take(num_pairs)
    assert caught.value.exit_code == 3
    assert (scan.totals.scanned, scan.totals.kept) == (150, 0)
    assert scan.cursor == PoolCursor(1, 100)
    best, suggested = caught.value.best_similarity, caught.value.suggested_threshold
    assert suggested is not None
    assert suggested < best < config.threshold
    told = str(caught.value)
    assert "150 captions (1 pool pass(es)) gave 0 of" in told
    assert f"the best similarity seen is {best:.3f}" in told
    assert f"--threshold {suggested:.2f} would have kept enough" in told


@pytest.mark.faults("L3")
def test_a_short_selection_is_given_when_the_policy_says_train() -> None:
    config = CurateConfig(
        threshold=0.9, min_ratio=0.0, batch_size=1, curate_every=9, on_shortfall="train"
    )
    assert len(scan_angles(["0", "1", "90"], config).take(9)) == 2


@pytest.mark.faults("L3")
@pytest.mark.parametrize(
    ("collection", "num_pairs", "passes"), [("unique", 2, 3), ("multiset", 6, 3)]
)
def test_the_round_says_how_a_pool_that_is_too_small_was_made_do(
    collection: Literal["unique", "multiset"], num_pairs: int, passes: int
) -> None:
    config = CurateConfig(
        threshold=0.9,
        min_ratio=0.0,
        batch_size=1,
        curate_every=9,
        max_passes=passes,
        collection=collection,
        on_shortfall="train",
    )
    scan = scan_angles(["0", "1", "90"], config)
    rows = scan.take(9)
    # Repeated: 0 and 1 of every pass; short: of the first one alone.
    assert rows["image_id"].to_pylist() == ["00000000", "00000001"] * (num_pairs // 2)
    (told,) = round_row(scan, selected=len(rows)).to_pylist()
    assert (told["selected"], told["scanned"], told["pool_passes"]) == (num_pairs, 9, passes)
    with pytest.raises(ShortfallError, match=f"gave {num_pairs} of 9 pairs"):
        scan_angles(["0", "1", "90"], replace(config, on_shortfall="error")).take(9)


def test_before_skip_until_everything_passes_unscored() -> None:
    config = CurateConfig(threshold=0.9, batch_size=1, curate_every=3, skip_until=5)
    kept = scan_angles(["0", "90", "180", "45"], config, update=4).take(3)
    assert kept["reason"].to_pylist() == ["everything"] * 3
    assert kept["similarity"].null_count == 3


def test_near_misses_are_the_best_that_were_not_kept() -> None:
    config = CurateConfig(threshold=0.9, min_ratio=0.0, batch_size=5, curate_every=1)
    captions = ["0", "60", "50", "70", "80", "85", "40", "30", "89", "1"]
    scan = scan_angles(captions, config)
    scan.take(None)
    misses = ledger_rows(scan, scan.near_misses, "near_misses")
    assert misses["scan_position"].to_pylist() == [7, 6, 2, 1, 3]


def test_the_ledger_rows_have_their_schema_and_the_round_adds_up() -> None:
    config = CurateConfig(threshold=0.9, min_ratio=0.0, batch_size=2, curate_every=1)
    scan = scan_angles(["0", "1", "2", "90"], config, outer_step=3)
    rows = ledger_rows(scan, scan.take(2), "selections")
    assert rows["outer_step"].to_pylist() == [3, 3]
    assert rows["metadata_text"].to_pylist() == ["east", "east"]
    row = round_row(scan, selected=2).to_pylist()[0]
    assert (row["scanned"], row["kept"], row["selected"]) == (4, 3, 2)
    assert sum(row["histogram"]) == 4


def test_without_curation_everything_is_taken_in_the_order_of_the_scan_as_often_as_it_takes() -> (
    None
):
    config = CurateConfig(curation="none", batch_size=2, threshold=1.0)
    scan = scan_angles(["0", "90", "45"], config)
    rows = scan.take(7)
    assert rows["image_id"].to_pylist() == [f"{row % 3:08d}" for row in range(7)]
    assert set(rows["reason"].to_pylist()) == {"everything"}
    assert rows["similarity"].null_count == 7
    more = scan.take(5)
    assert more["scan_position"].to_pylist() == [7, 8, 9, 10, 11], "nothing is dropped"
    assert scan.cursor == PoolCursor(4, 0)
    assert (scan.totals.scanned, scan.totals.kept) == (12, 12)


def test_without_curation_all_pairs_are_those_of_the_passes() -> None:
    config = CurateConfig(curation="none", batch_size=2, max_passes=2)
    rows = scan_angles(["0", "90", "45"], config).take(None)
    assert rows["scan_position"].to_pylist() == list(range(6))
