"""How ranks know of each other that they live: a heartbeat in the key-value store they share."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from torch.distributed import distributed_c10d as c10d

from cit_curate.errors import PeerLostError
from cit_train.ranks.stopping import StopSignals

_BEAT_SECONDS = 0.5
# How long a peer may be silent once a stop was asked for: launchers kill soon after.
_SILENT_WHEN_STOPPING_SECONDS = 8.0
# What the main thread has to notice a lost peer, before the process ends without it.
_LAST_RESORT_SECONDS = 10.0
# The same when the launcher was told a second time to end, and has: nobody waits for a save.
_INSISTED_SECONDS = 2.0


class Heartbeat:
    """Tells the others that this rank lives and what it does, and misses the one after it.

    Attributes:
        place: What this rank is doing, as it is told to the others.
        failure: The first failure of the run that this rank has heard of.
        is_cut_off: The key-value store is gone, with the launcher or with rank 0.
        last_words: Called with the failure before a process that hangs is ended.
    """

    def __init__(
        self,
        store: c10d.Store | None,
        stop: StopSignals,
        *,
        rank: int,
        size: int,
        peer_seconds: float,
    ) -> None:
        self.rank, self.size = rank, size
        self.place: dict[str, Any] = {"doing": "starting", "outer_step": 0, "update": 0}
        self.failure: dict[str, Any] | None = None
        self.is_cut_off = False
        self.last_words: Callable[[dict[str, Any]], None] = lambda failure: None
        self._store, self._stop, self._peer_seconds = store, stop, peer_seconds
        # Who is missed when the store is: rank 0, unless the launcher has it.
        self._store_rank = rank if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._closing = threading.Event()
        self._num_beats = 0
        self._watcher = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._guard = threading.Thread(target=self._watch_heartbeat, name="guard", daemon=True)
        if store is not None:
            store.set(f"beat/{rank}", json.dumps({"number": 0, **self.place}))

    def start(self) -> None:
        """Begin to beat; a run of one process has nobody to tell."""
        if self._store is not None:
            self._watcher.start()
            self._guard.start()

    def close(self) -> None:
        """Beat no more."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def fail(self, code: int, message: str) -> dict[str, Any]:
        """Tell the others that this rank has failed.

        Returns:
            The first failure of the run, which is the one that counts: `rank`, `code`, `message`,
            its place, and `told_by`, the rank that says it.
        """
        rank = self._store_rank if self.is_cut_off else self.rank
        mine = {"rank": rank, "code": code, "message": message, "told_by": self.rank}
        mine |= self.place
        first = self.failure
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
            before = self.beats()
            while time.monotonic() < deadline:
                if self._store.check(["failed"]):
                    self.failure = json.loads(self._store.get("failed"))
                    return self.lost()
                time.sleep(_BEAT_SECONDS)
            silent = [rank for rank, beat in enumerate(self.beats()) if beat == before[rank]]
        except RuntimeError:
            return self.gone(error)
        if not silent:
            return None
        self._note_silent(silent[0], before[silent[0]])
        return self.lost()

    def lost(self) -> PeerLostError:
        """The failure that was heard of, as an error of this rank."""
        assert self.failure is not None
        failure = self.failure
        where = f"outer step {failure['outer_step']}, update {failure['update']}"
        return PeerLostError(f"rank {failure['rank']} failed at {where}: {failure['message']}")

    def beats(self) -> list[dict[str, Any]]:
        """What each rank has last told of itself.

        Raises:
            RuntimeError: The store is gone.
        """
        assert self._store is not None
        beats = self._store.multi_get([f"beat/{rank}" for rank in range(self.size)])
        return [json.loads(beat) for beat in beats]

    def gone(self, error: Exception) -> PeerLostError:
        """That the store no longer answers, and with it who had it."""
        self.is_cut_off = True
        return PeerLostError(f"the launcher or rank 0 is gone: {first_line(error)}")

    def _note_silent(self, rank: int, beat: dict[str, Any]) -> None:
        assert self._store is not None
        message = f"it no longer answers; it was last {described(beat)}"
        failure = {"rank": rank, "code": PeerLostError.exit_code, "message": message}
        # It may have come further since its last beat, and at least as far as this rank.
        names = ("outer_step", "update")
        place = {name: max(beat[name], self.place[name]) for name in names}
        text = json.dumps({**failure, **place, "told_by": self.rank})
        self.failure = json.loads(self._store.compare_set("failed", "", text))

    def _watch(self) -> None:
        """The heartbeat: say that we live, and look whether our neighbour does."""
        heard = (time.monotonic(), -1)
        while not self._closing.wait(_BEAT_SECONDS):
            self._num_beats += 1
            try:
                heard = self._beat_once(self._num_beats, heard)
            except RuntimeError as error:
                code = PeerLostError.exit_code
                failure = {"rank": self._store_rank, "code": code, "message": str(self.gone(error))}
                self.failure = {**failure, **self.place, "told_by": self.rank}
            if self.failure is not None:
                insisted = self.is_cut_off and self._stop.requested is not None
                limit = _INSISTED_SECONDS if insisted else _LAST_RESORT_SECONDS
                self._end_when_stuck(self.failure, limit)
                return

    def _beat_once(self, number: int, heard: tuple[float, int]) -> tuple[float, int]:
        assert self._store is not None
        beat = {"number": number, **self.place}
        self._store.set(f"beat/{self.rank}", json.dumps(beat))
        if self._store.check(["failed"]):
            self.failure = json.loads(self._store.get("failed"))
        if self._stop.requested is not None:
            self._store.set("stop", self._stop.requested)
        elif self._store.check(["stop"]):
            # As if the signal had been sent to this rank, too.
            self._stop.relayed = self._store.get("stop").decode()
            os.kill(os.getpid(), signal.SIGTERM)
        neighbour = (self.rank + 1) % self.size
        beat = json.loads(self._store.get(f"beat/{neighbour}"))
        if beat["number"] != heard[1]:
            return time.monotonic(), beat["number"]
        limit = self._peer_seconds
        if self._stop.requested is not None:
            limit = min(limit, _SILENT_WHEN_STOPPING_SECONDS)
        if time.monotonic() - heard[0] > limit:
            self._note_silent(neighbour, beat)
        return heard

    def _watch_heartbeat(self) -> None:
        """End a process whose heartbeat hangs: a store that stands still answers nothing."""
        seen, num_looks = 0, 0
        while not self._closing.wait(_BEAT_SECONDS) and self.failure is None:
            # Looks and no clock, which goes on while this process itself stands still.
            num_looks = num_looks + 1 if seen == self._num_beats else 0
            seen = self._num_beats
            if num_looks * _BEAT_SECONDS > self._peer_seconds:
                self.is_cut_off = True
                message = "the launcher or rank 0 no longer answers"
                code = PeerLostError.exit_code
                failure = {"rank": self._store_rank, "code": code, "message": message}
                self.last_words({**failure, **self.place})
                os._exit(PeerLostError.exit_code)

    def _end_when_stuck(self, failure: dict[str, Any], seconds: float) -> None:
        """Let the main thread end the run; when it hangs in a collective, end the process."""
        if not self._closing.wait(seconds):
            if failure["told_by"] == self.rank:
                self.last_words(failure)
            os._exit(PeerLostError.exit_code)


def described(beat: dict[str, Any]) -> str:
    """A beat in words."""
    return f"{beat['doing']} (outer step {beat['outer_step']}, update {beat['update']})"


def first_line(error: Exception) -> str:
    """What torch says of an error, without the frames below it."""
    return (str(error).splitlines() or [type(error).__name__])[0]
