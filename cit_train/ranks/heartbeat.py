"""The liveness of ranks: each sends a heartbeat through the key-value store they share."""

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
# How long a peer may be silent after a stop request: launchers kill soon after one.
_SILENT_WHEN_STOPPING_SECONDS = 8.0
# The time for the main thread to notice a lost peer, before the process is ended without it.
_LAST_RESORT_SECONDS = 10.0
# The same when the launcher has ended on a second stop request: then no save is expected.
_INSISTED_SECONDS = 2.0


class Heartbeat:
    """Reports to the others that this rank is alive and what it does, and watches the next rank.

    Attributes:
        progress: What this rank is doing, as reported to the others.
        failure: The first failure of the run that is known to this rank.
        is_cut_off: Whether the key-value store is gone, with the launcher or with rank 0.
        last_words: Called with the failure before a hanging process is ended.
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
        self.progress: dict[str, Any] = {"doing": "starting", "outer_step": 0, "update": 0}
        self.failure: dict[str, Any] | None = None
        self.is_cut_off = False
        self.last_words: Callable[[dict[str, Any]], None] = lambda failure: None
        self._store, self._stop, self._peer_seconds = store, stop, peer_seconds
        self._closing = threading.Event()
        self._num_beats = 0
        self._watcher = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        if store is not None:
            store.set(f"beat/{rank}", json.dumps({"number": 0, **self.progress}))

    def start(self) -> None:
        """Start the heartbeat, unless the run has a single process."""
        if self._store is not None:
            self._watcher.start()
            threading.Thread(target=self._watch_heartbeat, name="guard", daemon=True).start()

    def close(self) -> None:
        """Stop the heartbeat."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def fail(self, code: int, message: str) -> dict[str, Any]:
        """Report to the others that this rank has failed.

        Returns:
            The first failure of the run, which is the one that counts: `rank`, `code`, `message`,
            `outer_step` and `update`, and `told_by`, the rank that reported it.
        """
        mine = self._failure(self._store_rank if self.is_cut_off else self.rank, message, code)
        first = self.failure
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # it may be gone with its owner
                first = json.loads(self._store.compare_set("failed", "", json.dumps(mine)))
        return first or mine

    def explain(self, error: RuntimeError) -> PeerLostError | None:
        """The peer whose failure or silence broke a collective; None when all peers are alive."""
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
        """The known failure of the run, as an error of this rank."""
        assert self.failure is not None
        failure = self.failure
        where = f"outer step {failure['outer_step']}, update {failure['update']}"
        return PeerLostError(f"rank {failure['rank']} failed at {where}: {failure['message']}")

    def beats(self) -> list[dict[str, Any]]:
        """The last beat of each rank.

        Raises:
            RuntimeError: The store is gone.
        """
        assert self._store is not None
        beats = self._store.multi_get([f"beat/{rank}" for rank in range(self.size)])
        return [json.loads(beat) for beat in beats]

    def gone(self, error: Exception) -> PeerLostError:
        """The error for a lost store, and with it the process that owned it."""
        self.is_cut_off = True
        return PeerLostError(f"the launcher or rank 0 is gone: {first_line(error)}")

    @property
    def _store_rank(self) -> int:
        """The rank to name when the store is lost: rank 0, unless the launcher has the store."""
        return self.rank if "TORCHELASTIC_RUN_ID" in os.environ else 0

    def _failure(
        self, rank: int, message: str, code: int = PeerLostError.exit_code
    ) -> dict[str, Any]:
        progress = self.progress  # another thread replaces it
        return {
            "rank": rank,
            "code": code,
            "message": message,
            "outer_step": progress["outer_step"],
            "update": progress["update"],
            "told_by": self.rank,
        }

    def _note_silent(self, rank: int, beat: dict[str, Any]) -> None:
        assert self._store is not None
        failure = self._failure(rank, f"it no longer responds; it was last {described(beat)}")
        # It may have advanced since its last beat, at least as far as this rank.
        for name in ("outer_step", "update"):
            failure[name] = max(beat[name], failure[name])
        self.failure = json.loads(self._store.compare_set("failed", "", json.dumps(failure)))

    def _watch(self) -> None:
        """Send beats, and check that the next rank does."""
        heard = (time.monotonic(), -1)
        while not self._closing.wait(_BEAT_SECONDS):
            self._num_beats += 1
            try:
                heard = self._beat_once(self._num_beats, heard)
            except RuntimeError as error:
                self.failure = self._failure(self._store_rank, str(self.gone(error)))
            if self.failure is not None:
                insisted = self.is_cut_off and self._stop.requested is not None
                limit = _INSISTED_SECONDS if insisted else _LAST_RESORT_SECONDS
                self._end_when_stuck(self.failure, limit)
                return

    def _beat_once(self, number: int, heard: tuple[float, int]) -> tuple[float, int]:
        assert self._store is not None
        beat = {"number": number, **self.progress}
        self._store.set(f"beat/{self.rank}", json.dumps(beat))
        if self._store.check(["failed"]):
            self.failure = json.loads(self._store.get("failed"))
        if self._stop.requested is not None:
            self._store.set("stop", self._stop.requested)
        elif self._store.check(["stop"]):
            # As if the signal had been sent to this rank too.
            self._stop.relayed = self._store.get("stop").decode()
            os.kill(os.getpid(), signal.SIGTERM)
        next_rank = (self.rank + 1) % self.size
        beat = json.loads(self._store.get(f"beat/{next_rank}"))
        if beat["number"] != heard[1]:
            return time.monotonic(), beat["number"]
        limit = self._peer_seconds
        if self._stop.requested is not None:
            limit = min(limit, _SILENT_WHEN_STOPPING_SECONDS)
        if time.monotonic() - heard[0] > limit:
            self._note_silent(next_rank, beat)
        return heard

    def _watch_heartbeat(self) -> None:
        """End a process whose heartbeat hangs because the process of the store is suspended."""
        last_beat, num_checks = 0, 0
        while not self._closing.wait(_BEAT_SECONDS) and self.failure is None:
            # Checks, not a clock, which runs on while this process itself is suspended.
            num_checks = num_checks + 1 if last_beat == self._num_beats else 0
            last_beat = self._num_beats
            if num_checks * _BEAT_SECONDS > self._peer_seconds:
                self.is_cut_off = True
                message = "the launcher or rank 0 no longer responds"
                self.last_words(self._failure(self._store_rank, message))
                os._exit(PeerLostError.exit_code)

    def _end_when_stuck(self, failure: dict[str, Any], seconds: float) -> None:
        """Let the main thread end the run; if it hangs in a collective, end the process."""
        if not self._closing.wait(seconds):
            if failure["told_by"] == self.rank:
                self.last_words(failure)
            os._exit(PeerLostError.exit_code)


def described(beat: dict[str, Any]) -> str:
    """A beat in words."""
    return f"{beat['doing']} (outer step {beat['outer_step']}, update {beat['update']})"


def first_line(error: Exception) -> str:
    """The first line of a torch error, without the stack frames after it."""
    return (str(error).splitlines() or [type(error).__name__])[0]
