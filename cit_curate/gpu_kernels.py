"""The kernels of a GPU: the same for a caption in any batch, and for a run that is started twice.

Both are settings of the process. A CPU needs neither, and is left alone.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def fix_attention_kernels(device: torch.device) -> None:
    """Leave cuDNN out of attention, from now on.

    Where torch prefers cuDNN (Hopper and Blackwell, since 2.13), it plans anew for each shape, and
    the plan follows from the number of captions. But packed passes have a new shape in almost every
    run of captions of one length, and a caption's vector must not depend on how many others there
    are. The other kernels compute each caption by itself.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)


@contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Add up in one order within the block, so that a run gives the same bytes again.

    Where torch has no such kernel, it warns and takes another one: a run is not refused for it.
    """
    fix_attention_kernels(device)
    if device.type != "cuda":
        yield
        return
    # Read by cuBLAS at its first product; the size is torch's own choice for Hopper.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic,
    )
    with warnings.catch_warnings():
        # It is about longer texts: the keys of a caption fit into one block.
        warnings.filterwarnings("ignore", message="Memory Efficient attention defaults")
        try:
            _set(True, warn_only=True, fills_memory=False, cudnn=True)
            yield
        finally:
            is_on, warn_only, fills_memory, cudnn = before
            _set(is_on, warn_only=warn_only, fills_memory=fills_memory, cudnn=cudnn)


def _set(is_on: bool, *, warn_only: bool, fills_memory: bool, cudnn: bool) -> None:
    torch.use_deterministic_algorithms(is_on, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fills_memory  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = cudnn
