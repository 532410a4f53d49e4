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

from cit_train.streaming.shard_stream import MAX_THREADS
from scripts.bench.scale_shapes import Machine, Workload

FLOAT_BYTES = 4
NEAR_MISSES_PER_ENTRY = 5
LEDGER_TABLES = 5
# `atomic_file` syncs the file and its folder; a closed shard is a tar and a manifest.
FSYNCS_PER_FILE = 2
FILES_PER_SHARD = 2
# A selected pair in memory: its row in Arrow, and its key in the set of a `unique` step. Assumed.
SELECTED_ROW_BYTES = 400
KEPT_SHARD_STEPS = 2
KEPT_CHECKPOINTS = 3
# Stages that run on the accelerator or its network.
DEVICE_STAGES = ("embed", "vision", "text", "loss", "gather", "reduce", "evaluate")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one outer step of one lane (or one offline pass) scans.

    Attributes:
        captions: Captions scanned.
        kept: Pairs kept.
        passes: Passes over the lane's share.
        fills: Whether the budget is filled within the passes allowed.
    """

    captions: float
    kept: float
    passes: float
    fills: bool


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run costs.

    Attributes:
        workload: Its name.
        machine: Its name.
        num_gpus: Accelerators asked for.
        ranks: Accelerators that have work: at most one per lane.
        seconds: Seconds of each stage on its busiest rank, as if nothing overlapped.
        on_path: The stages whose seconds add up to the wall time; the others are hidden by them.
        total_seconds: Wall time.
        scan: One lane's scan of one outer step.
        captions: All captions scanned.
        captions_per_second: Over the time spent scanning.
        bytes_written: By kind, over the whole run.
        bytes_kept: On disk when the run ends.
        bytes_reduced: Gradients that one rank sends, over the whole run.
        loss_matrix_bytes: float32 logits of one update on one rank.
        selection_bytes: Memory of what one process has selected until it is written.
    """

    workload: str
    machine: str
    num_gpus: int
    ranks: int
    seconds: Mapping[str, float]
    on_path: tuple[str, ...]
    total_seconds: float
    scan: Scan
    captions: float
    captions_per_second: float
    bytes_written: Mapping[str, float]
    bytes_kept: float
    bytes_reduced: float
    loss_matrix_bytes: float
    selection_bytes: float

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


def cost(workload: Workload, machine: Machine, num_gpus: int) -> Cost:
    """What a run costs on so many accelerators.

    Args:
        workload: `updates` 0 is one offline pass over the pool; else curation and training.
        machine: Its rates.
        num_gpus: At least 1; online, the lanes divide them or they divide the lanes.

    Raises:
        ValueError: A count is out of range, or lanes and accelerators do not divide.
    """
    if num_gpus < 1:
        raise ValueError(f"num_gpus is {num_gpus}; it must be at least 1")
    if not workload.updates:
        return _offline(workload, machine, num_gpus)
    ranks = min(num_gpus, workload.lanes)
    if workload.lanes % ranks:
        raise ValueError(f"{ranks} ranks do not divide {workload.lanes} lanes")
    return _online(workload, machine, num_gpus, ranks)


def scan_of_step(workload: Workload) -> Scan:
    """How far one lane scans to fill its budget of one outer step.

    The captions follow from the share that is kept, not from the size of the pool, until the
    passes that are allowed run out. In a `unique` step a second pass finds nothing new.
    """
    share = workload.captions / workload.lanes
    budget = float(workload.curate_every * workload.batch_size)
    ratio = max(workload.pass_ratio, workload.min_ratio)
    passes = 1 if workload.collection == "unique" else workload.max_passes
    needed = budget / ratio
    captions = min(needed, share * passes)
    return Scan(
        captions=captions,
        kept=min(budget, captions * ratio),
        passes=captions / share,
        fills=needed <= share * passes,
    )


def scan_seconds(workload: Workload, machine: Machine, captions: float) -> dict[str, float]:
    """Seconds in which one process reads, scores and rules so many captions, stage by stage."""
    flops = captions * workload.text.forward_flops(workload.mean_tokens)
    passes = captions * workload.mean_tokens / machine.pass_tokens * workload.text.layers / 12
    products = 2.0 * captions * workload.metadata_entries * workload.text.width
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
    """A ring over the slowest link: each rank sends 2 (n - 1) / n of the bytes."""
    if ranks == 1:
        return 0.0
    is_one_node = ranks <= machine.devices_per_node
    rate = machine.node_network_bytes if is_one_node else machine.network_bytes
    hops = 2 * math.ceil(math.log2(ranks))
    return 2 * (ranks - 1) / ranks * num_bytes / rate + hops * machine.network_latency_seconds


def checkpoint_bytes(workload: Workload) -> float:
    """Weights of both towers, and AdamW's two moments of what is trained, in float32."""
    weights = workload.text.parameters + workload.vision.parameters
    return float(FLOAT_BYTES * (weights + 2 * workload.trained_parameters))


def _online(workload: Workload, machine: Machine, num_gpus: int, ranks: int) -> Cost:
    steps = math.ceil(workload.updates / workload.curate_every)
    lanes_per_rank = workload.lanes // ranks
    scan = scan_of_step(workload)
    scanned = steps * lanes_per_rank * scan.captions
    curation = scan_seconds(workload, machine, scanned)
    prompts = scan_seconds(workload, machine, float(steps * workload.metadata_entries))
    curation["embed"] += prompts["embed"]
    device = _device_seconds(workload, machine, ranks)
    files = _file_seconds(workload, machine, ranks, steps, scan)
    paths = _training_paths(workload, files, device)
    longest = max(paths, key=lambda path: sum(paths[path].values()))
    serial = {
        "evaluate": _evaluation_seconds(workload, machine),
        "commit": files["commit"],
    }
    seconds = curation | device | files | serial
    on_path = (*curation, *paths[longest], *serial)
    written, kept = _online_bytes(workload, steps, scan)
    reduced = 2 * (ranks - 1) / ranks * FLOAT_BYTES * workload.trained_parameters
    global_batch = workload.lanes * workload.batch_size
    rows = global_batch // ranks if workload.local_loss else global_batch
    return Cost(
        workload=workload.name,
        machine=machine.name,
        num_gpus=num_gpus,
        ranks=ranks,
        seconds=seconds,
        on_path=on_path,
        total_seconds=sum(seconds[stage] for stage in on_path),
        scan=scan,
        captions=scanned * ranks,
        captions_per_second=scanned * ranks / sum(curation.values()),
        bytes_written=written,
        bytes_kept=kept,
        bytes_reduced=reduced * workload.updates,
        loss_matrix_bytes=float(FLOAT_BYTES * rows * global_batch),
        selection_bytes=workload.lanes // ranks * scan.kept * SELECTED_ROW_BYTES,
    )


def _device_seconds(workload: Workload, machine: Machine, ranks: int) -> dict[str, float]:
    """Training on the accelerator of one rank, over the whole run."""
    global_batch = workload.lanes * workload.batch_size
    pairs = workload.updates * global_batch / ranks
    vision = workload.vision.forward_flops(workload.vision_tokens)
    # Backward is twice the forward pass; gradient caching makes the forward pass twice.
    text = (4 if workload.micro_batch else 3) * workload.text.forward_flops(workload.mean_tokens)
    rows = global_batch / ranks if workload.local_loss else global_batch
    logits = 6.0 * rows * global_batch * workload.projection_dim
    sides = 2 * FLOAT_BYTES * global_batch * workload.projection_dim
    gradients = FLOAT_BYTES * workload.trained_parameters
    return {
        "vision": 0.0
        if workload.cached_features
        else pairs * vision / (machine.gemm_flops * machine.vision_utilisation),
        "text": pairs * text / (machine.gemm_flops * machine.train_utilisation),
        "loss": workload.updates * logits / machine.gemm_flops,
        # Features go out on the way forward, their gradients come back.
        "gather": workload.updates * all_reduce_seconds(sides, machine, ranks),
        "reduce": workload.updates * all_reduce_seconds(gradients, machine, ranks),
    }


def _file_seconds(
    workload: Workload, machine: Machine, ranks: int, steps: int, scan: Scan
) -> dict[str, float]:
    """Images, shards and commits of one rank, over the whole run."""
    lanes_per_rank = workload.lanes // ranks
    pairs = workload.updates * workload.batch_size * lanes_per_rank
    threads = min(lanes_per_rank, machine.cores)
    shards = pairs / workload.pairs_per_shard
    syncs = shards * FILES_PER_SHARD * FSYNCS_PER_FILE * machine.fsync_seconds
    # An image with a cached feature is not decoded again.
    checked = 0.0 if workload.cached_features else pairs / machine.decode_images
    shard_seconds = pairs * workload.image_bytes / machine.shard_bytes
    storage = _storage_rate(machine, ranks)
    moved = pairs * workload.image_bytes
    processes = max(1, min(workload.num_workers, machine.cores))
    rows = steps * lanes_per_rank * (scan.kept + NEAR_MISSES_PER_ENTRY * workload.metadata_entries)
    tables = steps * lanes_per_rank * LEDGER_TABLES * FSYNCS_PER_FILE * machine.fsync_seconds
    return {
        "check": checked / min(MAX_THREADS, machine.cores),
        "write shards": max((shard_seconds + syncs) / threads, 2 * moved / storage),
        "decode": 0.0 if workload.cached_features else pairs / (machine.view_images * processes),
        # One rank writes it, and has its node's rate for itself.
        "commit": steps
        * checkpoint_bytes(workload)
        / min(machine.checkpoint_bytes, _storage_rate(machine, 1))
        + rows * workload.selection_row_bytes / machine.ledger_bytes
        + tables,
    }


def _training_paths(
    workload: Workload, files: Mapping[str, float], device: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """The chains of stages that run beside each other while a step trains; the longest counts."""
    beside = {stage: {stage: files[stage]} for stage in ("check", "write shards")}
    decode = {"decode": files["decode"]}
    if workload.num_workers:
        return {**beside, "decode": decode, "device": dict(device)}
    return {**beside, "device": {**decode, **device}}


def _evaluation_seconds(workload: Workload, machine: Machine) -> float:
    """All evaluations, in float32 on one rank, decoded in its process."""
    flops = workload.vision.forward_flops(workload.vision_tokens)
    rate = machine.float32_flops * machine.vision_utilisation
    return workload.evaluated_images * (flops / rate + 1 / machine.view_images)


def _storage_rate(machine: Machine, ranks: int) -> float:
    """Bytes/s of the shared file system for one rank, when all of them ask."""
    on_node = min(ranks, machine.devices_per_node)
    return min(machine.storage_bytes / on_node, machine.storage_total_bytes / ranks)


def _online_bytes(workload: Workload, steps: int, scan: Scan) -> tuple[dict[str, float], float]:
    """Bytes written by kind, and bytes on disk at the end."""
    pairs = float(workload.updates * workload.batch_size * workload.lanes)
    near_misses = steps * workload.lanes * NEAR_MISSES_PER_ENTRY * workload.metadata_entries
    checkpoint = checkpoint_bytes(workload)
    row_bytes = workload.selection_row_bytes + workload.used_row_bytes
    written = {
        "ledger": steps * workload.lanes * scan.kept * row_bytes,
        "near misses": near_misses * workload.selection_row_bytes,
        "shards": pairs * workload.image_bytes,
        "checkpoints": steps * checkpoint,
    }
    kept = written["ledger"] + written["near misses"]
    kept += min(KEPT_SHARD_STEPS, steps) * written["shards"] / steps
    kept += min(KEPT_CHECKPOINTS, steps) * checkpoint
    return written, kept


def _offline(workload: Workload, machine: Machine, num_gpus: int) -> Cost:
    """One pass over the pool, its captions divided evenly over the accelerators."""
    storage = _storage_rate(machine, num_gpus)
    kept = workload.captions * max(workload.pass_ratio, workload.min_ratio)
    ledger_bytes = kept * workload.selection_row_bytes
    seconds = scan_seconds(workload, machine, workload.captions / num_gpus)
    # One process applies the rules to all scores, in the order of the scan, for which it reads the
    # captions once more; its ledger is one file a lane.
    rules = workload.captions / machine.select_captions
    again = workload.captions / machine.read_captions if workload.pipelined else 0.0
    seconds["select"] = rules + again
    seconds["write ledger"] = ledger_bytes / min(machine.ledger_bytes, storage)
    seconds["storage"] = workload.captions / num_gpus * workload.caption_bytes / storage
    chains: tuple[tuple[str, ...], ...] = (
        ("read", "tokenise", "embed", "search"),
        ("select", "write ledger"),
    )
    if not workload.pipelined:
        chains = ((*chains[0], *chains[1]),)
    on_path = max((*chains, ("storage",)), key=lambda chain: sum(seconds[each] for each in chain))
    total = sum(seconds[stage] for stage in on_path)
    near_misses = workload.lanes * NEAR_MISSES_PER_ENTRY * workload.metadata_entries
    written = {
        "ledger": ledger_bytes,
        "near misses": near_misses * workload.selection_row_bytes,
    }
    scan = Scan(captions=workload.captions / num_gpus, kept=kept, passes=1.0, fills=True)
    return Cost(
        workload=workload.name,
        machine=machine.name,
        num_gpus=num_gpus,
        ranks=num_gpus,
        seconds=seconds,
        on_path=on_path,
        total_seconds=total,
        scan=scan,
        captions=workload.captions,
        captions_per_second=workload.captions / total,
        bytes_written=written,
        bytes_kept=sum(written.values()),
        bytes_reduced=0.0,
        loss_matrix_bytes=0.0,
        selection_bytes=kept * SELECTED_ROW_BYTES,
    )
