"""How the last attempt at a run ended: RUN/status.json.

A launcher's own exit code says little (torchrun ends with 1 whatever its ranks ended with). So
the code and the reason are written where the starter of the next attempt can read them.
"""

import contextlib
import errno
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cit_curate.errors import CitError, DamagedError, ResourceError
from cit_curate.storage.durable import read_json, write_sealed

# The exit code of a run that stopped on request and can be resumed.
STOPPED = 75
# By exit code (docs/formats.md).
REASONS = {
    0: "finished",
    1: "bug",
    2: "config",
    3: "bad_input",
    4: "damaged",
    5: "resource",
    6: "peer_lost",
    7: "not_finite",
    STOPPED: "stopped",
    130: "interrupted",
}
_FIELDS = {"code", "reason", "outer_step", "step", "rank", "resumable", "message"}
# Exit codes after which the same command may succeed.
_RESUMABLE = (5, 6, STOPPED, 130)


_OUT_OF_RESOURCES = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
)
_NOT_ALLOWED = (errno.EACCES, errno.EROFS, errno.EPERM)
_FAILED_STORAGE = (errno.EIO, errno.ESTALE)
# Messages of the allocators of PyTorch and FAISS, whose errors have no class of their own on a CPU.
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
)


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error (docs/formats.md)."""
    if isinstance(error, CitError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return ResourceError.exit_code if _advice(error) else 1


def message_of(error: BaseException) -> str:
    """The error's message, with advice where the message has none."""
    message = str(error) or type(error).__name__
    if isinstance(error, CitError) or not (advice := _advice(error)):
        return message
    if is_out_of_memory(error):
        # A page of C++ frames may follow the first line.
        message = f"out of memory ({message.splitlines()[0]})"
    return f"{message}; {advice}, and run the command again"


def _advice(error: BaseException) -> str:
    """The advice about a missing resource; empty for other errors."""
    if is_out_of_memory(error):
        return "lower --micro-batch or --batch-size"
    number = error.errno if isinstance(error, OSError) else None
    if number in _OUT_OF_RESOURCES:
        return "free some space or raise the limit"
    if number in _NOT_ALLOWED:
        return "choose a folder that you may write to"
    if number in _FAILED_STORAGE:
        return "check the disk, or remount the network file system"
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this machine or its GPU is out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True  # torch is not imported for its class
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in message for sign in _NO_MEMORY)


def write_status(run_folder: Path, code: int, message: str, progress: Mapping[str, Any]) -> None:
    """Write how an attempt ended; a folder that cannot be written to has no status.

    Args:
        run_folder: The run folder; nothing is written into a folder without a run.
        code: The exit code.
        message: The message for people.
        progress: `outer_step` and `update`, and `rank` if the failure has one.
    """
    if not (run_folder / "config.json").is_file():
        return
    by_signal = code - 128 in set(signal.Signals)
    value = {
        "code": code,
        "reason": REASONS.get(code, "interrupted" if by_signal else "bug"),
        "outer_step": progress["outer_step"],
        "step": progress["update"],
        "rank": progress.get("rank", 0),
        "resumable": code in _RESUMABLE or by_signal,
        "message": message,
    }
    with contextlib.suppress(OSError):
        if read_status(run_folder) != value:
            write_sealed(run_folder / "status.json", value)


def read_status(run_folder: Path) -> dict[str, Any] | None:
    """The status of the last attempt; None during an attempt, or after one that was killed.

    Raises:
        DamagedError: The file is truncated, or has changed.
    """
    path = run_folder / "status.json"
    if not path.is_file():
        return None
    value: dict[str, Any] = read_json(path)
    if not isinstance(value, dict) or not value.keys() <= _FIELDS:
        raise DamagedError(f"{path} is damaged: it is not a status")
    return value


def clear_status(run_folder: Path) -> None:
    """Remove the status of the last attempt before a new one, unless the run has finished."""
    status = read_status(run_folder)
    if status is not None and status["code"] != 0:
        (run_folder / "status.json").unlink(missing_ok=True)
