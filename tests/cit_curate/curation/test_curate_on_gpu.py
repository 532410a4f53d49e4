"""A curation on a GPU keeps what the CPU keeps, but for captions at the threshold."""

from pathlib import Path

import pytest

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curate import curate
from cit_curate.pool.pool import Pool
from cit_curate.run.ledger import Run
from scripts.bench.caption_pools import caption_pool, distinct_captions
from scripts.bench.curation import LABELS

pytestmark = pytest.mark.gpu

RULES = CurateConfig(threshold=0.5, min_ratio=0.0, texts="every", aug_tag=False)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    captions = distinct_captions()
    return caption_pool(tmp_path_factory.mktemp("pool"), captions[:: len(captions) // 600][:600])


def curated(pool: Pool, out: Path, device: str, **changes: object) -> Run:
    text = TextTowerConfig(text_encoder="package:minilm", pooling="mean", vector_cache_bytes=0)
    rules = CurateConfig(**{**vars(RULES), **changes})
    metadata = MetadataConfig(metadata=str(LABELS))
    return curate(pool, metadata, text, rules, out, num_pairs=None, device=device)


def similarities(run: Run) -> dict[str, float]:
    rows = run.read("selections").to_pylist()
    return {row["pair_key"]: row["similarity"] for row in rows}


def test_a_gpu_keeps_what_the_cpu_keeps_but_at_the_threshold(
    gpu: str, pool: Pool, tmp_path: Path
) -> None:
    expected = similarities(curated(pool, tmp_path / "cpu", "cpu"))
    found = similarities(curated(pool, tmp_path / "gpu", gpu))
    assert len(expected) > 30
    for key in expected.keys() & found.keys():
        assert found[key] == pytest.approx(expected[key], abs=5e-3)
    for key in expected.keys() ^ found.keys():
        assert (expected | found)[key] == pytest.approx(RULES.threshold, abs=5e-3)


@pytest.mark.parametrize("curation", ["exact", "cascade"])
def test_the_same_curation_on_a_gpu_writes_the_same_bytes(
    gpu: str, pool: Pool, tmp_path: Path, curation: str
) -> None:
    runs = [curated(pool, tmp_path / name, gpu, curation=curation) for name in ("one", "two")]
    first, second = ([path.read_bytes() for path in run.files("selections")] for run in runs)
    assert first == second
