"""Settings of a GPU's kernels; torch takes them without a GPU, too."""

import os
from collections.abc import Iterator

import pytest
import torch

from cit_curate.gpu_kernels import deterministic_kernels, fix_attention_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings() -> tuple[bool, bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.deterministic,
    )


@pytest.fixture(autouse=True)
def cudnn_attention() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled=True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(enabled=before)


def test_on_a_gpu_no_attention_kernel_depends_on_the_number_of_captions() -> None:
    fix_attention_kernels(CPU)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    fix_attention_kernels(GPU)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_kernels_are_deterministic_on_a_gpu_for_the_block_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    with deterministic_kernels(CPU):
        assert settings() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic_kernels(GPU):
        assert settings() == (True, True, False, True)
        assert not torch.backends.cuda.cudnn_sdp_enabled()  # the training process's attention, too
    assert settings() == before
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]


def test_a_workspace_that_was_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_kernels(GPU):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
