"""The machines and workloads of docs/scale.md, from the measured parameters and what is assumed."""

import json
import math
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any

from cit_curate.text_encoder.packed import PASS_TOKENS

PARAMETERS = Path(__file__).with_name("scale_parameters.json")
GPU_COUNTS = (1, 4, 16, 64, 256, 1_024)
POOL_SIZES = {"15 M": 14_689_580.0, "100 M": 94_514_285.0, "2 B": 2e9, "100 B": 1e11}
# Share of a data sheet's peak that large matrix products reach. Assumed; no GPU was at hand.
SHARE_OF_PEAK = 0.7
IMAGENET_VALIDATION = 50_000
_OF_GEMM = "of GEMM"


def _rate(unit: str, what: str, value: float | None = None) -> Any:
    """A field of `Machine`, as the page names it."""
    default = MISSING if value is None else value
    return field(default=default, metadata={"unit": unit, "what": what})


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An accelerator, or one CPU core that stands in for it, with its cores, disk and network."""

    # Measured by `scale_parameters`.
    gemm_flops: float = _rate("FLOP/s", "matrix products of BERT-base's shapes")
    embed_utilisation: float = _rate(_OF_GEMM, "text tower of BERT-base's shape, random weights")
    vision_utilisation: float = _rate(_OF_GEMM, "ViT-B/16 forward, random weights")
    train_utilisation: float = _rate(_OF_GEMM, "BERT-base forward and backward")
    forward_overhead_seconds: float = _rate(
        "s", "a forward pass of 12 layers with nothing to compute"
    )
    tokenize_captions: float = _rate("captions/s", "tokenizer, one core")
    read_captions: float = _rate("captions/s", "a lane's shuffled scan of Parquet")
    select_captions: float = _rate("captions/s", "rules, rows and near misses")
    view_images: float = _rate("images/s", "JPEG of 500 x 375 pixels, decoded and cropped to 224")
    # Measured once, on 2026-11-27: half of any of them moves no wall time of the page by 2 %.
    search_utilisation: float = _rate("of float32", "search over 1,000 entries", 0.7777)
    decode_images: float = _rate("images/s", "JPEG of 500 x 375 pixels, one core", 1_389)
    shard_bytes: float = _rate("bytes/s", "shards of 512 pairs, hashed and synced", 993.5e6)
    checkpoint_bytes: float = _rate("bytes/s", "440 MB, hashed and synced", 1.07e9)
    ledger_bytes: float = _rate("bytes/s", "selections, compressed, hashed, synced", 66.87e6)
    selection_row_bytes: float = _rate("bytes", "one row of selections", 22.776)
    # Assumed: those of GPUs in nodes of eight, beside a parallel file system.
    name: str
    float32_flops: float = _rate("FLOP/s", "matrix products in float32, as in evaluation")
    pass_tokens: int = _rate("tokens", "one forward pass when embedding")
    cores: int = _rate("cores", "processor cores per accelerator", 16)
    devices_per_node: int = _rate("accelerators", "those that share a node", 8)
    node_network_bytes: float = _rate("bytes/s", "all-reduce per accelerator in a node", 150e9)
    network_bytes: float = _rate("bytes/s", "all-reduce per accelerator between nodes", 12.5e9)
    network_latency_seconds: float = _rate("s", "one hop between ranks", 10e-6)
    storage_bytes: float = _rate("bytes/s", "one node at the shared file system", 2e9)
    storage_total_bytes: float = _rate("bytes/s", "all nodes at the shared file system", 100e9)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One run: the pool, the rules, the towers and the options.

    Attributes:
        name: For tables.
        captions: Captions of one pass over the pool (one text an image).
        pass_ratio: Share of the scanned captions above the threshold.
        min_ratio: Share that a batch keeps at least.
        mean_tokens: Tokens of a caption.
        metadata_entries: Vectors that each caption is compared with.
        lanes: Independent curation streams.
        batch_size: Pairs of one update and lane.
        curate_every: Updates between two outer steps.
        updates: Of the whole run; 0 = no training, one offline pass over the pool.
        image_bytes: Mean size of an image file.
        num_workers: Processes that decode training images, per rank; 0 = the training process.
        cached_features: Image features made once per image instead of at each update.
        micro_batch: Pairs embedded at a time with gradient caching; 0 = the whole lane at once.
        local_loss: Each rank makes its own rows of the loss matrix alone.
        pipelined: In an offline pass an engine's actors, one per accelerator, score captions ahead
            of the rules; else one process does everything in turn.
        evaluated_images: Images of all evaluations while training, on one rank.
    """

    name: str
    captions: float
    pass_ratio: float
    min_ratio: float
    mean_tokens: float = 20
    metadata_entries: int = 1_000
    lanes: int = 16
    batch_size: int = 1_024
    curate_every: int = 100
    updates: int = 5_000
    image_bytes: float = 98_000
    num_workers: int = 8
    cached_features: bool = False
    micro_batch: int = 0
    local_loss: bool = False
    pipelined: bool = False
    evaluated_images: float = 10 * IMAGENET_VALIDATION

    @property
    def outer_steps(self) -> int:
        """Outer steps of the run."""
        return math.ceil(self.updates / self.curate_every) or 1

    @property
    def pairs(self) -> int:
        """Pairs that all lanes train on."""
        return self.updates * self.lanes * self.batch_size

    def logits(self, ranks: int) -> int:
        """Entries of the loss matrix that one rank makes in one update."""
        global_batch = self.lanes * self.batch_size
        return global_batch * (global_batch // ranks if self.local_loss else global_batch)

    @property
    def kept_ratio(self) -> float:
        """Share of the scanned captions that is kept."""
        return max(self.pass_ratio, self.min_ratio)

    @property
    def captions_of_step(self) -> float:
        """Captions that one lane scans in one outer step.

        Those that fill its budget follow from the share that is kept, not from the size of the
        pool, until the one pass that a step may make runs out.
        """
        needed = self.curate_every * self.batch_size / self.kept_ratio
        share = self.captions / self.lanes
        return min(needed, share) if self.updates else share

    @property
    def scanned(self) -> float:
        """Captions that all lanes scan in the whole run."""
        return self.outer_steps * self.lanes * self.captions_of_step

    @property
    def selected(self) -> float:
        """Pairs that all lanes select in one outer step."""
        return self.lanes * self.captions_of_step * self.kept_ratio

    @property
    def near_misses(self) -> int:
        """Rows of near misses in one outer step: five an entry and lane."""
        return self.lanes * 5 * self.metadata_entries


# The paper's main recipe, with ten evaluations on ImageNet, and the one on all of YFCC100M, whose
# higher threshold lets fewer pass.
YFCC15M = Workload(
    name="yfcc15m_in1k_mocob16", captions=POOL_SIZES["15 M"], pass_ratio=0.2, min_ratio=0.003
)
YFCC100M = Workload(
    name="yfcc100m_in1k_mocob16", captions=POOL_SIZES["100 M"], pass_ratio=0.05, min_ratio=0.01
)


def wide(lanes: int) -> Workload:
    """Another recipe for more than 16 GPUs: a lane each, and as many pairs in all."""
    updates = YFCC15M.updates * YFCC15M.lanes // lanes
    return replace(
        YFCC15M,
        captions=POOL_SIZES["2 B"],
        lanes=lanes,
        updates=updates,
        curate_every=min(YFCC15M.curate_every, updates),
        evaluated_images=max(round(updates / 500), 1) * IMAGENET_VALIDATION,
        local_loss=True,
    )


def offline(size: str, *, pipelined: bool = True) -> Workload:
    """`cit curate --max-pairs all` over a pool of `POOL_SIZES`: ImageNet's classes, 5 % pass."""
    pool = replace(YFCC15M, name=size, captions=POOL_SIZES[size], pass_ratio=0.05)
    return replace(pool, updates=0, pipelined=pipelined)


def one_core() -> Machine:
    """One core of the machine that was measured, standing in for an accelerator."""
    rows = json.loads(PARAMETERS.read_text(encoding="utf-8"))["parameters"]
    measured = {name: values["median"] for name, values in rows.items()}
    return Machine(
        **measured,
        name="1 CPU core",
        float32_flops=measured["gemm_flops"],
        pass_tokens=PASS_TOKENS["cpu"],
        cores=1,
    )


def gpus() -> dict[str, Machine]:
    """GPUs from public data sheets, with the measured rates per core."""
    return {
        name: replace(
            one_core(),
            name=name,
            gemm_flops=SHARE_OF_PEAK * peak,
            float32_flops=SHARE_OF_PEAK * single,
            pass_tokens=PASS_TOKENS["cuda"],
            cores=16,
            node_network_bytes=node,
            network_bytes=network,
        )
        for name, peak, single, node, network in (
            # float16 peak, float32 peak, NVLink one way, network per GPU
            ("V100", 125e12, 15.7e12, 150e9, 12.5e9),
            ("A100", 312e12, 19.5e12, 300e9, 25e9),
            ("H100", 989e12, 67e12, 450e9, 50e9),
        )
    }
