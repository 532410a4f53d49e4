"""The GPU of each rank, and what carries tensors from rank to rank."""

import logging

import torch
from torch.distributed import distributed_c10d as c10d

logger = logging.getLogger(__name__)


def own_gpu(local_rank: int) -> torch.device:
    """The GPU of a rank: its own, or shared in turn where this machine has fewer GPUs than ranks.

    A launcher may also show each rank its own GPU alone, which is number 0 for all of them.
    """
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def collective_backend(store: c10d.Store, *, rank: int, size: int, local_rank: int) -> str:
    """The backend of the ranks' collectives on GPUs, the same on all ranks.

    NCCL carries tensors between GPUs, but refuses two ranks on one. Then gloo does, through the
    memory of the host.

    Args:
        store: The store of all ranks.
        rank: The number of this rank.
        size: The number of ranks.
        local_rank: The number of this rank on its machine.

    Raises:
        RuntimeError: A rank does not say which GPU it has.
    """
    gpu = torch.cuda.get_device_properties(own_gpu(local_rank))
    store.set(f"gpu/{rank}", str(gpu.uuid))
    num_gpus = len({store.get(f"gpu/{other}") for other in range(size)})
    if num_gpus == size:
        return "cpu:gloo,cuda:nccl"
    if rank == 0:
        logger.warning(
            "%d ranks share %d GPU%s, which is slower than one rank for each",
            *(size, num_gpus, "" if num_gpus == 1 else "s"),
        )
    return "gloo"
