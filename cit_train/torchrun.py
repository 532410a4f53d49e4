"""`cit train --nproc N`: the ranks of one machine, started through torchrun."""

import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from cit_curate.errors import ConfigError, PeerLostError
from cit_train.status import read_status
from cit_train.stopping import SIGNALS

# What torchrun waits for the ranks to save when it is asked to stop, before it kills them.
SHUTDOWN_SECONDS = 300


def launch(num_ranks: int, arguments: Sequence[str], out: Path) -> int:
    """Start `cit ARGUMENTS` as ranks on this machine, and wait for them.

    torchrun itself forgets the ranks when a signal comes that it was not told of, and ends with 1
    whatever they end with; this passes every signal on that a run stops at, and the code.

    Args:
        num_ranks: How many.
        arguments: Of the `cit` command, without `--nproc`.
        out: The run folder, whose status tells how it ended.

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
    # Its own account of a failure is a page about processes; the rank has said what is wrong.
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_ranks, 1)))
    options = ["--standalone", f"--nproc-per-node={num_ranks}", "--max-restarts=0"]
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    wanted = {
        "--signals-to-handle": ",".join(number.name for number in SIGNALS),
        "--shutdown-timeout": str(SHUTDOWN_SECONDS),
    }
    # Older versions of torchrun lack them; there TERM, INT and HUP are passed on, and no others.
    options += [f"{name}={value}" for name, value in wanted.items() if name in known]
    command = get_args_parser().parse_args([*options, "-m", "cit_train.cli", *arguments])
    try:
        run(command)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        return _code_in(out, else_code=PeerLostError.exit_code)  # killed from outside
    except SignalException as error:
        return _code_in(out, else_code=128 + signal.Signals(error.sigval))
    return 0


def _code_in(out: Path, *, else_code: int) -> int:
    status = read_status(out)
    return int(status["code"]) if status is not None else else_code
