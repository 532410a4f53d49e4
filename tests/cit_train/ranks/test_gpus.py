"""Which GPU each rank has, and what carries tensors between them."""

import logging
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore

from cit_train.ranks.gpus import collective_backend, own_gpu


def backends(monkeypatch: pytest.MonkeyPatch, uuids: list[str], num_visible: int) -> set[str]:
    """The backends that ranks of one machine take, whose GPUs have these names."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    shown = iter(uuids)  # ranks ask in any order; only how many differ matters
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid=next(shown))
    )
    store, size = HashStore(), len(uuids)
    with ThreadPoolExecutor(size) as ranks:
        found = [
            ranks.submit(collective_backend, store, rank=rank, size=size, local_rank=rank)
            for rank in range(size)
        ]
        return {each.result(timeout=20) for each in found}


def test_each_rank_has_a_gpu_or_shares_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [own_gpu(rank).index for rank in range(4)] == [0, 1, 2, 3]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [own_gpu(rank).index for rank in range(3)] == [0, 0, 0]


def test_ranks_with_a_gpu_each_are_joined_by_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends(monkeypatch, ["a", "b"], 2) == {"cpu:gloo,cuda:nccl"}
    # A launcher that shows each rank only its own.
    assert backends(monkeypatch, ["a", "b", "c"], 1) == {"cpu:gloo,cuda:nccl"}


def test_ranks_that_share_a_gpu_are_joined_by_gloo_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert backends(monkeypatch, ["a", "a"], 1) == {"gloo"}
        assert backends(monkeypatch, ["a", "b", "a", "b"], 2) == {"gloo"}
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "2 ranks share 1 GPU",
        "4 ranks share 2 GPUs",
    ]
