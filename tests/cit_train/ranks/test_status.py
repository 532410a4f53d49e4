"""What a try that failed says: its exit code, and a next step."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import make_config
from tiny_runs import finish, start_training, status

from cit_train.inner_loop.trainer import Trainer
from cit_train.outer_loop import train
from cit_train.ranks.status import exit_code_of, message_of
from cit_train.ranks.stopping import SAME_REQUEST_SECONDS

FRAMES = "\nframe #0: c10::ThrowEnforceNotMet(char const*)"


def too_much_memory() -> Exception:
    """What PyTorch raises when a CPU has no such memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**57)
    return caught.value


@pytest.mark.faults("S8")
@pytest.mark.parametrize(
    "make",
    [
        too_much_memory,
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB." + FRAMES),
        lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),
        lambda: RuntimeError("Caught RuntimeError in DataLoader worker: can't allocate memory"),
        lambda: RuntimeError("std::bad_alloc"),
        lambda: MemoryError(),
        lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_lack_of_memory_ends_with_5_and_names_the_flags_that_take_less(
    make: Callable[[], Exception],
) -> None:
    error = make()
    assert exit_code_of(error) == 5
    said = message_of(error)
    assert said.startswith("out of memory (")
    assert said.endswith("lower --micro-batch or --batch-size, and run the command again")
    assert "\n" not in said


@pytest.mark.faults("P8", "S7", "L9")
@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.EIO, "check the disk"),
        (errno.ESTALE, "remount the network file system"),
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "choose a folder"),
    ],
)
def test_storage_that_fails_ends_with_5_and_the_file_and_a_next_step(
    number: int, step: str
) -> None:
    error = OSError(number, os.strerror(number), "RUN/metrics.jsonl")
    assert exit_code_of(error) == 5
    assert "RUN/metrics.jsonl" in message_of(error)
    assert step in message_of(error)
    assert message_of(error).endswith("run the command again")


def test_another_error_is_a_bug_and_says_what_it_says() -> None:
    for error in (
        RuntimeError("shapes differ"),
        OSError(errno.EPIPE, "Broken pipe"),
        KeyError("a"),
    ):
        assert exit_code_of(error) == 1
        assert message_of(error) == str(error)
    assert message_of(ValueError()) == "ValueError"


@pytest.mark.faults("S8")
def test_training_without_memory_leaves_a_status_that_can_be_resumed_and_says_how(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB." + FRAMES)

    config = make_config(world)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(torch.OutOfMemoryError):
            train(config, tmp_path / "run")
    left = status(tmp_path / "run")
    assert (left["code"], left["reason"], left["resumable"]) == (5, "resource", True)
    assert "lower --micro-batch or --batch-size" in left["message"]
    train(config, tmp_path / "run", resume=True)
    assert status(tmp_path / "run")["code"] == 0


@pytest.mark.faults("D4", "G4c")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.slow
def test_a_second_signal_says_what_happened_and_the_next_step(
    world: Path, tmp_path: Path, name: str, code: int
) -> None:
    out = tmp_path / "run"
    act = f"{name} sleep{SAME_REQUEST_SECONDS + 0.1} {name} sleep1"
    fault = {"moment": "train", "update": 1, "act": act}
    training = start_training(world, out, faults=[fault])
    assert finish(training) == code
    left = status(out)
    assert (left["code"], left["reason"], left["resumable"]) == (code, "interrupted", True)
    assert left["message"].startswith(f"ended at once by a second signal, {name}, without saving")
    assert left["message"].endswith("with the same command and --resume")


@pytest.mark.faults("G4c")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_second_signal_is_told_on_stderr(name: str) -> None:
    code = (
        "import os, signal, sys, time\n"
        "from cit_train import cli\n"
        "from cit_train.ranks.stopping import SAME_REQUEST_SECONDS, StopSignals\n"
        "def run(args):\n"
        "    with StopSignals():\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "        time.sleep(SAME_REQUEST_SECONDS + 0.1)\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "        time.sleep(5)\n"
        "cli.run = run\n"
        "cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == (130 if name == "SIGINT" else 143)
    assert ended.stderr.startswith(f"ended at once by a second signal, {name}, without saving")
    assert ended.stderr.count("\n") == 1
