"""A cascade keeps nearly what exact curation keeps, says what it missed, and is as repeatable."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pytest
import torch
from caption_lists import ListOrder, caption_table, open_scan
from small_tower import small_tower

from cit_curate.config import (
    IN_PROCESS,
    CurateConfig,
    EngineConfig,
    MetadataConfig,
    TextTowerConfig,
)
from cit_curate.curation.curate import curate
from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.scan_ledger import round_row
from cit_curate.curation.scores import cascade
from cit_curate.curation.scores.proxies import Cut, Int8Tower, fit_token_map, guess_apart
from cit_curate.curation.scores.token_match import fit_token_match
from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import parse_entries
from cit_curate.metadata.vectors import embed_metadata
from cit_curate.pool.pool import Pool
from cit_curate.processor import has_int8
from cit_curate.run.ledger_tables import SCHEMAS
from cit_curate.run.report.page import build_report
from cit_curate.sources.columns import Columns
from cit_curate.text_encoder import encoder as encoder_module
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.tokens import Tokens
from indexes.build import build_index
from indexes.protocol import MetadataIndex

NUM_CAPTIONS = 12_000
ENTRIES = parse_entries(["a large cat", "a river in Europe", "musical instrument", "red fruit"])
RULES = CurateConfig(
    curation="cascade", min_ratio=0.0, order="sequential", texts="every", batch_size=256,
    calibration_captions=2_048, audit_ratio=0.02,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def int8_on_every_processor() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "has_int8", lambda: True)
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(small_tower(tmp_path_factory.mktemp("tower")), device="cpu")


@pytest.fixture(scope="module")
def captions() -> list[str]:
    lines = files("timm.data").joinpath("_info/imagenet_synset_to_definition.txt").read_text()
    definitions = dict.fromkeys(line.partition("\t")[2] for line in lines.splitlines())
    # They come by kind; what is learned on the first must hold for all.
    shuffled = np.random.default_rng(0).permutation(list(definitions))
    return shuffled[:NUM_CAPTIONS].tolist()


@pytest.fixture(scope="module")
def index(encoder: TextEncoder) -> MetadataIndex:
    return build_index(embed_metadata(encoder.embed, ENTRIES, ["{}"]), "exact")


@pytest.fixture(scope="module")
def similarity(encoder: TextEncoder, index: MetadataIndex, captions: list[str]) -> np.ndarray:
    return index.search(encoder.embed(captions)).similarity[:, 0]


def scan_of(
    captions: list[str], encoder: TextEncoder, index: MetadataIndex, rules: CurateConfig
) -> LaneScan:
    return open_scan(rules, ListOrder(caption_table(captions)), ENTRIES, encoder, index)


# A tower of random weights is no linear map of its tokens: that proxy alone rules out little.
@pytest.mark.parametrize(("proxy", "most"), [("both", 0.5), ("tokens", 1.0), ("int8", 0.5)])
@pytest.mark.parametrize("ratio", [0.01, pytest.param(0.15, marks=pytest.mark.slow)])
def test_nearly_all_that_passes_is_kept_and_less_is_scored(
    proxy, most, ratio, captions, encoder, index, similarity
) -> None:
    threshold = float(np.quantile(similarity, 1 - ratio))
    scan = scan_of(captions, encoder, index, replace(RULES, proxy=proxy, threshold=threshold))
    kept = scan.take(None)
    places = kept["scan_position"].to_numpy()
    passing = np.flatnonzero(similarity > np.float32(threshold))
    assert {*places} <= {*passing}
    np.testing.assert_array_equal(kept["similarity"].to_numpy(), similarity[places])
    assert len(places) / len(passing) >= 0.98
    (row,) = round_row(scan, selected=len(kept)).to_pylist()
    scored = row["scanned"] - row["skipped"]
    assert row["scanned"] == len(captions)
    assert scored == sum(row["histogram"])
    assert scored <= most * len(captions)
    assert 0 < row["audited"] < 0.3 * row["skipped"]
    (recall,) = row["recalls"]
    assert recall["kept"] == len(kept)
    assert recall["low"] <= len(places) / len(passing) <= recall["high"]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_real_tower_is_mostly_spared(captions, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on this processor: emulated, int8 takes 25 times as long as float32.
    monkeypatch.setattr(encoder_module, "has_int8", has_int8)
    text = TextTowerConfig(text_encoder="package:minilm", pooling="mean")
    encoder = TextEncoder.load(text, device="cpu")
    index = build_index(embed_metadata(encoder.embed, ENTRIES, ["{}"]), "exact")
    captions = captions[:6_000]
    similarity = index.search(encoder.embed(captions)).similarity[:, 0]
    threshold = float(np.quantile(similarity, 0.99))
    for proxy, most in (("both", 0.4 if has_int8() else 0.45), ("tokens", 0.45)):
        rules = replace(RULES, proxy=proxy, threshold=threshold)
        scan = scan_of(captions, encoder, index, rules)
        kept = scan.take(None)
        assert len(kept) / (similarity > np.float32(threshold)).sum() >= 0.98, proxy
        (row,) = round_row(scan, selected=len(kept)).to_pylist()
        assert row["scanned"] - row["skipped"] < most * len(captions), proxy


def test_the_best_of_each_batch_are_found_where_none_passes(
    captions, encoder, index, similarity
) -> None:
    rules = replace(RULES, threshold=0.999, min_ratio=0.02)
    scan = scan_of(captions, encoder, index, rules)
    kept = scan.take(None)["scan_position"].to_numpy()
    best = []
    for start in range(0, len(captions), 512):
        batch = similarity[start : start + 512]
        best += list(start + np.argsort(-batch, kind="stable")[: int(0.02 * len(batch))])
    assert len(kept) == len(best)
    assert len(np.intersect1d(kept, best)) / len(best) >= 0.97
    (row,) = round_row(scan, selected=len(kept)).to_pylist()
    assert [each["reason"] for each in row["recalls"]] == ["min_ratio"]
    assert row["skipped"] > 0.3 * len(captions)


@pytest.fixture(scope="module")
def rules(similarity: np.ndarray) -> CurateConfig:
    return replace(RULES, threshold=float(np.quantile(similarity, 0.95)))


@pytest.fixture(scope="module")
def whole(captions, encoder, index, rules) -> tuple[pa.Table, pa.Table]:
    scan = scan_of(captions, encoder, index, rules)
    return scan.take(None), round_row(scan, selected=0)


@pytest.mark.slow
def test_it_goes_on_from_any_place_with_the_same_pairs(
    captions, encoder, index, rules, whole
) -> None:
    scan = scan_of(captions, encoder, index, rules)
    rows = [scan.take(30), scan.take(30)]
    for size in (100, 1, 60):
        state = scan.state(rows[-1])
        scan = scan_of(captions, encoder, index, rules)
        scan.resume_from(state)
        rows.append(scan.take(size))
    expected = whole[0].slice(0, sum(map(len, rows)))
    assert pa.concat_tables(rows).equals(expected)


@pytest.mark.slow
def test_threads_do_not_show(captions, encoder, index, rules, whole) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        scan = scan_of(captions, encoder, index, rules)
        assert scan.take(None).equals(whole[0])
        assert round_row(scan, selected=0).equals(whole[1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_what_repeats_is_decided_by_its_place_and_not_by_what_is_known(
    captions, encoder, index, rules
) -> None:
    repeated = [*captions[:6_000], *captions[3_000:6_000]]
    scan = scan_of(repeated, encoder, index, rules)
    scan.take(None)
    again = scan_of(repeated, encoder, index, rules)
    state = again.state(again.take(50))
    fresh = scan_of(repeated, encoder, index, rules)
    fresh.resume_from(state)
    fresh.take(None)
    assert round_row(fresh, selected=0).equals(round_row(scan, selected=0))


def test_a_guess_is_of_its_caption_alone(captions, encoder, index) -> None:
    tokens = encoder.tokenize(captions[:3_000])
    vectors = encoder.embed(captions[:3_000])
    token_map, folds = fit_token_map(encoder, index, tokens, vectors)
    match, matched = fit_token_match(token_map, folds, tokens, vectors)
    assert encoder.int8 is not None
    for proxy in (token_map, match, Int8Tower(encoder.int8, index)):
        together = proxy.similarity(tokens)
        some = np.array([2_999, 5, 17])
        np.testing.assert_array_equal(proxy.similarity(tokens.take(some)), together[some])
    # Each was guessed by a map that had not seen it, which is not the final one.
    assert not np.array_equal(guess_apart(folds, tokens), token_map.similarity(tokens))
    assert not np.array_equal(matched, match.similarity(tokens))


@pytest.mark.parametrize("is_closer", [True, False])
def test_the_closer_guess_is_made_only_where_it_lets_through_less(
    is_closer, captions, encoder, index, similarity, rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Match:
        widening = 1.0

        def similarity(self, tokens: Tokens) -> np.ndarray:
            seen.append(len(tokens))
            return np.ones(len(tokens), np.float32)

    def fit(token_map, folds, tokens, vectors):
        if is_closer:
            return Match(), index.search(vectors).similarity[:, 0]
        return Match(), np.random.default_rng(0).random(len(tokens), np.float32)

    monkeypatch.setattr(cascade, "fit_token_match", fit)
    scan = scan_of(captions, encoder, index, replace(rules, proxy="tokens"))
    kept = scan.take(None)
    assert len(kept) >= 0.97 * (similarity > np.float32(rules.threshold)).sum()
    # Of what the map lets through alone.
    assert 0 < sum(seen) < len(captions) if is_closer else not seen


def test_the_cut_lets_through_all_but_the_share_that_may_be_lost() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.normal(0.3, 0.1, 20_000).astype(np.float32)
    guesses = (0.1 + 0.5 * similarity + rng.normal(0, 0.02, 20_000)).astype(np.float32)
    cut = Cut.fit(guesses, similarity, 0.5)
    # The line through the most similar ones is not flat, and is that of all.
    assert cut.expected == pytest.approx(0.1 + 0.5 * 0.5, abs=0.01)
    passing = guesses[similarity > 0.5]
    lost = (passing < cut.expected - cut.margin(0.05)).mean()
    assert lost == pytest.approx(0.05, abs=0.01)
    assert (passing < cut.expected - cut.margin(0.0)).sum() == 0
    # More pass than the errors are taken from at least, so the edge is the threshold.
    assert cut.edge == pytest.approx(cut.expected)
    let_through = (guesses >= cut.expected - cut.margin(0.05)).mean()
    assert cut.let_through(guesses, cut.margin(0.05)) == pytest.approx(let_through)


def test_a_pool_smaller_than_the_calibration_is_curated_exactly(
    captions, encoder, index, similarity, rules
) -> None:
    scan = scan_of(captions[:1_500], encoder, index, rules)
    kept = scan.take(None)["scan_position"].to_pylist()
    assert kept == np.flatnonzero(similarity[:1_500] > np.float32(rules.threshold)).tolist()
    (row,) = round_row(scan, selected=0).to_pylist()
    assert row["skipped"] == 0
    assert row["recalls"][0]["low"] == 1.0


@pytest.fixture
def pool(tmp_path) -> Iterator[Pool]:
    (tmp_path / "a.csv").write_text("image_id,title\n1,a cat\n2,a dog\n", encoding="utf-8")
    columns = Columns(image_id="image_id", image=None, text=("title",))
    return Pool.build([tmp_path / "a.csv"], tmp_path / "pool", columns=columns)


def test_several_workers_are_refused(pool, tmp_path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    metadata = MetadataConfig(metadata=str(tmp_path / "classes.txt"))
    text = small_tower(tmp_path / "tower")
    for engine in (EngineConfig(workers=2), EngineConfig(engine="ray")):
        with pytest.raises(ConfigError, match="one process"):
            curate(pool, metadata, text, RULES, tmp_path / "run", num_pairs=None, engine=engine)
    run = curate(
        pool, metadata, text, replace(RULES, threshold=0.0), tmp_path / "run",
        num_pairs=None, device="cpu", engine=IN_PROCESS,
    )  # fmt: skip
    assert "a cascade ruled out 0" in build_report(run, pool, tmp_path / "r.html").read_text()
    rounds = run.read("rounds")
    assert rounds.schema.names == SCHEMAS["rounds"].names
    assert rounds["skipped"].to_pylist() == [0]


@pytest.mark.parametrize(
    ("name", "value"), [("target_recall", 1.0), ("audit_ratio", 0.0), ("calibration_captions", 10)]
)
def test_what_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        CurateConfig(**{name: value})
