"""What this machine's processor computes fast."""

import torch


def processor_name() -> str:
    """The processor's name, as it reports it; "" where PyTorch cannot tell."""
    return str(_capabilities().get("cpu_name", ""))


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32 (AMX or AVX512_BF16).

    Others emulate it, which takes longer than float32.
    """
    return any(bool(_capabilities().get(name)) for name in ("amx_bf16", "avx512_bf16"))


def has_int8() -> bool:
    """Whether the processor multiplies int8 faster than float32 (VNNI or AMX).

    On others it takes 25 times as long (AMD EPYC with AVX2 alone; the layers of MiniLM).
    """
    return any(bool(_capabilities().get(name)) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _capabilities() -> dict[str, object]:
    # Older versions of PyTorch cannot tell.
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return dict(capabilities()) if capabilities is not None else {}
