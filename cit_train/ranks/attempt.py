"""One try of a run: its ranks, its signals, and how it ended, written down whatever happens."""

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
    """Be a rank of the run within the block; afterwards RUN/status.json says how it ended.

    The first rank that fails says why; the others end with a PeerLostError that names it.

    Raises:
        StoppedError: The block was stopped; the message says what to do.
        PeerLostError: Another rank failed, or is silent.
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
            last = world.heartbeat.place
            place = f"update {last['update']} of outer step {last['outer_step']}"
            stopped = StoppedError(
                f"stopped by {stop.requested}; {out} is saved at {place}: go on with the same "
                "command and --resume"
            )
            stopped.is_told = not world.is_first
            if world.is_first:
                _write(world, stopped.exit_code, str(stopped))
            raise stopped from error
        except BaseException as error:
            if isinstance(error, NotFiniteError) and error.pair_keys:
                _keep_keys(world, error)
            ended = _failed(world, error)
            if ended is error:
                raise
            raise ended from error
        if world.is_first:
            _write(world, 0, "finished")


def _failed(world: World, error: BaseException) -> BaseException:
    """Tell the others, and what the failure really is: a peer's, when a collective broke."""
    lost = None
    is_own = isinstance(error, CitError) or is_out_of_memory(error)
    if isinstance(error, RuntimeError) and not is_own:
        lost = world.heartbeat.explain(error)
    ended = lost or error
    failure = world.heartbeat.fail(exit_code_of(ended), message_of(ended))
    if failure["told_by"] == world.rank:
        _write(world, failure["code"], failure["message"], failure)
    elif isinstance(ended, CitError):
        ended.is_told = True
    return ended


def _write(world: World, code: int, message: str, place: dict[str, object] | None = None) -> None:
    if world.run_folder is None:
        return
    # The first failure of a try is the reason; who wakes up later sees only what came of it.
    status = read_status(world.run_folder)
    if code == 0 or status is None or status["code"] == 0:
        write_status(world.run_folder, code, message, place or world.heartbeat.place)


def _keep_keys(world: World, error: NotFiniteError) -> None:
    """Leave the pairs of what is not finite on the disk, for whoever looks into it."""
    if world.run_folder is None:
        return
    folder = world.run_folder / "not_finite"
    name = f"update={world.heartbeat.place['update']:06d}-rank={world.rank:05d}.json"
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        write_json(folder / name, error.pair_keys)
