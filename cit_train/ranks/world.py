"""The ranks of a run: which lanes each has, what they agree on, and which one is lost.

Tensors go through torch.distributed. Small values that must be the same everywhere (a stop, the
files of a commit) are exchanged as JSON in its key-value store, where waiting has a heartbeat. So a
rank that is silent or too slow is named, instead of a timeout somewhere in a collective.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from cit_curate.errors import ConfigError, PeerLostError
from cit_train.ranks.gpus import collective_backend
from cit_train.ranks.heartbeat import Heartbeat, described, first_line
from cit_train.ranks.stopping import StopSignals

_POLL_SECONDS = 0.005
# How long rank 0, which may own the store, stays so that the others can read how the run ended.
_LEAVE_SECONDS = 5.0
# Collectives never time out; the heartbeat ends a run instead, with a reason.
_COLLECTIVE_TIMEOUT = timedelta(days=7)


class World:
    """This process among the ranks of a run; a run of one process is a world of one rank.

    Attributes:
        rank: The number of this rank, from 0.
        size: The number of ranks.
        local_rank: The number of this rank on its machine, which selects the GPU.
        stop: The stop signals of this rank.
        run_folder: The run folder, once this rank has opened it.
        heartbeat: The heartbeat of this rank.
    """

    def __init__(
        self,
        stop: StopSignals,
        *,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        store: c10d.Store | None = None,
        peer_seconds: float = 120.0,
        barrier_seconds: float = 7200.0,
    ) -> None:
        self.stop, self.rank, self.size, self.local_rank = stop, rank, size, local_rank
        self.run_folder: Path | None = None
        self.heartbeat = Heartbeat(store, stop, rank=rank, size=size, peer_seconds=peer_seconds)
        self._store, self._barrier_seconds = store, barrier_seconds
        self._turn = 0

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what a run has once: checkpoints, commits, metrics."""
        return self.rank == 0

    def lanes(self, num_lanes: int) -> range:
        """The lanes of this rank, an equal block per rank.

        Raises:
            ConfigError: The ranks do not divide the lanes.
        """
        if num_lanes % self.size:
            raise ConfigError(
                f"{self.size} ranks do not divide the {num_lanes} lanes of this run; start a "
                "number of ranks that divides them, or set another --lanes"
            )
        share = num_lanes // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def beat(self, doing: str, *, outer_step: int, update: int) -> None:
        """Report what this rank is doing, which the others read while they wait."""
        self.heartbeat.progress = {"doing": doing, "outer_step": outer_step, "update": update}

    def agree(self, what: str, value: Any) -> list[Any]:
        """The values of all ranks, by rank, once all have arrived: a barrier that exchanges JSON.

        Raises:
            PeerLostError: A rank failed, is silent, or takes longer than `barrier_seconds`.
        """
        text = json.dumps(value)
        if self._store is None:
            return [json.loads(text)]
        turn, self._turn = self._turn, self._turn + 1
        try:
            self._store.set(f"{turn}/{self.rank}", text)
            self._wait_for_all(turn, what)
            texts = self._store.multi_get([f"{turn}/{rank}" for rank in range(self.size)])
            # All ranks have arrived, so the previous turn has been read.
            if self.is_first and turn:
                for name in ("arrived", *range(self.size)):
                    self._store.delete_key(f"{turn - 1}/{name}")
        except RuntimeError as error:
            raise self.heartbeat.gone(error) from error
        return [json.loads(text) for text in texts]

    def any_of(self, *flags: bool) -> list[bool]:
        """Whether any rank has set each flag; the same result on all ranks."""
        if self.size == 1:
            return list(flags)
        largest = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in largest.tolist()]

    def sum(self, value: float) -> float:
        """The sum of every rank's value."""
        total = torch.tensor(value, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return float(total)

    def check_same(self, what: str, value: Any) -> None:
        """Check that all ranks have the same value.

        Raises:
            ConfigError: A rank differs from rank 0; the message names it and the fields.
        """
        mine, *others = self.agree(what, value)
        for rank, other in enumerate(others, 1):
            if other != mine:
                names = sorted(
                    name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)
                )
                fields = "; ".join(f"{n}: {mine.get(n)!r} and {other.get(n)!r}" for n in names[:5])
                raise ConfigError(f"rank 0 and rank {rank} differ in their {what}: {fields}")

    def gather(self, features: Tensor, *, through: bool = False) -> Tensor:
        """The features of all ranks, in the order of their lanes.

        Args:
            features: float [rows, dim], equally many rows on each rank.
            through: Whether gradients flow back to the rows of all ranks, not only of this one.

        Returns:
            float [ranks * rows, dim].
        """
        if self.size == 1:
            return features
        if through:
            # The differentiable gather, whose backward pass sums the ranks' gradients of a row.
            from torch.distributed.nn.functional import all_gather

            return torch.cat(all_gather(features))  # type: ignore[no-untyped-call]
        others = [torch.empty_like(features) for _ in range(self.size)]
        dist.all_gather(others, features.detach().contiguous())
        others[self.rank] = features
        return torch.cat(others)

    def close(self) -> None:
        """Stop the heartbeat and leave the process group; rank 0 leaves last."""
        self.heartbeat.close()
        if self._store is None:
            return
        if dist.is_initialized():
            dist.destroy_process_group()
        with contextlib.suppress(RuntimeError):  # it may be gone with its owner
            deadline = time.monotonic() + _LEAVE_SECONDS
            num_left = self._store.add("left", 1)
            while self.is_first and num_left < self.size and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                num_left = self._store.add("left", 0)

    def _wait_for_all(self, turn: int, what: str) -> None:
        assert self._store is not None
        started = time.monotonic()
        key = f"{turn}/arrived"
        arrived = self._store.add(key, 1)
        while arrived < self.size:
            if self.heartbeat.failure is not None:
                raise self.heartbeat.lost()
            if time.monotonic() - started > self._barrier_seconds:
                raise self._too_slow(turn, what)
            time.sleep(_POLL_SECONDS)
            arrived = self._store.add(key, 0)

    def _too_slow(self, turn: int, what: str) -> PeerLostError:
        assert self._store is not None
        beats = self.heartbeat.beats()
        slow = [r for r in range(self.size) if not self._store.check([f"{turn}/{r}"])]
        activities = "; ".join(f"rank {rank} is {described(beats[rank])}" for rank in slow[:5])
        return PeerLostError(
            f"rank {self.rank} waited {self._barrier_seconds:g} s for all ranks to have {what}: "
            f"{activities}. If they are just slow, raise --barrier-seconds; continue with --resume"
        )


@contextlib.contextmanager
def open_world(
    stop: StopSignals, name: str, *, device: str, peer_seconds: float, barrier_seconds: float
) -> Iterator[World]:
    """Join the ranks that a launcher has started (torchrun's environment variables).

    Without those variables, or with one rank, the world is this process alone, and
    torch.distributed is not used.

    Args:
        stop: The stop signals of this rank.
        name: The name of the run; a process may have several runs, one after another.
        device: The device in the config.
        peer_seconds: The longest silence of a rank.
        barrier_seconds: The longest wait for the slowest rank.

    Raises:
        PeerLostError: The other ranks do not appear.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(stop)
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=peer_seconds)))
        store = c10d.PrefixStore(f"cit {name}", store)
        backend = "gloo"
        if on_gpu:
            backend = collective_backend(store, rank=rank, size=size, local_rank=local_rank)
        dist.init_process_group(
            backend,
            store=c10d.PrefixStore("torch", store),
            rank=rank,
            world_size=size,
            timeout=_COLLECTIVE_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise PeerLostError(
            f"the {size} ranks did not find each other within {peer_seconds:g} s: "
            f"{first_line(error)}; check that all were started, and --peer-seconds"
        ) from error
    world = World(
        stop,
        rank=rank,
        size=size,
        local_rank=local_rank,
        store=store,
        peer_seconds=peer_seconds,
        barrier_seconds=barrier_seconds,
    )
    world.heartbeat.start()
    try:
        yield world
    finally:
        world.close()
