"""The command `cit doctor`: what is installed, and what is missing or too old."""

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

_FAISS_FIX = "pip install --force-reinstall 'cit[gpu]', or [cpu] after pip uninstall faiss-gpu"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: The subject, such as a package.
        found: Its version or state.
        fix: The remedy; empty if none is needed.
    """

    what: str
    found: str
    fix: str = ""


def doctor(*, json: bool = False) -> None:
    """Show what is installed here, what is missing, and how to get it.

    Packages that are too old fail, some because of known security holes: a file that an old Pillow
    or torch opens can make it run code. Exit code 2 if anything needs a fix.

        cit doctor

    Args:
        json: Print one JSON document instead.
    """
    packages = _packages(metadata.requires("cit") or ())
    findings = [*packages, _device(), _vision_engine(), _faiss(), _disk()]
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
    """Python, and each package that cit itself requires, without extras."""
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            installed = version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, "not installed", fix)
            continue
        # A prerelease that is new enough is fine.
        is_fine = requirement.specifier.contains(installed, prereleases=True)
        yield Finding(requirement.name, installed, "" if is_fine else fix)


def _device() -> Finding:
    import torch

    from cit_curate.processor import has_bfloat16, processor_name

    if not torch.cuda.is_available():
        fast = "bfloat16" if has_bfloat16() else "no fast bfloat16"
        found = f"cpu, {processor_name()}, {fast}, {torch.get_num_threads()} threads"
        return Finding("device", f"{found}; PyTorch sees no GPU")
    numbers = range(torch.cuda.device_count())
    names = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in numbers]
    return Finding("device", ", ".join(names))


def _vision_engine() -> Finding:
    try:
        found = f"OpenVINO {metadata.version('openvino')} on a CPU"
    except metadata.PackageNotFoundError:
        found = "PyTorch; faster on a CPU: pip install 'cit[fast-cpu]'"
    return Finding("cached vision features", found)


def _faiss() -> Finding:
    for name in ("faiss-gpu", "faiss-cpu"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        try:
            from indexes.faiss_index import sees_gpu
        except ImportError as error:  # such as a wheel for another CUDA
            return Finding(
                "index", f"torch; {name} {version} cannot be loaded: {error}", _FAISS_FIX
            )
        where = "" if name == "faiss-cpu" else f", which sees {'a' if sees_gpu() else 'no'} GPU"
        return Finding("index", f"torch, or {name} {version}{where}")
    return Finding("index", "torch; for --index flat, ivf or hnsw: pip install 'cit[cpu]' or [gpu]")


def _disk() -> Finding:
    here = Path.cwd()
    return Finding("disk", f"{shutil.disk_usage(here).free / 1e9:,.1f} GB free in {here}")
