"""The tests marked gpu, and the benchmarks, with the numbers that stand for them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

from cit_curate.run.environment import describe_environment
from scripts.gpu_check.outcomes import Finding
from scripts.gpu_check.setting import ROOT, Setting, SkippedError, own_environment

TESTS = "tests/**/test_*_on_gpu.py"


def environment(setting: Setting) -> Finding:
    """What is installed here, and which GPU torch and FAISS see."""
    import torch

    packages = describe_environment()["packages"]
    measured: dict[str, str] = {name: packages[name] for name in ("torch", "transformers")}
    measured |= {"FAISS": faiss_state()}
    if not torch.cuda.is_available():
        measured |= {"GPU": "none"}
        wrong = ("PyTorch sees no GPU; rehearse with --device cpu",) if setting.on_gpu else ()
        return Finding(measured, wrong)
    gpu = torch.cuda.get_device_properties(torch.device(setting.device if setting.on_gpu else 0))
    measured |= {
        "GPU": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "GB": f"{gpu.total_memory / 1e9:.0f}",
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }
    return Finding(measured)


def faiss_state() -> str:
    """Such as `1.15.1, sees a GPU`."""
    try:
        import faiss

        from indexes.faiss_index import sees_gpu
    except ImportError as error:
        return str(error)
    return f"{faiss.__version__}, sees {'a' if sees_gpu() else 'no'} GPU"


def gpu_tests(setting: Setting) -> Finding:
    """The tests marked gpu."""
    setting.need_gpu()
    report = setting.folder / "gpu-tests.xml"
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(TESTS))
    spread = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--gpu-device", setting.device]
    command += [*spread, "-p", "no:cacheprovider", f"--junitxml={report}", *files]
    subprocess.run(command, cwd=ROOT, env=own_environment(), check=False)
    return tests_finding(report.read_text(encoding="utf-8"))


def tests_finding(report: str) -> Finding:
    """What pytest's JUnit report says.

    Raises:
        SkippedError: All tests were skipped, or there were none.
    """
    cases = list(ElementTree.fromstring(report).iter("testcase"))  # noqa: S314 - our own file
    failed = [
        f"{case.get('name')} failed"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = [case for case in cases if case.find("skipped") is not None]
    if len(skipped) == len(cases):
        reasons = {case.find("skipped").get("message", "") for case in skipped}  # type: ignore[union-attr]
        raise SkippedError("; ".join(sorted(reasons)) or "there are no such tests")
    passed = len(cases) - len(failed) - len(skipped)
    measured = {"passed": passed, "failed": len(failed), "skipped": len(skipped)}
    return Finding(measured, tuple(failed[:5]))


def text_encoder(setting: Setting) -> Finding:
    """`scripts.bench.text_encoder`: captions/s, and how near that is to the matrix products."""
    sizes = ["--captions", str(setting.size(16_384, 256)), "--repeats", str(setting.size(3, 1))]
    found = bench(setting, "text_encoder", sizes)
    limit = found["facts"]["share of the matrix products' rate"]
    return Finding({**rates(found), "share of the matrix products' rate": limit})


def curation(setting: Setting) -> Finding:
    """`scripts.bench.curation`: a pass over distinct captions against the plain loop."""
    sizes = ["--captions", str(setting.size(16_384, 256)), "--repeats", str(setting.size(3, 1))]
    found = bench(setting, "curation", ["--packaged", *sizes])
    return Finding({**rates(found), "kept pairs that differ": found["facts"]["differing"]})


def train_step(setting: Setting) -> Finding:
    """`scripts.bench.train_step`: updates/s of the plain step and of cit's ways."""
    sizes = ["--num-updates", str(setting.size(6, 2)), "--repeats", str(setting.size(3, 1))]
    sizes += ["--batch-size", str(setting.size(64, 8)), "--out", str(setting.folder)]
    return Finding(rates(bench(setting, "train_step", ["--drawn", *sizes])))


def bench(setting: Setting, name: str, flags: list[str]) -> dict[str, Any]:
    """The first comparison of a benchmark.

    Raises:
        RuntimeError: It failed.
    """
    file = setting.folder / f"bench-{name}.json"
    command = [sys.executable, "-m", f"scripts.bench.{name}", "--device", setting.device]
    command += ["--json", str(file), *flags]
    done = subprocess.run(command, cwd=ROOT, env=own_environment(), check=False)
    if done.returncode != 0:
        raise RuntimeError(f"scripts.bench.{name} ended with code {done.returncode}")
    comparison: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))["comparisons"][
        0
    ]
    return comparison


def rates(comparison: dict[str, Any]) -> dict[str, float]:
    """The median rate of each way, by its name."""
    unit = comparison["unit"]
    return {
        f"{unit}/s, {each['name']}": each["items"] / median(each["seconds"])
        for each in comparison["timings"]
    }
