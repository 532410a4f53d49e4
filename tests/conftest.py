"""No test contacts anybody; tests that name rows of `faults.csv` can count how they ended."""

import csv
import gc
import json
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# How long an example takes depends on what else the machine does, and on what it imports first.
hypothesis.settings.register_profile("cit", deadline=None)
hypothesis.settings.load_profile("cit")

# Some machines forbid it. Each of a thousand processes would compile the packages once more, and
# each worker the tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Imports make a million objects that stay. Looking for garbage among them, over and over, was a
# seventh of a worker's seconds; those of before the first test are never looked at again.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or extensions report their functions as leaked


# Every Python that a test starts imports the guard, too.
GUARD = Path(__file__).with_name("guard")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), os.environ.get("PYTHONPATH")]))
sys.path[:0] = [str(GUARD), str(Path(__file__).with_name("forking"))]
from sitecustomize import LOG, network_guard  # noqa: E402

# A shell without job control has its background jobs ignore Ctrl-C, and with them what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Read once, when huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# Begun first, so that at the end no worker is left with one of them.
LONGEST = ("test_demo.py", "test_ray_engine.py", "test_fail_points.py")
FAULTS = Path(__file__).with_name("faults.csv")


@cache
def known_rows() -> frozenset[str]:
    """The ids of `faults.csv`."""
    with FAULTS.open(encoding="utf-8", newline="") as stream:
        return frozenset(row["id"] for row in csv.DictReader(stream))


class FaultResults:
    """Counts how the tests of each row of `faults.csv` ended, and writes it as JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ended: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:  # set-up and clean-up
            return
        for name, rows in report.user_properties:
            for row in rows if name == "faults" else ():
                self.ended[row][report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        results = {
            row: {outcome: ended[outcome] for outcome in ("passed", "failed", "skipped")}
            for row, ended in sorted(self.ended.items())
        }
        self.path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-results",
        metavar="FILE",
        help="write how many tests of each row of faults.csv passed, failed or were skipped",
    )
    parser.addoption(
        "--gpu-device",
        default="cuda",
        help="device of the tests marked gpu; with cpu they are rehearsed where there is none",
    )
    parser.addoption(
        "--soak-minutes",
        type=float,
        default=0.25,
        help="how long the test of very many outer steps trains",
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--fault-results")
    network_guard()
    if path and not hasattr(config, "workerinput"):  # workers of pytest-xdist report to one process
        config.pluginmanager.register(FaultResults(Path(path).absolute()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Print how a worker of pytest-xdist ended that nobody asked to."""
    if error:
        code = node.gateway._io.wait()
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        sys.stdout.write(f"\nworker {node.gateway.id} ended by {how}\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def rows_of(item: pytest.Item) -> set[str]:
    """The rows of `faults.csv` that the marks of a test name."""
    return {row for mark in item.iter_markers("faults") for row in mark.args}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if unknown := rows_of(metafunc.definition) - known_rows():
        name = metafunc.function.__name__
        pytest.fail(f"{name}: faults.csv has no row {', '.join(unknown)}", pytrace=False)


def pytest_itemcollected(item: pytest.Item) -> None:
    item.user_properties.append(("faults", sorted(rows_of(item))))  # unlike marks, in a report


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> str:
    """The device of a test marked gpu, which is skipped where there is no such device."""
    import torch

    assert request.node.get_closest_marker("gpu"), "mark it gpu, so that it is not in the fast set"
    device: str = request.config.getoption("--gpu-device")
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return device


@pytest.fixture(autouse=True)
def network_attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What the test tried to reach beyond this machine; it fails unless it clears this list.

    What it started tells in a file of this worker, which the next test empties.
    """
    attempts = network_guard().attempts
    attempts.clear()
    log = tmp_path_factory.getbasetemp() / "network_attempts.txt"
    if not log.exists() or log.stat().st_size:
        log.write_text("")
    os.environ[LOG] = str(log)
    yield attempts
    assert attempts == []
    assert not log.stat().st_size, log.read_text()
