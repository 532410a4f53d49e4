"""The ranks of a run: which lanes each has, what they agree on, and who is missed.

Tensors go through torch.distributed. What is small and must be the same everywhere (a stop, the
files of a commit) is agreed on as JSON in its key-value store, where waiting has a heartbeat: a
rank that is silent or too slow is named, instead of a time-out somewhere in a collective.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from cit_curate.errors import ConfigError, PeerLostError
from cit_train.stopping import StopSignals

_POLL_SECONDS = 0.005
_BEAT_SECONDS = 0.5
# How long a peer may be silent once a stop was asked for: launchers kill soon after.
_SILENT_WHEN_STOPPING_SECONDS = 8.0
# What the main thread has to notice a lost peer, before the process ends without it.
_LAST_RESORT_SECONDS = 10.0
# The same when the launcher was told a second time to end, and has: nobody waits for a save.
_INSISTED_SECONDS = 2.0
# How long rank 0, which may have the store, stays for the others to read how the run ended.
_LEAVE_SECONDS = 5.0
# Collectives never end a run by themselves; the heartbeat does, and says why.
_COLLECTIVE_TIMEOUT = timedelta(days=7)


class World:
    """This process among the ranks of a run; a run of one process is a world of one rank.

    Attributes:
        rank: Its number, from 0.
        size: How many ranks there are.
        local_rank: Its number on its machine, which picks the GPU.
        stop: The signals that this rank has heard.
        place: What this rank is doing, as it is told to the others.
        run_folder: The run, once this rank has opened it.
        is_cut_off: The key-value store is gone, with the launcher or with rank 0.
        last_words: Called with the failure before a process that hangs is ended.
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
        self.place: dict[str, Any] = {"doing": "starting", "outer_step": 0, "update": 0}
        self._store = store
        self._peer_seconds, self._barrier_seconds = peer_seconds, barrier_seconds
        self._turn = 0
        self._failure: dict[str, Any] | None = None
        self._closing = threading.Event()
        self._num_beats = 0
        self._watcher = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._guard = threading.Thread(target=self._watch_heartbeat, name="guard", daemon=True)
        self.is_cut_off = False
        self.run_folder: Path | None = None
        self.last_words: Callable[[dict[str, Any]], None] = lambda failure: None
        if store is not None:
            store.set(f"beat/{rank}", json.dumps({"number": 0, **self.place}))
            self._watcher.start()
            self._guard.start()

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what the run has once: checkpoints, commits, metrics."""
        return self.rank == 0

    def lanes(self, num_lanes: int) -> range:
        """The lanes of this rank: a block of equal size for each.

        Raises:
            ConfigError: The ranks do not divide the lanes.
        """
        if num_lanes % self.size:
            raise ConfigError(
                f"{self.size} ranks do not divide the {num_lanes} lanes of this run; start as many "
                "ranks as divide them, or give the recipe another --lanes"
            )
        share = num_lanes // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def beat(self, doing: str, *, outer_step: int, update: int) -> None:
        """Say what this rank is doing; the others read it when they wait."""
        self.place = {"doing": doing, "outer_step": outer_step, "update": update}

    def agree(self, what: str, value: Any) -> list[Any]:
        """Every rank's value, by rank, once all have come here: a barrier that exchanges JSON.

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
            # All have come here, so nobody reads the turn before any more.
            if self.is_first and turn:
                for name in ("arrived", *range(self.size)):
                    self._store.delete_key(f"{turn - 1}/{name}")
        except RuntimeError as error:
            raise PeerLostError(self._gone(error)) from error
        return [json.loads(text) for text in texts]

    def any_of(self, *flags: bool) -> list[bool]:
        """Which of the flags some rank has raised; the same answer on all ranks."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def sum(self, value: float) -> float:
        """The sum of every rank's value."""
        total = torch.tensor(value, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return float(total)

    def check_same(self, what: str, value: Any) -> None:
        """Make sure that all ranks have the same value.

        Raises:
            ConfigError: They have not; names a rank that differs from rank 0, and where.
        """
        mine, *others = self.agree(what, value)
        for rank, other in enumerate(others, 1):
            if other != mine:
                names = sorted(
                    name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)
                )
                told = "; ".join(f"{n}: {mine.get(n)!r} and {other.get(n)!r}" for n in names[:5])
                raise ConfigError(f"rank 0 and rank {rank} differ in their {what}: {told}")

    def gather(self, features: Tensor, *, through: bool = False) -> Tensor:
        """The features of all ranks, in the order of their lanes.

        Args:
            features: float [rows, dim], as many rows on each rank.
            through: Let gradients flow back to every rank's rows; else to the own ones only.

        Returns:
            float [ranks * rows, dim].
        """
        if self.size == 1:
            return features
        if through:
            # The differentiable gather, whose backward pass sums what each rank gives to a row.
            from torch.distributed.nn.functional import all_gather

            return torch.cat(all_gather(features))  # type: ignore[no-untyped-call]
        others = [torch.empty_like(features) for _ in range(self.size)]
        dist.all_gather(others, features.detach().contiguous())
        others[self.rank] = features
        return torch.cat(others)

    def fail(self, code: int, message: str) -> dict[str, Any]:
        """Tell the others that this rank has failed.

        Returns:
            The first failure of the run, which is the one that counts: `rank`, `code`, `message`,
            its place, and `told_by`, the rank that says it.
        """
        mine = {"rank": self.rank, "code": code, "message": message, "told_by": self.rank}
        mine |= self.place
        first = self._failure
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # it may have gone with its owner
                first = json.loads(self._store.compare_set("failed", "", json.dumps(mine)))
        return first or mine

    def explain(self, error: RuntimeError) -> PeerLostError | None:
        """Why a collective failed: the peer that failed or fell silent; None when all are well."""
        if self._store is None:
            return None
        try:
            deadline = time.monotonic() + 6 * _BEAT_SECONDS
            before = self._beats()
            while time.monotonic() < deadline:
                if self._store.check(["failed"]):
                    self._failure = json.loads(self._store.get("failed"))
                    return self._lost()
                time.sleep(_BEAT_SECONDS)
            silent = [rank for rank, beat in enumerate(self._beats()) if beat == before[rank]]
        except RuntimeError:
            return PeerLostError(self._gone(error))
        if not silent:
            return None
        self._note_silent(silent[0], before[silent[0]])
        return self._lost()

    def close(self) -> None:
        """Stop the heartbeat and leave the process group; rank 0 is the last."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if self._store is None:
            return
        if dist.is_initialized():
            dist.destroy_process_group()
        with contextlib.suppress(RuntimeError):  # it may have gone with its owner
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
            if self._failure is not None:
                raise self._lost()
            if time.monotonic() - started > self._barrier_seconds:
                raise self._too_slow(turn, what)
            time.sleep(_POLL_SECONDS)
            arrived = self._store.add(key, 0)

    def _too_slow(self, turn: int, what: str) -> PeerLostError:
        assert self._store is not None
        beats = self._beats()
        slow = [r for r in range(self.size) if not self._store.check([f"{turn}/{r}"])]
        told = "; ".join(f"rank {rank} is {_described(beats[rank])}" for rank in slow[:5])
        return PeerLostError(
            f"rank {self.rank} waited {self._barrier_seconds:g} s for all ranks to have {what}: "
            f"{told}. Raise --barrier-seconds if that is only slow, and go on with --resume"
        )

    def _lost(self) -> PeerLostError:
        assert self._failure is not None
        failure = self._failure
        where = f"outer step {failure['outer_step']}, update {failure['update']}"
        return PeerLostError(f"rank {failure['rank']} failed at {where}: {failure['message']}")

    def _beats(self) -> list[dict[str, Any]]:
        assert self._store is not None
        beats = self._store.multi_get([f"beat/{rank}" for rank in range(self.size)])
        return [json.loads(beat) for beat in beats]

    def _note_silent(self, rank: int, beat: dict[str, Any]) -> None:
        assert self._store is not None
        message = f"it no longer answers; it was last {_described(beat)}"
        failure = {"rank": rank, "code": PeerLostError.exit_code, "message": message}
        # It may have come further since its last beat, and at least as far as this rank.
        names = ("outer_step", "update")
        place = {name: max(beat[name], self.place[name]) for name in names}
        text = json.dumps({**failure, **place, "told_by": self.rank})
        self._failure = json.loads(self._store.compare_set("failed", "", text))

    def _watch(self) -> None:
        """The heartbeat: say that we live, and look whether our neighbour does."""
        heard = (time.monotonic(), -1)
        while not self._closing.wait(_BEAT_SECONDS):
            self._num_beats += 1
            try:
                heard = self._beat_once(self._num_beats, heard)
            except RuntimeError as error:
                code = PeerLostError.exit_code
                failure = {"rank": self.rank, "code": code, "message": self._gone(error)}
                self._failure = {**failure, **self.place, "told_by": self.rank}
            if self._failure is not None:
                insisted = self.is_cut_off and self.stop.requested is not None
                limit = _INSISTED_SECONDS if insisted else _LAST_RESORT_SECONDS
                self._end_when_stuck(self._failure, limit)
                return

    def _beat_once(self, number: int, heard: tuple[float, int]) -> tuple[float, int]:
        assert self._store is not None
        beat = {"number": number, **self.place}
        self._store.set(f"beat/{self.rank}", json.dumps(beat))
        if self._store.check(["failed"]):
            self._failure = json.loads(self._store.get("failed"))
        if self.stop.requested is not None:
            self._store.set("stop", self.stop.requested)
        elif self._store.check(["stop"]):
            # As if the signal had been sent to this rank, too.
            self.stop.relayed = self._store.get("stop").decode()
            os.kill(os.getpid(), signal.SIGTERM)
        neighbour = (self.rank + 1) % self.size
        beat = json.loads(self._store.get(f"beat/{neighbour}"))
        if beat["number"] != heard[1]:
            return time.monotonic(), beat["number"]
        limit = self._peer_seconds
        if self.stop.requested is not None:
            limit = min(limit, _SILENT_WHEN_STOPPING_SECONDS)
        if time.monotonic() - heard[0] > limit:
            self._note_silent(neighbour, beat)
        return heard

    def _watch_heartbeat(self) -> None:
        """End a process whose heartbeat hangs: a store that stands still answers nothing."""
        seen, num_looks = 0, 0
        while not self._closing.wait(_BEAT_SECONDS) and self._failure is None:
            # Looks and no clock, which goes on while this process itself stands still.
            num_looks = num_looks + 1 if seen == self._num_beats else 0
            seen = self._num_beats
            if num_looks * _BEAT_SECONDS > self._peer_seconds:
                self.is_cut_off = True
                message = "the launcher or rank 0 no longer answers"
                failure = {"rank": self.rank, "code": PeerLostError.exit_code, "message": message}
                self.last_words({**failure, **self.place})
                os._exit(PeerLostError.exit_code)

    def _gone(self, error: Exception) -> str:
        self.is_cut_off = True
        return f"the launcher or rank 0 is gone: {_first_line(error)}"

    def _end_when_stuck(self, failure: dict[str, Any], seconds: float) -> None:
        """Let the main thread end the run; when it hangs in a collective, end the process."""
        if not self._closing.wait(seconds):
            if failure["told_by"] == self.rank:
                self.last_words(failure)
            os._exit(PeerLostError.exit_code)


@contextlib.contextmanager
def open_world(
    stop: StopSignals, name: str, *, device: str, peer_seconds: float, barrier_seconds: float
) -> Iterator[World]:
    """Join the ranks that a launcher has started (torchrun's environment variables).

    Without them, or with one rank, the world is this process and torch.distributed is not used.

    Args:
        stop: The signals of this rank.
        name: Of the run: a process may make several, one after another.
        device: As in the config.
        peer_seconds: How long a rank may be silent.
        barrier_seconds: How long the ranks wait for the slowest.

    Raises:
        PeerLostError: The other ranks do not come.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(stop)
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=peer_seconds)))
        store = c10d.PrefixStore(f"cit {name}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=c10d.PrefixStore("torch", store),
            rank=rank,
            world_size=size,
            timeout=_COLLECTIVE_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise PeerLostError(
            f"the {size} ranks did not find each other within {peer_seconds:g} s: "
            f"{_first_line(error)}; see that all were started, and --peer-seconds"
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
    try:
        yield world
    finally:
        world.close()


def _described(beat: dict[str, Any]) -> str:
    return f"{beat['doing']} (outer step {beat['outer_step']}, update {beat['update']})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
