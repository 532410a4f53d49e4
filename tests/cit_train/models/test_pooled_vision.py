"""The passes of a frozen vision tower."""

import torch

from cit_train.models.pooled_vision import CPU_ROWS, GPU_ROWS, PooledVision
from cit_train.transforms import Normalizer


def vision(device: str) -> PooledVision:
    return PooledVision(None, Normalizer((0.5,) * 3, (0.5,) * 3), torch.device(device))


def test_a_gpu_fills_its_passes_up_to_the_batch_and_no_further() -> None:
    for batch_size, rows in ((64, 64), (GPU_ROWS, GPU_ROWS), (1_024, GPU_ROWS)):
        gpu = vision("cuda")
        gpu.limit_rows(batch_size)
        assert gpu.rows == rows


def test_a_cpus_passes_stay_as_they_are() -> None:
    cpu = vision("cpu")
    cpu.limit_rows(2)
    assert cpu.rows == CPU_ROWS
