"""The cost model of `cit train` and `cit curate`: from shapes and rates to seconds, purely.

`cost(workload, machine, num_gpus)` follows what the code does: each outer step scans captions
(read, tokenise, embed, search and select, one after the other), then trains while images are
checked in processes of their own and a thread of each lane writes shards, then commits. In an
offline pass actors score captions ahead of one process that applies the rules. docs/scale.md shows
what it gives.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cit_train.streaming.image_opener import MAX_THREADS
from scripts.bench.scale_scenarios import Machine, Workload

FLOAT_BYTES = 4
# Both towers, BERT-base and ViT-B/16, have layers of one shape.
LAYERS, WIDTH, INNER = 12, 768, 3_072
TEXT_PARAMETERS, VISION_PARAMETERS, VISION_TOKENS = 109_482_240, 85_798_656, 197
MOCO_HEAD = WIDTH * 4_096 + 4_096 * 4_096 + 4_096 * 256
PROJECTION_DIM = 512
# The head and both projections are what is trained besides the text tower.
TRAINED = TEXT_PARAMETERS + MOCO_HEAD + PROJECTION_DIM * (WIDTH + 256)
# A caption's row in the pool, a `used` row on disk, and a selected pair in memory: its row in
# Arrow, and its key in the set of a `unique` step. Assumed.
CAPTION_BYTES, USED_ROW_BYTES, SELECTED_ROW_BYTES = 150, 20, 400
KEPT_STEPS = {"shards": 2, "checkpoints": 3}
SCAN_STAGES = ("read", "tokenise", "embed", "search", "select")
# Stages that run on the accelerator or its network.
DEVICE_STAGES = ("embed", "vision", "text", "loss", "gather", "reduce", "evaluate")

Stages = tuple[dict[str, float], tuple[str, ...]]


@dataclass(frozen=True)
class Cost:
    """The cost of a workload on a machine; bytes and seconds are those of the whole run.

    Attributes:
        num_gpus: Accelerators asked for.
        ranks: Accelerators that have work: at most one per lane.
        seconds: Seconds of each stage on its busiest rank, as if nothing overlapped.
        on_path: The stages whose seconds add up to the wall time; the others are hidden by them.
    """

    workload: Workload
    machine: Machine
    num_gpus: int
    ranks: int
    seconds: Mapping[str, float]
    on_path: tuple[str, ...]

    @property
    def total_seconds(self) -> float:
        """Wall time."""
        return sum(self.seconds[stage] for stage in self.on_path)

    @property
    def gpu_hours(self) -> float:
        """Accelerators with work, times wall time."""
        return self.ranks * self.total_seconds / 3_600

    @property
    def bottleneck(self) -> str:
        """The stage that takes the largest part of the wall time."""
        return max(self.on_path, key=lambda stage: self.seconds[stage])

    @property
    def device_busy(self) -> float:
        """Share of the wall time in which the accelerator computes or communicates."""
        busy = sum(self.seconds.get(stage, 0.0) for stage in DEVICE_STAGES)
        return busy / self.total_seconds

    @property
    def captions_per_second(self) -> float:
        """Captions over the time spent scanning."""
        stages = SCAN_STAGES if self.workload.updates else self.on_path
        return self.workload.scanned / sum(self.seconds[stage] for stage in stages)

    @property
    def bytes_written(self) -> dict[str, float]:
        """Bytes by kind."""
        steps, row = self.workload.outer_steps, self.machine.selection_row_bytes
        ledger, near = steps * self.workload.selected, steps * self.workload.near_misses * row
        if not self.workload.updates:
            return {"ledger": ledger * row, "near misses": near}
        return {
            "ledger": ledger * (row + USED_ROW_BYTES),
            "near misses": near,
            "shards": self.workload.pairs * self.workload.image_bytes,
            "checkpoints": steps * checkpoint_bytes(),
        }

    @property
    def bytes_kept(self) -> float:
        """Bytes on disk when the run ends: of shards and checkpoints, those of the last steps."""
        steps, kept = self.workload.outer_steps, self.bytes_written
        for kind, kept_steps in KEPT_STEPS.items():
            if kind in kept:
                kept[kind] *= min(kept_steps, steps) / steps
        return sum(kept.values())

    @property
    def selection_bytes(self) -> float:
        """Memory of what one process has selected until it is written."""
        processes = self.ranks if self.workload.updates else 1
        return self.workload.selected / processes * SELECTED_ROW_BYTES

    @property
    def bytes_reduced(self) -> float:
        """Gradients that one rank sends."""
        return self.workload.updates * 2 * (self.ranks - 1) / self.ranks * FLOAT_BYTES * TRAINED

    @property
    def loss_matrix_bytes(self) -> float:
        """float32 logits of one update on one rank."""
        return FLOAT_BYTES * self.workload.logits(self.ranks)


def cost(workload: Workload, machine: Machine, num_gpus: int) -> Cost:
    """The cost of a run on a number of accelerators.

    Args:
        workload: `updates` 0 is one offline pass over the pool; else curation and training.
        machine: Its rates.
        num_gpus: At least 1; online, the lanes divide them or they divide the lanes.

    Raises:
        ValueError: A count is out of range, or lanes and accelerators do not divide.
    """
    if num_gpus < 1:
        raise ValueError(f"num_gpus is {num_gpus}; it must be at least 1")
    ranks = min(num_gpus, workload.lanes) if workload.updates else num_gpus
    if workload.updates and workload.lanes % ranks:
        raise ValueError(f"{ranks} ranks do not divide {workload.lanes} lanes")
    seconds, on_path = (_online if workload.updates else _offline)(workload, machine, ranks)
    return Cost(workload, machine, num_gpus, ranks, seconds, on_path)


def scan_seconds(workload: Workload, machine: Machine, captions: float) -> dict[str, float]:
    """Seconds in which one process reads, scores and rules so many captions, stage by stage."""
    flops = captions * forward_flops(workload.mean_tokens)
    passes = captions * workload.mean_tokens / machine.pass_tokens
    products = 2.0 * captions * workload.metadata_entries * WIDTH
    return {
        "read": captions / machine.read_captions,
        "tokenise": captions / (machine.tokenize_captions * machine.cores),
        "embed": flops / (machine.gemm_flops * machine.embed_utilisation)
        + passes * machine.forward_overhead_seconds,
        # Where the vectors are: they do not leave a GPU for it.
        "search": products / (machine.float32_flops * machine.search_utilisation),
        "select": captions / machine.select_captions,
    }


def all_reduce_seconds(num_bytes: float, machine: Machine, ranks: int) -> float:
    """Seconds of a ring over the slowest link: each rank sends 2 (n - 1) / n of the bytes."""
    if ranks == 1:
        return 0.0
    is_one_node = ranks <= machine.devices_per_node
    rate = machine.node_network_bytes if is_one_node else machine.network_bytes
    hops = 2 * math.ceil(math.log2(ranks))
    return 2 * (ranks - 1) / ranks * num_bytes / rate + hops * machine.network_latency_seconds


def forward_flops(tokens: float) -> float:
    """Floating-point operations of one forward pass of a tower over one sample of `tokens` tokens.

    Four square products and two of the feed-forward layer per token, and the two products of
    attention, which grow with the square of the tokens. A multiply-add counts as two.
    """
    return LAYERS * (2 * tokens * (4 * WIDTH**2 + 2 * WIDTH * INNER) + 4 * tokens**2 * WIDTH)


def checkpoint_bytes() -> float:
    """Weights of both towers, and AdamW's two moments of what is trained, in float32."""
    weights = TEXT_PARAMETERS + VISION_PARAMETERS + MOCO_HEAD
    return float(FLOAT_BYTES * (weights + 2 * TRAINED))


def _online(workload: Workload, machine: Machine, ranks: int) -> Stages:
    """Curation and training: the seconds of all stages, and those that all wait for."""
    curation = scan_seconds(workload, machine, workload.scanned / ranks)
    prompts = float(workload.outer_steps * workload.metadata_entries)
    curation["embed"] += scan_seconds(workload, machine, prompts)["embed"]
    device = _device_seconds(workload, machine, ranks)
    files = _file_seconds(workload, machine, ranks)
    # Without workers the training process decodes, between two updates.
    training = tuple(device) if workload.num_workers else ("decode", *device)
    chains = (("check",), ("write shards",), ("decode",), training)
    rate = machine.float32_flops * machine.vision_utilisation
    # On one rank, in float32, decoded in its process.
    evaluate = workload.evaluated_images * (_vision_flops() / rate + 1 / machine.view_images)
    on_path = (*curation, *_longest(files | device, *chains), "evaluate", "commit")
    return {**curation, **device, **files, "evaluate": evaluate}, on_path


def _vision_flops() -> float:
    return forward_flops(VISION_TOKENS) + 2 * MOCO_HEAD


def _device_seconds(workload: Workload, machine: Machine, ranks: int) -> dict[str, float]:
    """Training on the accelerator of one rank, over the whole run."""
    pairs = workload.pairs / ranks
    # An image with a cached feature is not seen again.
    vision = 0.0 if workload.cached_features else _vision_flops()
    # Backward is twice the forward pass; gradient caching makes the forward pass twice.
    text = (4 if workload.micro_batch else 3) * forward_flops(workload.mean_tokens)
    logits = 6.0 * workload.logits(ranks) * PROJECTION_DIM
    sides = 2 * FLOAT_BYTES * workload.lanes * workload.batch_size * PROJECTION_DIM
    gradients = FLOAT_BYTES * TRAINED
    return {
        "vision": pairs * vision / (machine.gemm_flops * machine.vision_utilisation),
        "text": pairs * text / (machine.gemm_flops * machine.train_utilisation),
        "loss": workload.updates * logits / machine.gemm_flops,
        # Features go out on the way forward, their gradients come back.
        "gather": workload.updates * all_reduce_seconds(sides, machine, ranks),
        "reduce": workload.updates * all_reduce_seconds(gradients, machine, ranks),
    }


def _file_seconds(workload: Workload, machine: Machine, ranks: int) -> dict[str, float]:
    """Images, shards and commits of one rank, over the whole run."""
    pairs = workload.pairs / ranks
    decoded, moved = 0.0 if workload.cached_features else pairs, pairs * workload.image_bytes
    threads = min(workload.lanes // ranks, machine.cores)
    processes = max(1, min(workload.num_workers, machine.cores))
    # One rank writes it, and has its node's rate for itself.
    checkpoint_rate = min(machine.checkpoint_bytes, _storage_rate(machine, 1))
    rows = (workload.selected + workload.near_misses) / ranks
    ledger = rows * machine.selection_row_bytes / machine.ledger_bytes
    return {
        "check": decoded / machine.decode_images / min(MAX_THREADS, machine.cores),
        # Written once, and read back.
        "write shards": max(
            moved / machine.shard_bytes / threads, 2 * moved / _storage_rate(machine, ranks)
        ),
        "decode": decoded / (machine.view_images * processes),
        "commit": workload.outer_steps * (checkpoint_bytes() / checkpoint_rate + ledger),
    }


def _longest(seconds: Mapping[str, float], *chains: tuple[str, ...]) -> tuple[str, ...]:
    """The chain of stages that all wait for; the others run beside it."""
    return max(chains, key=lambda chain: sum(seconds[stage] for stage in chain))


def _storage_rate(machine: Machine, ranks: int) -> float:
    """Bytes/s of the shared file system for one rank, when all of them ask."""
    on_node = min(ranks, machine.devices_per_node)
    return min(machine.storage_bytes / on_node, machine.storage_total_bytes / ranks)


def _offline(workload: Workload, machine: Machine, ranks: int) -> Stages:
    """One pass over the pool, its captions divided evenly over the accelerators."""
    captions, storage = workload.captions, _storage_rate(machine, ranks)
    seconds = scan_seconds(workload, machine, captions / ranks)
    # One process applies the rules to all scores, in the order of the scan, for which it reads the
    # captions once more; its ledger is one file a lane.
    again = captions / machine.read_captions if workload.pipelined else 0.0
    seconds["select"] = captions / machine.select_captions + again
    ledger_bytes = workload.selected * machine.selection_row_bytes
    seconds["write ledger"] = ledger_bytes / min(machine.ledger_bytes, storage)
    seconds["storage"] = captions / ranks * CAPTION_BYTES / storage
    scoring, ruling = ("read", "tokenise", "embed", "search"), ("select", "write ledger")
    chains = (scoring, ruling) if workload.pipelined else ((*scoring, *ruling),)
    return seconds, _longest(seconds, *chains, ("storage",))
