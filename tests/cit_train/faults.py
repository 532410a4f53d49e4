"""Faults that happen at a moment of a run: `{"rank", "moment", "update", "act", "pair"}`.

Moments: curate (after each batch of captions), stream (before a pair is written), train (before an
update), save (before a checkpoint is written), evaluate. Acts: a signal's name, or `group` and
it (to the process group), `raise`, `exit`,
`full` (the disk), `limitN` (no file may grow beyond N bytes), `nan` (in the weights), `nan_scale`
(of this rank's loss), `nan_gradient` (of one weight), `not_finite` (as of captions), `loader` or
`decoder` (one of these processes is killed), `sleepN` (seconds), or several of them with spaces.
"""

import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cit_curate.curation.curator import Curator
from cit_curate.errors import NotFiniteError
from cit_curate.images.decoders import decoders
from cit_train.config import RunConfig
from cit_train.evaluation.evaluator import Evaluator
from cit_train.inner_loop.trainer import Trainer
from cit_train.loop import commit, evaluate_step
from cit_train.loop.recovery.checkpoint import save_checkpoint
from cit_train.outer_loop import train
from cit_train.ranks.stopping import SIGNALS
from cit_train.streaming import shard_stream

Change = Callable[[Any, str, Any], None]


def plant(fault: dict[str, Any], change: Change = setattr) -> None:
    """Make the fault happen at its moment, once, on its rank.

    Args:
        fault: See above; `rank` is 0 when left out, `update` any; `pair` is the number of the
            moment within the update (0 = the first).
        change: Puts a function into the place of another.
    """
    if int(os.environ.get("RANK", "0")) != fault.get("rank", 0):
        return
    seen: list[int] = []

    def strike(update: int, trainer: Trainer | None = None) -> None:
        if update != fault.get("update", update):
            return
        seen.append(update)
        if len(seen) != fault.get("pair", 0) + 1:
            return
        for act in fault["act"].split():
            _do(act, trainer)

    _MOMENTS[fault["moment"]](strike, change)


def train_with(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, out: Path, *faults: dict[str, Any]
) -> None:
    """One try, in which these things happen."""
    with monkeypatch.context() as patch:
        for fault in faults:
            plant(fault, patch.setattr)
        train(config, out, resume=True)


def _do(act: str, trainer: Trainer | None) -> None:
    if act == "raise":
        raise RuntimeError("planted")
    if act == "not_finite":
        raise NotFiniteError("too many captions without a vector", ["7_title"])
    if act == "exit":
        os._exit(9)
    if act == "loader":
        workers = sorted(multiprocessing.active_children(), key=lambda worker: worker.name)
        workers[-1].kill()
    elif act == "decoder":
        while not (idle := list(decoders()._idle)):
            time.sleep(0.001)
        for process in idle:
            process.kill()
    elif act.startswith("limit"):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(act.removeprefix("limit")), hard))
    elif act == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    elif act == "nan":
        assert trainer is not None
        # The projection of one rank only: the others get it with its features.
        with torch.no_grad():
            trainer.model.visual_projection.weight.fill_(float("nan"))
    elif act == "nan_scale":
        assert trainer is not None
        with torch.no_grad():
            trainer.model.logit_scale.fill_(float("nan"))
    elif act == "nan_gradient":
        assert trainer is not None
        weight = trainer.model.text_projection.weight
        weight.register_hook(lambda gradient: gradient * float("nan"))
    elif act.startswith("sleep"):
        time.sleep(float(act.removeprefix("sleep")))
    elif act.startswith("group"):
        os.killpg(os.getpgrp(), getattr(signal, act.removeprefix("group")))
    else:
        number = getattr(signal, act)
        # A thread that comes too late, when nobody listens any more, must not end the tests.
        assert number not in SIGNALS or signal.getsignal(number) is not signal.SIG_DFL
        os.kill(os.getpid(), number)


def _curate(strike: Callable[..., None], change: Change) -> None:
    whole = Curator.run

    def curated(self: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        on_progress = kwargs["on_progress"]

        def progress(lane: int, totals: Any) -> None:
            strike(step.update)
            on_progress(lane, totals)

        kwargs["on_progress"] = progress
        return whole(self, step, *args, **kwargs)

    change(Curator, "run", curated)


def _stream(strike: Callable[..., None], change: Change) -> None:
    add = shard_stream.ShardWriterThread._add

    def added(self: Any, writer: Any, sample: Any) -> None:
        strike(self.scan.step.update)
        add(self, writer, sample)

    change(shard_stream.ShardWriterThread, "_add", added)


def _train(strike: Callable[..., None], change: Change) -> None:
    step = Trainer.step

    def stepped(self: Any, batches: Any, state: Any) -> Any:
        strike(state.update, self)
        return step(self, batches, state)

    change(Trainer, "step", stepped)


def _save(strike: Callable[..., None], change: Change) -> None:
    def saved(folder: Path, snapshot: Any) -> None:
        strike(int(folder.name.removeprefix("update-")))
        save_checkpoint(folder, snapshot)

    change(commit, "save_checkpoint", saved)
    change(evaluate_step, "save_checkpoint", saved)


def _evaluate(strike: Callable[..., None], change: Change) -> None:
    call = Evaluator.__call__

    def called(self: Any, *args: Any) -> Any:
        strike(0)
        return call(self, *args)

    change(Evaluator, "__call__", called)


_MOMENTS = {
    "curate": _curate,
    "stream": _stream,
    "train": _train,
    "save": _save,
    "evaluate": _evaluate,
}
