"""One measurement of each rate that the cost model needs; each runs what the project runs.

On a CPU a probe runs in one thread and counts processor time, so that what else the machine does
is not measured with it; waiting for the disk (`fsync_seconds`) and for another process is.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cit_curate.config import CurateConfig
from cit_curate.curation.lane_scan import LaneScan
from cit_curate.images.read import read_image
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.pool.order import ScanOrder
from cit_curate.records import Float32, PoolCursor
from cit_curate.run.ledger import Run
from cit_curate.run.shards import Sample, ShardWriter
from cit_curate.storage.durable import atomic_file, describe_file
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.packed import PASS_TOKENS
from cit_train.transforms import train_view
from indexes.build import build_index
from scripts.bench.scale_network import all_reduce_rate
from scripts.bench.scale_rig import TINY_PASS_TOKENS, Rig, per_second, random_bert, seconds_of
from scripts.bench.scale_shapes import BERT_BASE, MINILM, VIT_B16_MOCO, VIT_B16_TOKENS, TowerShape

TOKENS = 16
ENTRIES = (1_000, 21_000)
CHECKPOINT_BYTES = 440_000_000


@dataclass(frozen=True)
class Probe:
    """A parameter, and what measures it once."""

    name: str
    unit: str
    what: str
    run: Callable[[Rig], float]


def gemm_rate(rig: Rig, *, dtype: torch.dtype | None = None) -> float:
    """FLOP/s of a BERT-base layer's matrix products, on the tokens of one pass."""
    dtype = dtype or (torch.float16 if rig.device == "cuda" else torch.float32)
    rows = PASS_TOKENS[rig.device]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=rig.device, dtype=dtype)

    narrow, wide = random(rows, 768), random(rows, 3_072)
    square, up, down = random(768, 768), random(3_072, 768), random(768, 3_072)

    def layer() -> None:
        for _ in range(4):
            torch.nn.functional.linear(narrow, square)
        torch.nn.functional.linear(narrow, up)
        torch.nn.functional.linear(wide, down)

    return per_second(layer, rig) * 2 * rows * (4 * 768**2 + 2 * 768 * 3_072)


def embed_utilisation(rig: Rig, encoder: TextEncoder, shape: TowerShape) -> float:
    """Share of the matrix products' rate that `embed` reaches, overhead apart."""
    texts = [f"{row} {text}" for row, text in enumerate(rig.captions[:512])]
    num_tokens = encoder.tokenize(texts).counts
    tokenised = seconds_of(lambda: encoder.tokenize(texts), rig)
    embedded = seconds_of(lambda: encoder.embed(texts), rig)
    passes = num_tokens.sum() / PASS_TOKENS[rig.device] * shape.layers / 12
    flops = len(texts) * shape.forward_flops(num_tokens.mean())
    # Tokenising and the cost of a pass by itself are parameters of their own.
    seconds = embedded - tokenised - forward_overhead(rig) * passes
    return float(flops / max(seconds, 1e-9) / gemm_rate(rig))


def forward_overhead(rig: Rig) -> float:
    """Seconds of one forward pass of 12 layers that have next to nothing to compute."""
    texts = [f"{row} {text}" for row, text in enumerate(rig.captions[:512])]
    passes = rig.tiny.tokenize(texts).counts.sum() / TINY_PASS_TOKENS
    tokenised = seconds_of(lambda: rig.tiny.tokenize(texts), rig)
    return float((seconds_of(lambda: rig.tiny.embed(texts), rig) - tokenised) / passes)


def vision_utilisation(rig: Rig) -> float:
    """Share of the matrix products' rate that a ViT-B/16 reaches forward, with random weights."""
    import timm

    tower = timm.create_model("vit_base_patch16_224", num_classes=0).to(rig.device).eval()
    pixels = torch.rand(8 if rig.device == "cpu" else 256, 3, 224, 224, device=rig.device)

    @torch.inference_mode()
    def forward() -> None:
        with _autocast(rig):
            tower(pixels)

    flops = len(pixels) * (VIT_B16_MOCO.forward_flops(VIT_B16_TOKENS) - VIT_B16_MOCO.head_flops)
    return per_second(forward, rig) * flops / gemm_rate(rig)


def train_utilisation(rig: Rig) -> float:
    """Share of the matrix products' rate of a BERT-base forward and backward, dropout included."""
    tower = random_bert(BERT_BASE).to(rig.device).train()
    rows = 64 if rig.device == "cpu" else 1_024
    ids = torch.randint(1_000, 20_000, (rows, TOKENS), device=rig.device)
    mask = torch.ones_like(ids)

    def step() -> None:
        with _autocast(rig):
            loss = tower(input_ids=ids, attention_mask=mask).pooler_output.float().sum()
        loss.backward()

    flops = 3 * rows * BERT_BASE.forward_flops(TOKENS)
    return per_second(step, rig, seconds=2.0) * flops / gemm_rate(rig)


def search_utilisation(rig: Rig, entries: int) -> float:
    """Share of the matrix products' rate of `index.search`, 768 dimensions."""
    rng = np.random.default_rng(1)
    index, queries = build_index(_unit(rng, entries), "auto"), _unit(rng, 4_096)
    seconds = seconds_of(lambda: index.search(queries), rig)
    return 2 * len(queries) * entries * 768 / seconds / gemm_rate(rig)


def tokenize_rate(rig: Rig) -> float:
    """Captions/s of the tokenizer on one core."""
    with _one_thread():
        seconds = seconds_of(lambda: rig.minilm.tokenize(rig.captions[:20_000]), rig)
    return 20_000 / seconds


def read_rate(rig: Rig) -> float:
    """Captions/s of a lane's scan: Parquet to batches in shuffled order."""
    order = ScanOrder(rig.pool, seed=1)

    def read() -> None:
        for _ in order.batches(PoolCursor(), 2_048, order.length):
            pass

    return order.length / seconds_of(read, rig)


def select_rate(rig: Rig) -> float:
    """Captions/s of the rules, rows and near misses, with vectors and search for free."""
    order = ScanOrder(rig.pool, seed=1)
    entries = [MetadataEntry(name=f"class {row}") for row in range(1_000)]
    scan = LaneScan(
        CurateConfig(threshold=0.9, min_ratio=0.1),
        order=order,
        entries=entries,
        encoder=_Free(),
        index=_FreeIndex(),  # type: ignore[arg-type]
        cursor=PoolCursor(),
        outer_step=0,
    )
    seconds = seconds_of(lambda: scan.take(None), rig)
    return order.length / (seconds - order.length / read_rate(rig))


def decode_rate(rig: Rig) -> float:
    """Images/s that are opened and decoded."""

    def decode() -> None:
        for image in rig.images:
            read_image(image)

    return len(rig.images) / seconds_of(decode, rig)


def view_rate(rig: Rig) -> float:
    """Images/s that are decoded, cropped and scaled to 224 pixels."""
    rng = np.random.default_rng(2)

    def view() -> None:
        for image in rig.images:
            train_view(read_image(image), rng)

    return len(rig.images) / seconds_of(view, rig)


def shard_rate(rig: Rig) -> float:
    """Bytes/s of closed shards: 512 pairs each, with hash, manifest and fsyncs."""
    info = {"pair_key": "0_title", "similarity": 0.6, "metadata_text": "dog", "reason": "threshold"}
    image = b"\xff\xd8" + os.urandom(98_000 - 4) + b"\xff\xd9"
    folder = rig.folder / f"shards-{time.perf_counter_ns()}"

    def write() -> None:
        writer = ShardWriter(folder, "lane00000", pairs_per_shard=512)
        for row in range(1_536):
            writer.add(Sample(image, "jpg", "a dog", info | {"pair_key": f"{row}_title"}))
        writer.close()

    rate = 1_536 * len(image) / seconds_of(write, rig)
    shutil.rmtree(folder)
    return rate


def checkpoint_rate(rig: Rig) -> float:
    """Bytes/s of 440 MB of safetensors, written, synced and hashed as a checkpoint is."""
    from safetensors.torch import save_file

    path = rig.folder / "checkpoint.safetensors"
    tensors = {"weight": torch.rand(CHECKPOINT_BYTES // 4)}

    def write() -> None:
        with atomic_file(path) as temporary:
            save_file(tensors, temporary)
        describe_file(path, rig.folder, rows=0)

    return CHECKPOINT_BYTES / seconds_of(write, rig)


def ledger_rate(rig: Rig) -> float:
    """Bytes/s of `selections` rows on disk, compressed, hashed and synced."""
    entry, seconds = _write_selections(rig)
    return float(entry.bytes / seconds)


def row_bytes(rig: Rig) -> float:
    """Bytes of one `selections` row on disk."""
    entry, _ = _write_selections(rig)
    return float(entry.bytes / entry.rows)


def fsync_seconds(rig: Rig) -> float:
    """Seconds of one fsync of a small file that was just written."""
    path = rig.folder / "fsync"
    started = time.perf_counter()
    for row in range(50):
        with path.open("wb") as stream:
            stream.write(b"%d" % row)
            stream.flush()
            os.fsync(stream.fileno())
    return (time.perf_counter() - started) / 50


def _write_selections(rig: Rig) -> tuple[Any, float]:
    import pyarrow as pa

    from cit_curate.run.ledger_tables import SCHEMAS

    rng = np.random.default_rng(3)
    count = 102_400
    ids = rng.integers(10**8, size=count)
    names = rng.integers(1_000, size=count)
    rows = pa.table(
        {
            "outer_step": pa.array(np.zeros(count, np.int64)),
            "lane": pa.array(np.zeros(count, np.int32)),
            "scan_position": pa.array(np.sort(rng.integers(900_000, size=count))),
            "pair_key": pa.array([f"{each:08d}_title" for each in ids]),
            "image_id": pa.array([f"{each:08d}" for each in ids]),
            "text_key": pa.repeat("title", count),
            "similarity": pa.array(rng.random(count, dtype=np.float32)),
            "metadata_id": pa.array(names.astype(np.int32)),
            "metadata_text": pa.array([f"class {each}" for each in names]),
            "reason": pa.repeat("threshold", count),
            "encoder": pa.repeat("0" * 64, count),
            "pool": pa.repeat("pools/yfcc15m", count),
        }
    ).select(SCHEMAS["selections"].names)
    run = Run(rig.folder)
    seconds = seconds_of(lambda: run.write_table("selections", rows, outer_step=0, lane=0), rig)
    (path,) = rig.folder.glob("selections/*/*.parquet")
    return describe_file(path, rig.folder, rows=count), seconds


class _Free:
    """Vectors that cost nothing, so that what is left is the curator's own work."""

    fingerprint = "free"

    def embed(self, texts: Sequence[str]) -> Float32:
        return np.zeros((len(texts), 1), dtype=np.float32)


class _FreeIndex:
    def search(self, queries: Float32, k: int = 1) -> Any:
        from indexes.protocol import SearchResult

        rng = np.random.default_rng(4)
        shape = (len(queries), k)
        return SearchResult(rng.random(shape, dtype=np.float32), rng.integers(1_000, size=shape))


def _unit(rng: np.random.Generator, rows: int) -> Float32:
    vectors = rng.standard_normal((rows, 768), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _autocast(rig: Rig) -> torch.autocast:
    return torch.autocast(rig.device, torch.float16, enabled=rig.device == "cuda")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


_OF_GEMM = "of GEMM"
PROBES = (
    Probe("gemm_flops", "FLOP/s", "matrix products of BERT-base's shapes", gemm_rate),
    Probe("float32_flops", "FLOP/s", "the same in float32",
          lambda rig: gemm_rate(rig, dtype=torch.float32)),
    Probe("embed_utilisation", _OF_GEMM, "text tower of BERT-base's shape, random weights",
          lambda rig: embed_utilisation(rig, rig.bert, BERT_BASE)),
    Probe("minilm_utilisation", _OF_GEMM, "package:minilm",
          lambda rig: embed_utilisation(rig, rig.minilm, MINILM)),
    Probe("vision_utilisation", _OF_GEMM, "ViT-B/16 forward, random weights", vision_utilisation),
    Probe("train_utilisation", _OF_GEMM, "BERT-base forward and backward", train_utilisation),
    Probe("search_utilisation", _OF_GEMM, "search over 1,000 entries of 768 dimensions",
          lambda rig: search_utilisation(rig, ENTRIES[0])),
    Probe("search_21k_utilisation", _OF_GEMM, "search over 21,000 entries",
          lambda rig: search_utilisation(rig, ENTRIES[1])),
    Probe("forward_overhead_seconds", "s", "a forward pass of 12 layers with nothing to compute",
          forward_overhead),
    Probe("tokenize_captions", "captions/s", "tokenizer, one core", tokenize_rate),
    Probe("read_captions", "captions/s", "a lane's shuffled scan of Parquet", read_rate),
    Probe("select_captions", "captions/s", "rules, rows and near misses", select_rate),
    Probe("decode_images", "images/s", "JPEG of 500 x 375 pixels, one core", decode_rate),
    Probe("view_images", "images/s", "the same, cropped and scaled to 224", view_rate),
    Probe("shard_bytes", "bytes/s", "shards of 512 pairs, hashed and synced", shard_rate),
    Probe("checkpoint_bytes", "bytes/s", "440 MB, hashed and synced", checkpoint_rate),
    Probe("ledger_bytes", "bytes/s", "selections, compressed, hashed and synced", ledger_rate),
    Probe("selection_row_bytes", "bytes", "one row of selections", row_bytes),
    Probe("fsync_seconds", "s", "fsync of a small file", fsync_seconds),
    Probe("all_reduce_bytes", "bytes/s", "gloo, 440 MB between 2 processes of this machine",
          lambda rig: all_reduce_rate(440_000_000)),
    Probe("all_reduce_latency_seconds", "s", "gloo, 4 bytes between 2 processes",
          lambda rig: 4 / all_reduce_rate(4, times=200)),
)  # fmt: skip
