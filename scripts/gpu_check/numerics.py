"""Kernels of a GPU against those of the CPU: the index, both towers, and a whole curation."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curate import curate
from cit_curate.images.read import read_image
from cit_curate.pool.pool import Pool
from cit_curate.records import Float32
from cit_curate.run.ledger import Run
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.load import load_text_tower
from cit_train.models.pooled_vision import PooledVision
from cit_train.models.towers import load_vision_tower
from cit_train.transforms import Normalizer, eval_view, image_statistics
from indexes.build import build_index
from indexes.protocol import MetadataIndex
from indexes.recall import recall
from scripts.bench.caption_pools import caption_pool, distinct_captions
from scripts.bench.curation import LABELS
from scripts.bench.drawn_pool import draw
from scripts.gpu_check.outcomes import Finding
from scripts.gpu_check.setting import Setting, SkippedError

# Without kept vectors: the second run of a curation must compute them again.
MINILM = TextTowerConfig(text_encoder="package:minilm", pooling="mean", vector_cache_bytes=0)
LITE0 = "package:efficientnet-lite0"
DIM = 384
# The largest difference of a cosine that float16 makes; selections may differ so close to the
# threshold.
FLOAT16_ERROR = 5e-3


def index_against_exact(setting: Setting) -> Finding:
    """FAISS on the GPU: the bits of an exact search there, and the entries of one on the CPU."""
    from indexes import faiss_index

    if setting.on_gpu and not faiss_index.sees_gpu():
        raise SkippedError("FAISS sees no GPU here; `cit doctor` says what is installed")
    measured: dict[str, float] = {}
    wrong = []
    for entries in (1_000, setting.size(21_000, 4_000)):
        vectors = unit_vectors(entries, seed=0)
        asked = unit_vectors(setting.size(16_384, 2_048), seed=1)
        queries = torch.from_numpy(asked).to(setting.device)
        expected = build_index(vectors, "exact").search(asked[:4_096], 2)
        exact = build_index(vectors, "exact", device=setting.device)
        flat = build_index(vectors, "flat", device=setting.device)
        found, same = exact.search(queries, 2), flat.search(queries, 2)
        if not np.array_equal(found.similarity, same.similarity):
            wrong.append(f"FAISS and exact search differ in bits among {entries:,} entries")
        clear = expected.similarity[:, 0] - expected.similarity[:, 1] > 1e-5
        if not np.array_equal(same.ids[:4_096][clear, 0], expected.ids[clear, 0]):
            wrong.append(f"the CPU finds other entries among {entries:,}")
        name = f"{entries // 1_000}k"
        measured |= {f"FAISS queries/s of {name}": rate_of(flat, queries)}
        measured |= {f"exact of {name}": rate_of(exact, queries)}
    on_cpu, on_device = (
        build_index(vectors, "ivf", device=device).search(asked[:4_096])
        for device in ("cpu", setting.device)
    )
    measured |= {"ivf as on the CPU": recall(on_device, on_cpu)}
    if measured["ivf as on the CPU"] < 0.99:
        wrong.append("IVF finds other entries than on the CPU")
    return Finding(measured, tuple(wrong))


def text_vectors(setting: Setting) -> Finding:
    """MiniLM on the GPU: vectors of the CPU but for float16, and the same bits in any company."""
    texts = spread(setting.size(16_384, 128))
    few = texts[:: setting.size(8, 1)]
    expected = encoder("cpu").embed(few)
    on_device = encoder(setting.device)
    on_device.embed(few)  # loads the kernels
    started = time.perf_counter()
    found = on_device.embed(texts)
    seconds = time.perf_counter() - started
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = on_device.embed([texts[row] for row in order])
    alone = on_device.embed(few)
    cosine = (expected * found[:: setting.size(8, 1)]).sum(axis=1)
    wrong = []
    if not np.array_equal(shuffled, found[order]):
        rows = (shuffled != found[order]).any(axis=1).mean()
        wrong.append(f"{rows:.1%} of the vectors have other bits in another order")
    if not np.array_equal(alone, found[:: setting.size(8, 1)]):
        wrong.append("a part of the captions has other bits without the others")
    if cosine.min() < 1 - FLOAT16_ERROR:
        wrong.append("a vector is not that of the CPU")
    return Finding(
        {
            "captions/s": len(texts) / seconds,
            "smallest cosine to the CPU": float(cosine.min()),
            "precision": on_device.precision,
        },
        tuple(wrong),
    )


def vision_features(setting: Setting) -> Finding:
    """EfficientNet-lite0 on the GPU: the features of the CPU in both precisions, and their rate."""
    rng = np.random.default_rng(0)
    jpegs = [draw("red", "circle", rng) for _ in range(setting.size(256, 16))]
    views = torch.stack([eval_view(read_image(jpeg)) for jpeg in jpegs])
    expected = vision("cpu", None)(views)
    measured: dict[str, float] = {}
    wrong = []
    for name, precision in (("float32", None), ("float16", torch.float16)):
        if precision is not None and not setting.on_gpu:
            continue
        tower = vision(setting.device, precision)
        found = tower(views)
        cosine = torch.nn.functional.cosine_similarity(expected, found).min()
        measured |= {f"images/s in {name}": len(views) / seconds_of(lambda: tower(views), 3)}  # noqa: B023
        measured |= {f"smallest cosine in {name}": float(cosine)}
        if float(cosine) < 0.99:
            wrong.append(f"features in {name} are not those of the CPU")
        half = tower(views[: len(views) // 2])
        if not torch.equal(half, found[: len(half)]):
            wrong.append(f"features in {name} depend on the other images")
    return Finding(measured, tuple(wrong))


def curation(setting: Setting) -> Finding:
    """A pass over real captions: the CPU's pairs but at the threshold, and the same bytes twice."""
    pool = caption_pool(setting.folder / "captions", spread(setting.size(8_192, 192)))
    rules = CurateConfig(threshold=0.5, min_ratio=0.0, texts="every", aug_tag=False)
    runs = {
        name: curated(pool, rules, setting.folder / f"curated-{name}", device)
        for name, device in (("cpu", "cpu"), ("one", setting.device), ("two", setting.device))
    }
    expected, found = similarities(runs["cpu"][0]), similarities(runs["one"][0])
    differing = expected.keys() ^ found.keys()
    both = expected.keys() & found.keys()
    error = max((abs(expected[key] - found[key]) for key in both), default=0.0)
    away = max((abs((expected | found)[key] - rules.threshold) for key in differing), default=0.0)
    wrong = []
    if away > FLOAT16_ERROR:
        wrong.append(f"a pair that only one of them keeps is {away:.4f} from the threshold")
    if error > FLOAT16_ERROR:
        wrong.append(f"similarities differ by {error:.4f}")
    first, second = (
        [path.read_bytes() for path in runs[name][0].files("selections")] for name in ("one", "two")
    )
    if first != second:
        wrong.append("the same curation wrote other bytes the second time")
    measured = {
        "kept on the CPU": len(expected),
        "others on the GPU": len(differing),
        "largest difference": error,
        "captions/s with loading": setting.size(8_192, 192) / runs["two"][1],
    }
    return Finding(measured, tuple(wrong))


def curated(pool: Pool, rules: CurateConfig, out: Path, device: str) -> tuple[Run, float]:
    """A curation on a device, and its seconds."""
    started = time.perf_counter()
    metadata = MetadataConfig(metadata=str(LABELS))
    run = curate(pool, metadata, MINILM, rules, out, num_pairs=None, device=device, overwrite=True)
    return run, time.perf_counter() - started


def similarities(run: Run) -> dict[str, float]:
    """The similarity of each pair that was kept."""
    rows = run.read("selections").to_pylist()
    return {row["pair_key"]: row["similarity"] for row in rows}


def spread(count: int) -> list[str]:
    """Real captions of all lengths."""
    known = distinct_captions()
    return known[:: max(len(known) // count, 1)][:count]


def encoder(device: str) -> TextEncoder:
    """MiniLM on a device."""
    return TextEncoder(*load_text_tower(MINILM), device=device)


def vision(device: str, precision: torch.dtype | None) -> PooledVision:
    """EfficientNet-lite0 on a device."""
    tower = load_vision_tower(LITE0).eval().to(device).to(memory_format=torch.channels_last)
    statistics = image_statistics(tower.config)
    normalizer = Normalizer(statistics.mean, statistics.std)
    return PooledVision(tower, normalizer, torch.device(device), autocast=precision)


def unit_vectors(rows: int, *, seed: int) -> Float32:
    """float32 [rows, DIM], unit norm."""
    vectors = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    unit: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def rate_of(index: MetadataIndex, queries: torch.Tensor) -> float:
    """Queries/s."""
    return len(queries) / seconds_of(lambda: index.search(queries), 3)


def seconds_of(way: Callable[[], object], repeats: int) -> float:
    """The fastest of several calls, which end with a copy to the host."""
    seconds: Sequence[float] = [_timed(way) for _ in range(repeats)]
    return min(seconds)


def _timed(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started
