"""One attempt at a run: its ranks, its signals, and a record of how it ended."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cit_curate.errors import CitError, NotFiniteError
from cit_curate.storage.durable import write_json
from cit_train.config import TrainConfig
from cit_train.ranks.status import (
    exit_code_of,
    is_out_of_memory,
    message_of,
    read_status,
    write_status,
)
from cit_train.ranks.stopping import StoppedError, StopSignals
from cit_train.ranks.world import World, open_world


@contextlib.contextmanager
def attempt(config: TrainConfig, out: Path) -> Iterator[World]:
    """Join the ranks of the run for the block; afterwards RUN/status.json says how it ended.

    The first rank that fails gives the reason; the others end with a PeerLostError that names it.

    Raises:
        StoppedError: The block was stopped; the message says how to resume.
        PeerLostError: Another rank failed, or no longer responds.
    """
    with (
        StopSignals() as stop,
        open_world(
            stop,
            str(out),
            device=config.device,
            peer_seconds=config.peer_seconds,
            barrier_seconds=config.barrier_seconds,
        ) as world,
    ):
        world.heartbeat.last_words = lambda failure: _write(
            world, failure["code"], failure["message"], failure
        )
        try:
            yield world
        except StoppedError as error:
            stop.ignore()
            progress = world.heartbeat.progress
            stopped = StoppedError(
                f"stopped by {stop.requested}; {out} is saved at update {progress['update']} of "
                f"outer step {progress['outer_step']}: resume with the same command and --resume"
            )
            stopped.is_reported = not world.is_first
            if world.is_first:
                _write(world, stopped.exit_code, str(stopped))
            raise stopped from error
        except BaseException as error:
            if isinstance(error, NotFiniteError) and error.pair_keys:
                _keep_keys(world, error)
            cause = _report_failure(world, error)
            if cause is error:
                raise
            raise cause from error
        if world.is_first:
            _write(world, 0, "finished")


def _report_failure(world: World, error: BaseException) -> BaseException:
    """Report a failure to the other ranks; returns its cause, such as a lost peer."""
    lost = None
    is_own = isinstance(error, CitError) or is_out_of_memory(error)
    if isinstance(error, RuntimeError) and not is_own:
        lost = world.heartbeat.explain(error)
    cause = lost or error
    failure = world.heartbeat.fail(exit_code_of(cause), message_of(cause))
    if failure["told_by"] == world.rank:
        _write(world, failure["code"], failure["message"], failure)
    elif isinstance(cause, CitError):
        cause.is_reported = True
    return cause


def _write(
    world: World, code: int, message: str, progress: dict[str, object] | None = None
) -> None:
    if world.run_folder is None:
        return
    # The first failure of an attempt is the reason; later ones are only its consequences.
    status = read_status(world.run_folder)
    if code == 0 or status is None or status["code"] == 0:
        write_status(world.run_folder, code, message, progress or world.heartbeat.progress)


def _keep_keys(world: World, error: NotFiniteError) -> None:
    """Write the keys of the pairs whose loss or gradient is not finite, for inspection."""
    if world.run_folder is None:
        return
    folder = world.run_folder / "not_finite"
    name = f"update={world.heartbeat.progress['update']:06d}-rank={world.rank:05d}.json"
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        write_json(folder / name, error.pair_keys)
