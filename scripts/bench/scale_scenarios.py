"""The machines and workloads of docs/scale.md, from the measured parameters and what is assumed."""

import json
from dataclasses import replace
from pathlib import Path

from cit_curate.text_encoder.packed import PASS_TOKENS
from scripts.bench.scale_shapes import Machine, Workload

PARAMETERS = Path(__file__).with_name("scale_parameters.json")
GPU_COUNTS = (1, 4, 16, 64, 256, 1_024)
POOL_SIZES = {"15 M": 14_689_580.0, "100 M": 94_514_285.0, "2 B": 2e9, "100 B": 1e11}
# Share of a data sheet's peak that large matrix products reach. Assumed; no GPU was at hand.
SHARE_OF_PEAK = 0.7
# Shares of scanned captions that pass, over which the online recipes are shown. Assumed.
PASS_RATIOS = (0.01, 0.05, 0.2, 0.5)
DEFAULT_PASS_RATIO = 0.2
MEAN_TOKENS = 20.0
IMAGENET_VALIDATION = 50_000


def parameters(path: Path = PARAMETERS) -> dict[str, float]:
    """The measured parameters by name."""
    rows = json.loads(path.read_text(encoding="utf-8"))["parameters"]
    return {row["name"]: row["value"] for row in rows}


def this_cpu(measured: dict[str, float]) -> Machine:
    """One core of the machine that was measured, standing in for an accelerator."""
    return Machine(
        name="1 CPU core",
        provenance="measured",
        gemm_flops=measured["gemm_flops"],
        float32_flops=measured["float32_flops"],
        embed_utilisation=measured["embed_utilisation"],
        vision_utilisation=measured["vision_utilisation"],
        train_utilisation=measured["train_utilisation"],
        search_utilisation=measured["search_utilisation"],
        pass_tokens=PASS_TOKENS["cpu"],
        forward_overhead_seconds=measured["forward_overhead_seconds"],
        device_bytes=12e9,
        cores=1,
        tokenize_captions=measured["tokenize_captions"],
        read_captions=measured["read_captions"],
        select_captions=measured["select_captions"],
        decode_images=measured["decode_images"],
        view_images=measured["view_images"],
        shard_bytes=measured["shard_bytes"],
        checkpoint_bytes=measured["checkpoint_bytes"],
        ledger_bytes=measured["ledger_bytes"],
        fsync_seconds=measured["fsync_seconds"],
        devices_per_node=2,
        node_network_bytes=measured["all_reduce_bytes"],
        network_bytes=measured["all_reduce_bytes"],
        network_latency_seconds=measured["all_reduce_latency_seconds"],
        storage_bytes=1e9,
        storage_total_bytes=1e9,
    )


def gpus(measured: dict[str, float]) -> dict[str, Machine]:
    """GPUs from public data sheets, in nodes of eight; rates per core are the measured ones."""
    base = replace(
        this_cpu(measured),
        provenance="assumed",
        pass_tokens=PASS_TOKENS["cuda"],
        cores=16,
        devices_per_node=8,
        network_latency_seconds=10e-6,
        # A parallel file system: 2 GB/s for a node, 100 GB/s for all.
        storage_bytes=2e9,
        storage_total_bytes=100e9,
    )
    return {
        name: replace(
            base,
            name=name,
            gemm_flops=SHARE_OF_PEAK * peak,
            float32_flops=SHARE_OF_PEAK * single,
            device_bytes=memory,
            node_network_bytes=node,
            network_bytes=network,
        )
        for name, peak, single, memory, node, network in (
            # fp16 peak, fp32 peak, memory, NVLink one way, network per GPU
            ("V100", 125e12, 15.7e12, 32e9, 150e9, 12.5e9),
            ("A100", 312e12, 19.5e12, 80e9, 300e9, 25e9),
            ("H100", 989e12, 67e12, 80e9, 450e9, 50e9),
        )
    }


def yfcc15m(measured: dict[str, float], *, pass_ratio: float = DEFAULT_PASS_RATIO) -> Workload:
    """The paper's main recipe; ten evaluations on ImageNet."""
    return Workload(
        name="yfcc15m_in1k_mocob16",
        captions=POOL_SIZES["15 M"],
        mean_tokens=MEAN_TOKENS,
        pass_ratio=pass_ratio,
        min_ratio=0.003,
        metadata_entries=1_000,
        evaluated_images=10 * IMAGENET_VALIDATION,
        selection_row_bytes=measured["selection_row_bytes"],
        num_workers=8,
    )


def yfcc100m(measured: dict[str, float], *, pass_ratio: float = 0.05) -> Workload:
    """The recipe on all of YFCC100M; its higher threshold lets fewer pass."""
    return replace(
        yfcc15m(measured, pass_ratio=pass_ratio),
        name="yfcc100m_in1k_mocob16",
        captions=POOL_SIZES["100 M"],
        min_ratio=0.01,
        collection="multiset",
    )


def wide(measured: dict[str, float], *, lanes: int, captions: float) -> Workload:
    """Another recipe for more than 16 GPUs: a lane each, and as many pairs in all."""
    narrow = yfcc15m(measured)
    updates = max(narrow.updates * narrow.lanes // lanes, 1)
    return replace(
        narrow,
        name=f"{lanes} lanes",
        captions=captions,
        lanes=lanes,
        updates=updates,
        curate_every=min(narrow.curate_every, updates),
        evaluated_images=max(round(updates / 500), 1) * IMAGENET_VALIDATION,
        local_loss=True,
    )


def offline(measured: dict[str, float], size: str, *, pipelined: bool = True) -> Workload:
    """`cit curate --max-pairs all` over a pool: ImageNet's classes, 5 % pass."""
    return replace(
        yfcc15m(measured, pass_ratio=0.05),
        name=size,
        captions=POOL_SIZES[size],
        updates=0,
        pipelined=pipelined,
    )
