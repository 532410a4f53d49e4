"""Runs one tiny training in a process of its own: WORLD OUT JSON-FIELDS [JSON-FAULTS].

Started by torchrun it is one rank. A fault is {"rank", "moment", "update", "act"}: at that moment
this rank sends itself the signal `act`, or raises; `slow` at a moment sleeps instead.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tiny import make_config

from cit_curate.curation import Curator
from cit_curate.errors import CitError
from cit_train import cli, commit, stream
from cit_train.checkpoint import save_checkpoint
from cit_train.lane_towers import LaneTowers
from cit_train.outer_loop import train
from cit_train.trainer import Trainer


def plant(fault: dict[str, Any]) -> None:
    """Make the fault happen at its moment, once, on its rank."""
    if int(os.environ.get("RANK", "0")) != fault.get("rank", 0):
        return
    done = []

    def strike(update: int) -> None:
        if done or update != fault["update"]:
            return
        done.append(True)
        act = fault["act"]
        if act == "raise":
            raise RuntimeError("planted")
        if act.startswith("sleep"):
            time.sleep(float(act.removeprefix("sleep")))
            return
        os.kill(os.getpid(), getattr(signal, act))
        time.sleep(fault.get("after", 0))

    moment = fault["moment"]
    if moment == "curate":
        whole = Curator.run

        def curated(self: Any, *args: Any, **kwargs: Any) -> Any:
            told = kwargs["on_progress"]

            def progress(lane: int, totals: Any) -> None:
                strike(kwargs["update"])
                told(lane, totals)

            kwargs["on_progress"] = progress
            return whole(self, *args, **kwargs)

        Curator.run = curated  # type: ignore[method-assign]
    elif moment == "stream":
        add = stream.ShardStream._add

        def added(self: Any, writer: Any, sample: Any) -> None:
            strike(self.scan.update)
            add(self, writer, sample)

        stream.ShardStream._add = added  # type: ignore[method-assign]
    elif moment == "train":
        step = Trainer.step

        def stepped(self: Any, batches: Any, state: Any) -> Any:
            strike(state.update)
            return step(self, batches, state)

        Trainer.step = stepped  # type: ignore[method-assign]
    elif moment == "save":

        def saved(folder: Path, snapshot: Any) -> None:
            strike(int(folder.name.removeprefix("update-")))
            save_checkpoint(folder, snapshot)

        commit.save_checkpoint = saved
    elif moment == "nan":
        forward = LaneTowers.forward

        def poisoned(self: Any, batches: Any, update: int, part: int) -> Any:
            images, texts, scale = forward(self, batches, update, part)
            return (images * float("nan") if update == fault["update"] else images), texts, scale

        LaneTowers.forward = poisoned  # type: ignore[method-assign]
    elif moment != "settings":
        raise ValueError(moment)


def main() -> None:
    """Train, and end as the command does."""
    world, out, fields, *faults = sys.argv[1:]
    own = json.loads(fields)
    for fault in json.loads(faults[0]) if faults else []:
        plant(fault)
        if fault["moment"] == "settings" and os.environ["RANK"] == str(fault["rank"]):
            own["lr"] = 0.002
    try:
        train(make_config(Path(world), **own), out, resume=True)
    except CitError as error:
        sys.exit(cli._report(error, debug=False))


if __name__ == "__main__":
    main()
