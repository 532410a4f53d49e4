"""Whether two runs are the same: ledger bytes and weights."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file

LEDGER = ("selections", "near_misses", "rounds", "used", "rejects", "manifests")


def ledger_hashes(run: Path) -> dict[str, str]:
    """SHA-256 of every ledger file, by its path in the run."""
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in LEDGER
        for path in sorted((run / table).rglob("*.*"))
        if path.is_file()
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The model of the last checkpoint."""
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Ledger bytes and weights are equal."""
    assert ledger_hashes(one)
    assert ledger_hashes(one) == ledger_hashes(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
