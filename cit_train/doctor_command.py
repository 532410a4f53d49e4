"""What `cit doctor` does: what is installed here, and what is missing or too old."""

import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from cit_curate.errors import ConfigError
from cit_curate.printing import print_json
from cit_curate.terminal import print_line


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `fix` is what to do about it, empty where it is fine."""

    what: str
    found: str
    fix: str = ""


def doctor(*, json: bool = False) -> None:
    """Say what is installed here, what is missing, and how to get it.

    Packages that are too old fail, some because of holes that are known: an old Pillow or torch can
    be made to run code by the files that it opens. Exit code 2 if anything is to be done.

        cit doctor

    Args:
        json: Print one JSON document instead.
    """
    findings = [*_packages(metadata.requires("cit") or ()), _device(), _faiss(), _disk()]
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            fix = f"; {finding.fix}" if finding.fix else ""
            print_line(f"{finding.what}: {finding.found}{fix}")
    if wrong := [finding.what for finding in findings if finding.fix]:
        raise ConfigError(f"not ready: {', '.join(wrong)}")


def _packages(
    requirements: Iterable[str], version: Callable[[str], str] = metadata.version
) -> Iterator[Finding]:
    """Python, and each package that cit itself needs, extras left out."""
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        needed = f"{requirement.name}{requirement.specifier}"
        try:
            found = version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, "not installed", f"pip install '{needed}'")
            continue
        # What is newer than any release is no reason to complain.
        fine = requirement.specifier.contains(found, prereleases=True)
        yield Finding(requirement.name, found, "" if fine else f"pip install '{needed}'")


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("device", f"cpu, {torch.get_num_threads()} threads; PyTorch sees no GPU")
    numbers = range(torch.cuda.device_count())
    names = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in numbers]
    return Finding("device", ", ".join(names))


def _faiss() -> Finding:
    for name in ("faiss-gpu", "faiss-cpu"):
        try:
            return Finding("index", f"torch, or {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return Finding("index", "torch; for --index flat, ivf or hnsw: pip install 'cit[cpu]' or [gpu]")


def _disk() -> Finding:
    here = Path.cwd()
    return Finding("disk", f"{shutil.disk_usage(here).free / 1e9:,.1f} GB free in {here}")
