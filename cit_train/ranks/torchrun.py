"""`cit train --nproc N`: the ranks of one machine, started through torchrun."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cit_curate.errors import ConfigError, PeerLostError
from cit_train.ranks.status import read_status
from cit_train.ranks.stopping import SAME_REQUEST_SECONDS, SIGNALS

# How long torchrun lets the ranks save after a stop request, before it kills them.
SHUTDOWN_SECONDS = 300
# How long the ranks may take to end by themselves after a second request.
_INSISTED_SECONDS = 3.0

logger = logging.getLogger(__name__)


def launch(num_ranks: int, arguments: Sequence[str], out: Path) -> int:
    """Start `cit ARGUMENTS` as ranks on this machine, and wait for them.

    torchrun on its own abandons the ranks on a signal that it does not handle, and ends with 1
    whatever their exit codes. This passes on every stop signal, and the exit code.

    Args:
        num_ranks: The number of ranks.
        arguments: The arguments of the `cit` command, without `--nproc`.
        out: The run folder, whose status says how the run ended.

    Returns:
        The exit code of the rank that ended it.

    Raises:
        ConfigError: This process is itself a rank.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    if "WORLD_SIZE" in os.environ:
        raise ConfigError(
            "--nproc starts ranks, but this process is one already (WORLD_SIZE is set); leave "
            "--nproc out under torchrun or srun"
        )
    # torchrun reports a failure with a page about processes; the rank has logged the reason.
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_ranks, 1)))
    options = ["--standalone", f"--nproc-per-node={num_ranks}", "--max-restarts=0"]
    supported = {
        option for action in get_args_parser()._actions for option in action.option_strings
    }
    signal_options = {
        "--signals-to-handle": ",".join(number.name for number in SIGNALS),
        "--shutdown-timeout": str(SHUTDOWN_SECONDS),
    }
    if missing := [name for name in signal_options if name not in supported]:
        logger.warning(
            "torchrun of this version of torch has no %s: it passes TERM, INT and HUP on to the "
            "ranks, but not USR1 and USR2; torch 2.9 does",
            " and no ".join(missing),
        )
    options += [f"{name}={value}" for name, value in signal_options.items() if name in supported]
    command = get_args_parser().parse_args([*options, "-m", "cit_train.cli", *arguments])
    before = _stamp(out)
    try:
        with _ending_on_second_signal():
            run(command)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # The status has the first failure of a rank; without one, a rank was killed from outside.
        if _stamp(out) not in (None, before):
            return _code_in(out)
        return failure.exitcode if failure.exitcode > 0 else PeerLostError.exit_code
    except SignalException as error:
        _kill_ranks()  # the signal came before torchrun had registered them
        by_signal = 128 + signal.Signals(error.sigval)
        # A second signal while torchrun waited, or one before the ranks opened the run.
        is_second = isinstance(error.__context__, SignalException)
        return by_signal if is_second or _stamp(out) in (None, before) else _code_in(out)
    return 0


def _stamp(out: Path) -> int | None:
    """The modification time of the run's status, in nanoseconds; None without a status."""
    with contextlib.suppress(FileNotFoundError):
        return (out / "status.json").stat().st_mtime_ns
    return None


def _code_in(out: Path) -> int:
    status = read_status(out)
    assert status is not None
    return int(status["code"])


@contextlib.contextmanager
def _ending_on_second_signal() -> Iterator[None]:
    """A block in which a second stop request ends the ranks and this process within seconds.

    torchrun alone would pass the request on, and then wait for as long as before.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    threading.Thread(target=_insist, args=(reader,), name="insist", daemon=True).start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()


def _insist(reader: socket.socket) -> None:
    first: float | None = None
    with reader:
        while numbers := reader.recv(1):
            if numbers[0] not in SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first > SAME_REQUEST_SECONDS:
                break
        else:
            return
    time.sleep(_INSISTED_SECONDS)
    _kill_ranks()
    os._exit(128 + numbers[0])


def _kill_ranks() -> None:
    """Kill the remaining ranks; without /proc, they notice the lost launcher themselves."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(child) == child:  # torchrun gives each rank a session
                    os.kill(child, signal.SIGKILL)
