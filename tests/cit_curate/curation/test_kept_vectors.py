"""Nothing embedded twice: by a sample and its scan, and by one command and the next."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_tower import small_tower

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation import command
from cit_curate.curation import curate as curate_module
from cit_curate.curation.curate import curate
from cit_curate.curation.curator import Curator, vectors_beside
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.curation.scores import score_range
from cit_curate.errors import ShortfallError
from cit_curate.pool.check import check_pool, repair_pool
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.sources.columns import Columns
from cit_curate.storage.row_cache import RowCache, remove_part, values_path
from cit_curate.text_encoder.encoder import TextEncoder

GOLDEN = Path(__file__).parents[2] / "golden"
METADATA = MetadataConfig(metadata=str(GOLDEN / "labels.txt"))
RULES = CurateConfig(threshold=0.9, min_ratio=0.1, batch_size=16, texts="every", lanes=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTowerConfig:
    return small_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    lines = (GOLDEN / "captions.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    tags = [f'{number:05d}t,tag,"tag {number}, {number % 7}, dog"\n' for number in range(60)]
    (folder / "a.csv").write_text("".join([*lines[:241], *tags]), encoding="utf-8")
    columns = Columns(text_key="text_key", caption="caption")
    Pool.build([folder / "a.csv"], folder / "pool", columns=columns)
    return folder / "pool"


@pytest.fixture
def pool(built: Path, tmp_path: Path) -> Pool:
    """A pool whose vectors no other test keeps."""
    shutil.copytree(built, tmp_path / "pool")
    return Pool.open(tmp_path / "pool")


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts went through the text tower, at each call."""
    counts: list[int] = []
    embed = TextEncoder._embed_tokens

    def count(self: TextEncoder, tokens) -> torch.Tensor:
        counts.append(len(tokens))
        return embed(self, tokens)

    monkeypatch.setattr(TextEncoder, "_embed_tokens", count)
    return counts


def ledger(run: Path) -> dict[str, str]:
    files = [*run.glob("*/step=*/*.parquet"), *run.glob("manifests/*.json")]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


Curated = Callable[..., dict[str, str]]


@pytest.fixture
def curated(pool: Pool, text: TextTowerConfig, tmp_path: Path) -> Curated:
    """Curates into a new run, and gives its ledger."""

    def made(rules: CurateConfig = RULES, **changes: object) -> dict[str, str]:
        for opened in (score_range._opened, score_range._embedded, score_range._encoder):
            opened.cache_clear()  # as in a process of its own
        score_range._kept.cache_clear()
        out = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        tower = replace(text, **changes)
        curate(pool, METADATA, tower, rules, out, num_pairs=None, device="cpu")
        return ledger(out)

    return made


def parts(pool: Pool) -> list[Path]:
    return sorted(pool.path.glob("vectors/*/part-*.keys.npy"))


def keep_half(pool: Pool) -> None:
    """Leave every second of the kept vectors."""
    for path in parts(pool):
        keys, values = np.load(path), np.load(values_path(path))
        remove_part(path)
        cache = RowCache(path.parent, key_bytes=16)
        cache.add([key.tobytes() for key in keys[::2]], values[::2])
        cache.flush()


def flip_bits(pool: Pool) -> None:
    """Change one bit of each part."""
    for path in parts(pool):
        content = bytearray(values_path(path).read_bytes())
        content[len(content) // 2] ^= 1
        values_path(path).write_bytes(content)


@pytest.mark.faults("E10")
@pytest.mark.parametrize("staged_captions", [0, 10**6], ids=["staged", "in one scan"])
def test_a_ledger_has_the_same_bytes_from_any_cache_and_no_text_is_embedded_twice(
    curated: Curated,
    pool: Pool,
    embedded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    staged_captions: int,
) -> None:
    monkeypatch.setattr(curate_module, "STAGED_CAPTIONS", staged_captions)
    whole = curated(vector_cache_bytes=0)
    assert whole
    assert not parts(pool)
    without = sum(embedded)
    for change, share in ((None, 1), (None, 0), (keep_half, 0.5), (flip_bits, 1), (None, 0)):
        if change is not None:
            change(pool)
        embedded.clear()
        assert curated() == whole
        assert sum(embedded) == pytest.approx(share * without, abs=4)


@pytest.mark.slow
def test_a_cascade_keeps_the_vectors_that_it_scores_exactly(
    text: TextTowerConfig, embedded: list[int], tmp_path: Path
) -> None:
    columns = Columns(text_key="text_key", caption="caption")
    pool = Pool.build([GOLDEN / "captions.csv"], tmp_path / "pool", columns=columns)
    rules = replace(RULES, curation="cascade", lanes=1, batch_size=256, calibration_captions=1200)
    ledgers, counts = [], []
    for name, num_bytes in (("off", 0), ("empty", None), ("full", None)):
        embedded.clear()
        tower = replace(text, vector_cache_bytes=num_bytes)
        curate(pool, METADATA, tower, rules, tmp_path / name, num_pairs=None, device="cpu")
        ledgers.append(ledger(tmp_path / name))
        counts.append(sum(embedded))
    assert ledgers[0] == ledgers[1] == ledgers[2]
    assert counts[0] >= counts[1] >= 1200
    assert counts[2] == 0


@pytest.mark.parametrize("vector_cache_bytes", [0, None])
def test_a_scan_embeds_nothing_that_the_sample_before_it_has_embedded(
    pool: Pool, text: TextTowerConfig, embedded: list[int], vector_cache_bytes: int | None
) -> None:
    pools = PoolMixture.of(pool)
    tower = replace(text, vector_cache_bytes=vector_cache_bytes)
    curator = Curator(pools, METADATA, RULES, kept=vectors_beside(pools, tower))
    encoder = TextEncoder.load(text, kept=curator.kept)
    index = curator.refresh(encoder)
    scores = curator.lane_scores(encoder, index)
    embedded.clear()
    length = curator.orders[0].length
    sample = curator.sample(encoder)
    assert len(sample.similarity) == length
    assert 0 < sum(embedded) <= length
    embedded.clear()
    step = OuterStep(0, 0, encoder.fingerprint)
    (selection,) = curator.run(step, [PoolCursor()] * 2, scores, num_pairs=None, lanes=[0])
    assert sum(embedded) == 0
    totals = selection.scan.totals
    assert sample.similarity.max() == np.float32(totals.best_similarity)
    assert len(sample.similarity) == totals.scanned


def test_a_dry_run_embeds_for_the_curation_after_it(
    curated: Curated,
    pool: Pool,
    text: TextTowerConfig,
    embedded: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rules = replace(RULES, lanes=1)
    for expected in (True, False):
        embedded.clear()
        command.curate(
            (str(pool.path),), METADATA, text, rules, device="cpu", dry_run=True, json=True
        )
        assert json.loads(capsys.readouterr().out)["captions"] == pool.num_pairs
        assert bool(sum(embedded)) == expected
    assert curated(rules)
    assert sum(embedded) == 0


def test_a_shortfall_keeps_what_it_has_embedded(
    curated: Curated, pool: Pool, text: TextTowerConfig, embedded: list[int], tmp_path: Path
) -> None:
    rules = replace(RULES, min_ratio=0.0, threshold=1.0)
    with pytest.raises(ShortfallError):
        curate(pool, METADATA, text, rules, tmp_path / "short", num_pairs=9, device="cpu")
    before = sum(embedded)
    curated()
    # The scan of the second lane had not begun.
    assert sum(embedded) - before < before


def test_two_commands_at_once_select_the_same_and_leave_whole_vectors(
    curated: Curated, pool: Pool, text: TextTowerConfig, embedded: list[int], tmp_path: Path
) -> None:
    flags = [
        *("--metadata", METADATA.metadata, "--text-encoder", text.text_encoder),
        *("--pooling", text.pooling, "--threshold", "0.9", "--min-ratio", "0.1"),
        *("--batch-size", "16", "--texts", "every", "--lanes", "2", "--max-pairs", "all"),
    ]
    code = "import sys; from cit_train.cli import run; run(sys.argv[1:])"
    outs = [tmp_path / name for name in ("one", "two")]
    commands = [
        [sys.executable, "-c", code, "curate", str(pool.path), *flags, "--out", str(out)]
        for out in outs
    ]
    processes = [subprocess.Popen(each, stderr=subprocess.DEVNULL) for each in commands]
    assert [process.wait(120) for process in processes] == [0, 0]
    whole = curated()
    assert [ledger(out) for out in outs] == [whole, whole]
    assert sum(embedded) == 0


def test_the_vectors_of_a_pool_change_nothing_that_is_said_of_the_pool(
    curated: Curated, pool: Pool
) -> None:
    before = check_pool(pool.path)
    curated()
    assert parts(pool)
    after = check_pool(pool.path)
    assert (after.damage, after.notes) == (before.damage, before.notes)
    assert repair_pool(pool.path) == []
    assert parts(pool)
    assert Pool.open(pool.path).fingerprint == pool.fingerprint


def test_the_vectors_of_several_pools_lie_beside_the_first(
    pool: Pool, built: Path, text: TextTowerConfig, embedded: list[int], tmp_path: Path
) -> None:
    lines = ["key,text_key,caption", *(f"{n},title,a horse numbered {n}" for n in range(50))]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    columns = Columns(image_id="key", text_key="text_key", caption="caption")
    Pool.build([tmp_path / "b.csv"], tmp_path / "other", columns=columns)
    pools = PoolMixture.open([f"{pool.path}=0.8", f"{tmp_path / 'other'}=0.2"])
    for name in ("one", "two"):
        curate(pools, METADATA, text, RULES, tmp_path / name, num_pairs=None, device="cpu")
        if name == "one":
            embedded.clear()
    assert ledger(tmp_path / "one") == ledger(tmp_path / "two")
    assert sum(embedded) == 0
    assert parts(pool)
    assert not (tmp_path / "other" / "vectors").exists()
