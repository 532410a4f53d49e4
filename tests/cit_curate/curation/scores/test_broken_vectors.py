"""A caption without a usable vector is set aside, and the rest is selected as ever."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from caption_lists import ListOrder, WordEncoder, caption_table, open_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tower import small_tower

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation import lane_scan
from cit_curate.curation.curate import curate
from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.scan_ledger import round_row
from cit_curate.curation.scores import broken_vectors
from cit_curate.curation.scores.exact import ExactScores
from cit_curate.curation.scores.score_cache import ScoreCache
from cit_curate.curation.selection import keep_similar
from cit_curate.curation.threshold import sample_similarity
from cit_curate.errors import BrokenVectorsError, NotFiniteError
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from indexes.build import build_index

BROKEN = {"nan": np.nan, "inf": np.inf, "zero": 0.0}


class BreakingEncoder(WordEncoder):
    """Captions are angles, or one of `BROKEN`."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        broken = np.array([text in BROKEN for text in texts], dtype=np.bool_)
        vectors = super().embed([text if text not in BROKEN else "0" for text in texts])
        for row in np.flatnonzero(broken):
            vectors[row] = BROKEN[texts[row]]
        if broken.any():
            raise BrokenVectorsError("broken", vectors=vectors, broken=broken)
        return vectors


def scan_of(captions: Sequence[str], config: CurateConfig) -> LaneScan:
    order, index = (
        ListOrder(caption_table(captions)),
        build_index(WordEncoder().embed(["0"]), "exact"),
    )
    entries = [MetadataEntry("east")]
    return open_scan(config, order, entries, BreakingEncoder(), index, outer_step=3, lane=1)


@pytest.mark.faults("E1")
@settings(deadline=None)
@given(
    st.lists(st.integers(0, 90).map(str) | st.sampled_from([*BROKEN]), min_size=1, max_size=50),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, 30),
)
def test_the_rules_go_over_the_sound_captions_of_each_batch(
    captions: list[str], min_ratio: float, window: int
) -> None:
    captions = ["0", *captions]  # one is sound and similar
    config = CurateConfig(threshold=0.8, min_ratio=min_ratio, batch_size=3, on_shortfall="train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane_scan, "SMALLEST_WINDOW", window)
        patch.setattr(lane_scan, "LARGEST_WINDOW", window)
        scan = scan_of(captions, config)
        rows = scan.take(100)
    kept = []
    for start in range(0, len(captions), 6):
        batch = range(start, min(start + 6, len(captions)))
        sound = [place for place in batch if captions[place] not in BROKEN]
        angles = np.array([float(captions[place]) for place in sound])
        similarity = np.cos(np.radians(angles)).astype(np.float32)
        mask, _ = keep_similar(similarity, threshold=0.8, min_ratio=min_ratio)
        kept += np.array(sound)[mask].tolist() if sound else []
    assert rows["scan_position"].to_pylist() == kept
    broken = [place for place, caption in enumerate(captions) if caption in BROKEN]
    assert [row["scan_position"] for row in scan.reject_rows()] == broken
    assert scan.totals.scanned == len(captions)
    assert scan.totals.histogram.sum() == len(captions) - len(broken)


@pytest.mark.faults("E1")
def test_what_is_set_aside_has_its_key_reason_and_caption_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = CurateConfig(threshold=0.8, min_ratio=0.0, batch_size=2, curate_every=1)
    scan = scan_of(["0", "zero", "1", "nan"], config)
    with caplog.at_level(logging.WARNING):
        scan.take(2)
    first, second = scan.reject_rows()
    assert first == {
        "outer_step": 3,
        "lane": 1,
        "scan_position": 1,
        "pair_key": "00000001_title",
        "image_uri": "",
        "reason": "broken_vector",
        "detail": "no usable vector for 'zero'",
        "pool": None,
        "source": "s",
    }
    assert second["pair_key"] == "00000003_title"
    assert "2 of 4 captions" in caplog.text
    assert round_row(scan, selected=2)["scanned"].to_pylist() == [4]


@pytest.mark.faults("E1", "K3")
def test_a_scan_that_goes_on_from_a_state_sets_the_same_aside() -> None:
    config = CurateConfig(threshold=0.8, min_ratio=0.0, batch_size=1, curate_every=2)
    captions = ["0", "nan", "1", "2", "zero", "3", "4", "inf", "5"]
    straight = scan_of(captions, config)
    taken = straight.take(2)
    state = straight.state(taken)
    rest = straight.take(3)
    resumed = scan_of(captions, config)
    resumed.resume_from(state)
    assert resumed.take(3).equals(rest)
    assert resumed.reject_rows() == straight.reject_rows()
    assert resumed.totals.scanned == straight.totals.scanned


@pytest.mark.faults("E1")
@pytest.mark.parametrize(
    ("sound", "broken", "ends"),
    [
        (101, 100, False),
        (102, 101, True),
        (0, 1, True),
        (0, 5, True),
        (10_400, 105, False),
    ],
)
def test_over_the_limit_the_run_ends_with_7(sound: int, broken: int, ends: bool) -> None:
    config = CurateConfig(threshold=0.8, batch_size=64, on_shortfall="train")
    rest = ["0"] * max(sound - broken, 0)
    pairs = ["nan", "0"] if sound else ["nan"]
    scan = scan_of(pairs * broken + rest, config)
    if not ends:
        scan.take(None)
        assert len(scan.reject_rows()) == broken
        return
    with pytest.raises(NotFiniteError, match=rf"{broken} of {sound + broken} captions .*--lr") as e:
        scan.take(None)
    assert e.value.exit_code == 7
    assert "_title (no usable vector for 'nan')" in str(e.value)


@pytest.mark.faults("E1")
@pytest.mark.parametrize("window", [64, 4096])
@pytest.mark.slow
def test_a_hundred_in_a_row_end_the_run_with_7_however_many_were_sound(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_scan, "SMALLEST_WINDOW", window)
    monkeypatch.setattr(lane_scan, "LARGEST_WINDOW", window)
    config = CurateConfig(threshold=0.8, batch_size=32, on_shortfall="train")
    captions = ["0"] * 20_000 + ["nan"] * 99 + ["0"] * 20
    scan = scan_of([*captions, "inf"], config)
    scan.take(None)
    assert len(scan.reject_rows()) == 100
    with pytest.raises(NotFiniteError, match=r"captions \(100 in a row\)"):
        scan_of([*captions[:-20], "inf", *captions], config).take(None)


@pytest.mark.faults("E1")
def test_where_all_is_sound_nobody_looks_at_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_scan, "leave_out_broken", pytest.fail)
    monkeypatch.setattr(broken_vectors, "_reject", pytest.fail)
    config = CurateConfig(threshold=0.8, min_ratio=0.0, batch_size=2, curate_every=1)
    assert len(scan_of(["0", "1"], config).take(2)) == 2


@pytest.mark.faults("E1")
def test_a_sample_for_a_threshold_leaves_broken_captions_out() -> None:
    encoder, entries = BreakingEncoder(), [MetadataEntry("east")]
    index = build_index(encoder.embed(["0"]), "exact")
    scores = ExactScores(CurateConfig(), 0, encoder, index, ScoreCache())
    order = ListOrder(caption_table(["0", "nan", "60"]))
    sample = sample_similarity(order, scores, entries)
    np.testing.assert_allclose(sample.similarity, [1, 0.5], atol=1e-6)
    with pytest.raises(NotFiniteError, match="such as 'nan'"):
        sample_similarity(ListOrder(caption_table(["nan"])), scores, entries)


@pytest.mark.faults("E1")
def test_a_curation_goes_on_and_has_the_pair_in_its_rejects(
    tmp_path: Path, tower: TextTowerConfig
) -> None:
    captions = [f"a dog number {number}" for number in range(30)]
    captions[4] = captions[17] = "a cat"
    lines = [f"{number},{caption}" for number, caption in enumerate(captions)]
    (tmp_path / "a.csv").write_text("image_id,title\n" + "\n".join(lines))
    pool = Pool.build([tmp_path / "a.csv"], tmp_path / "pool", columns=Columns(text=("title",)))
    (tmp_path / "classes.txt").write_text("dog\n")
    config = CurateConfig(threshold=-1.0, order="sequential", batch_size=5)
    run = curate(
        pool,
        MetadataConfig(metadata=str(tmp_path / "classes.txt")),
        tower,
        config,
        tmp_path / "run",
        num_pairs=None,
        device="cpu",
    )
    rejects = run.read("rejects").to_pylist()
    assert [(row["pair_key"], row["reason"]) for row in rejects] == [
        ("4_title", "broken_vector"),
        ("17_title", "broken_vector"),
    ]
    assert run.read("rounds")["scanned"].to_pylist() == [30]
    assert len(run.read("selections")) == 28


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> TextTowerConfig:
    """A text tower in which one token has overflowed."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("tower")
    config = small_tower(folder)
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModel, AutoTokenizer))
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("cat")] = torch.nan
    model.save_pretrained(folder)
    return config
