"""One arm of a study with one seed, trained to its end, or gone on with."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cit_curate.storage.durable import read_json, write_json
from cit_train.config import RunConfig, replace_fields

if TYPE_CHECKING:  # these import pyarrow or torch, which the help of `cit demo` does not need
    from cit_curate.run.ledger import Run
    from cit_train.loop.watcher import Watcher


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One run of an arm; accuracies in percent, after the last update.

    Attributes:
        arm: The name of the arm.
        seed: The seed of the run.
        updates: The updates.
        scanned: The captions that were compared with the classes, or taken in turn.
        kept_ratio: The share of them that was kept.
        pairs: The different pairs that were trained on.
        accuracy: The zero-shot accuracy over all pictures.
        mean_per_class: The mean zero-shot accuracy of the classes.
        seconds: The wall-clock time, which reuses vectors and features of earlier runs.
    """

    arm: str
    seed: int
    updates: int
    scanned: int
    kept_ratio: float
    pairs: int
    accuracy: float
    mean_per_class: float
    seconds: float


def run_arm(
    arm: str,
    config: RunConfig,
    folder: Path,
    *,
    offline: bool = False,
    watcher: "Watcher | None" = None,
    say: Callable[[str], None] = lambda text: None,
) -> ArmResult:
    """Train one arm in a folder, or resume it; a finished one is read again.

    Args:
        arm: The name of the arm.
        config: The config of the run.
        folder: The folder of the run.
        offline: See `Arm`; the selection is a run of its own in `FOLDER-selection`.
        watcher: Receives the progress of training.
        say: Receives a line before each part.
    """
    from cit_train.outer_loop import train

    started = time.monotonic()
    chosen: Run | None = None
    if offline:
        chosen = _selected(config, folder.with_name(f"{folder.name}-selection"), say)
        config = replace_fields(config, selection=str(chosen.path))
    say(f"{arm}, seed {config.curate.seed}, {config.train.max_updates} updates: {folder}")
    run = train(config, folder, resume=True, watcher=watcher)
    seconds = time.monotonic() - started
    time_file = folder / "seconds.json"
    if time_file.exists():  # finished by an earlier call
        seconds = float(read_json(time_file)["seconds"])
    else:
        write_json(time_file, {"seconds": seconds})
    return replace(_result(arm, config, run, chosen or run), seconds=seconds)


def _selected(config: RunConfig, folder: Path, say: Callable[[str], None]) -> "Run":
    """The selection of one pass over the pool, before training."""
    from cit_curate.curation.curate import curate
    from cit_curate.run.ledger import Run
    from cit_train.loop.inputs import open_pools

    if (folder / "manifests").is_dir() and Run.open(folder).commits():
        return Run.open(folder)
    say(f"selection of one pass: {folder}")
    rules = replace(config.curate, max_passes=1, on_shortfall="train")
    return curate(
        open_pools(config),
        config.metadata,
        config.text,
        rules,
        folder,
        num_pairs=None,
        device=config.train.device,
        overwrite=folder.exists(),
    )


def _result(arm: str, config: RunConfig, run: "Run", chosen: "Run") -> ArmResult:
    rounds = chosen.read("rounds").to_pylist()
    scanned = sum(row["scanned"] for row in rounds)
    last = [record for record in run.metrics() if record["kind"] == "eval"][-1]
    return ArmResult(
        arm=arm,
        seed=config.curate.seed,
        updates=config.train.max_updates,
        scanned=scanned,
        kept_ratio=sum(row["kept"] for row in rounds) / max(scanned, 1),
        pairs=len(run.counts()),
        accuracy=last["accuracy"],
        mean_per_class=last["mean_per_class"],
        seconds=0.0,
    )
