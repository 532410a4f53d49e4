"""Two passes keep what exact scores keep: the same pairs, similarities and reasons."""

from importlib.resources import files

import numpy as np
import pyarrow as pa
import pytest
import torch
from caption_lists import ListOrder, caption_table, open_scan
from small_tower import small_tower

from cit_curate.config import CurateConfig, EngineConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curate import curate
from cit_curate.curation.scores import two_pass
from cit_curate.curation.selection import keep_similar, lowest_kept
from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import parse_entries
from cit_curate.metadata.vectors import embed_metadata
from cit_curate.text_encoder.encoder import TextEncoder
from indexes.build import build_index
from indexes.protocol import MetadataIndex

ENTRIES = parse_entries(["a large cat", "a river in Europe", "musical instrument", "red fruit"])
RULES = CurateConfig(order="sequential", texts="every", batch_size=256)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(small_tower(tmp_path_factory.mktemp("tower")), device="cpu")


@pytest.fixture(scope="module")
def captions() -> list[str]:
    lines = files("timm.data").joinpath("_info/imagenet_synset_to_definition.txt").read_text()
    definitions = list(dict.fromkeys(line.partition("\t")[2] for line in lines.splitlines()))
    shuffled = np.random.default_rng(0).permutation(definitions)[:2_000].tolist()
    return shuffled + shuffled[:100]  # some repeat


@pytest.fixture(scope="module")
def index(encoder: TextEncoder) -> MetadataIndex:
    return build_index(embed_metadata(encoder.embed, ENTRIES, ["{}"]), "exact")


def kept(
    captions: list[str], encoder: TextEncoder, index: MetadataIndex, **rules: object
) -> pa.Table:
    config = CurateConfig(**{"order": "sequential", "texts": "every", "batch_size": 256, **rules})
    scan = open_scan(config, ListOrder(caption_table(captions)), ENTRIES, encoder, index)
    return scan.take(None)


@pytest.mark.parametrize("share", [0.01, 0.3])
@pytest.mark.parametrize("min_ratio", [0.0, 0.003, 0.05])
def test_the_same_pairs_are_kept_for_the_same_reasons(
    share: float, min_ratio: float, captions: list[str], encoder: TextEncoder, index: MetadataIndex
) -> None:
    similarity = index.search(encoder.embed(captions)).similarity[:, 0]
    rules = {"threshold": float(np.quantile(similarity, 1 - share)), "min_ratio": min_ratio}
    exact = kept(captions, encoder, index, **rules)
    assert len(exact) > 10
    assert kept(captions, encoder, index, curation="two-pass", **rules).equals(exact)


def test_only_what_may_be_kept_is_embedded_twice(
    captions: list[str], encoder: TextEncoder, index: MetadataIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    similarity = index.search(encoder.embed(captions)).similarity[:, 0]
    threshold = float(np.quantile(similarity, 0.97))
    embedded = []
    embed = TextEncoder.embed_on_device

    def counted(self: TextEncoder, texts: object) -> torch.Tensor:
        embedded.append(len(texts))
        return embed(self, texts)

    monkeypatch.setattr(TextEncoder, "embed_on_device", counted)
    kept(captions, encoder, index, curation="two-pass", threshold=threshold, min_ratio=0.0)
    near = (similarity > threshold - 1.5 * two_pass.MARGIN).sum()
    assert (similarity > threshold).sum() * 0.9 <= sum(embedded) <= near
    assert sum(embedded) < len(captions) / 2


def test_a_first_pass_that_errs_by_more_than_the_margin_decides_nothing(
    captions: list[str],
    encoder: TextEncoder,
    index: MetadataIndex,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    similarity = index.search(encoder.embed(captions)).similarity[:, 0]
    rules = {"threshold": float(np.quantile(similarity, 0.97)), "min_ratio": 0.0}
    exact = kept(captions, encoder, index, **rules)
    monkeypatch.setattr(two_pass, "MARGIN", 1e-7)
    assert kept(captions, encoder, index, curation="two-pass", **rules).equals(exact)
    assert "more than half the margin" in caplog.text


def test_a_tower_without_a_first_pass_is_scored_exactly(
    captions: list[str],
    index: MetadataIndex,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded = TextEncoder.load(small_tower(tmp_path_factory.mktemp("tower")), device="cpu")
    padded = TextEncoder(loaded.tower, loaded.tokenizer, packed=False)
    assert padded.bfloat16 is None
    some = captions[:300]
    rules = {"threshold": 0.5, "min_ratio": 0.05}
    exact = kept(some, padded, index, **rules)
    assert kept(some, padded, index, curation="two-pass", **rules).equals(exact)
    assert "one pass is made" in caplog.text


@pytest.mark.parametrize("min_ratio", [0.0, 0.1, 0.5])
def test_the_lowest_kept_similarity_is_that_of_the_rule(min_ratio: float) -> None:
    rng = np.random.default_rng(1)
    batches = [rng.random(n).astype(np.float32) for n in (7, 64, 1)]
    lowest = lowest_kept(
        np.concatenate(batches), [len(b) for b in batches], threshold=0.9, min_ratio=min_ratio
    )
    start = 0
    for batch in batches:
        own = lowest[start : start + len(batch)]
        chosen, _ = keep_similar(batch, threshold=0.9, min_ratio=min_ratio)
        assert (batch[chosen] >= own[chosen]).all()
        assert len(set(own.tolist())) == 1
        start += len(batch)


def test_two_passes_work_in_one_process(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="--curation two-pass works in one process"):
        curate(
            None,  # refused before the pool is looked at
            MetadataConfig(metadata="x"),
            TextTowerConfig(),
            CurateConfig(curation="two-pass"),
            tmp_path,
            num_pairs=1,
            engine=EngineConfig(workers=2),
        )
