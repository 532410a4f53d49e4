"""The rate of an all-reduce between two processes of this machine, over gloo."""

import multiprocessing
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path


def all_reduce_rate(num_bytes: int, *, times: int = 3) -> float:
    """Bytes/s of one buffer, start-up and first use apart.

    With two ranks a ring sends each byte once from each rank, so this is the rate of the link.
    """
    context = multiprocessing.get_context("spawn")
    found: Queue[float] = context.Queue()
    with tempfile.TemporaryDirectory(prefix="cit-reduce-") as folder:
        store = str(Path(folder) / "store")
        ranks = [
            context.Process(target=_reduce, args=(rank, store, num_bytes, times, found))
            for rank in range(2)
        ]
        for each in ranks:
            each.start()
        seconds = max(found.get(timeout=300) for _ in ranks)
        for each in ranks:
            each.join()
    return num_bytes / seconds


def _reduce(rank: int, store: str, num_bytes: int, times: int, found: "Queue[float]") -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    buffer = torch.ones(max(num_bytes // 4, 1))
    dist.all_reduce(buffer)
    dist.barrier()
    started = time.perf_counter()
    for _ in range(times):
        dist.all_reduce(buffer)
    found.put((time.perf_counter() - started) / times)
    dist.destroy_process_group()
