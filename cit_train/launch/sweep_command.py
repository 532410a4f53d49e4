"""`cit sweep`: the runs of a sweep, one after another, and a table of them."""

import difflib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from cit_curate.errors import CitError, ConfigError
from cit_curate.printing import print_json
from cit_curate.terminal import add_row, draw, one_line, print_line
from cit_train.config import RunConfig, flat
from cit_train.ranks.stopping import StoppedError
from cit_train.recipes import recipe_help
from cit_train.resolve import RunFlags, call_with_flags
from cit_train.sweeps import SWEEPS


@dataclass(frozen=True)
class SweepRow:
    """The outcome of one run of a sweep.

    Attributes:
        name: The name of the run's folder.
        state: `finished` or `failed`.
        updates: The number of committed updates.
        metric: The metric of `value`; empty = no evaluation.
        value: The best evaluation, in percent.
        seconds: The wall-clock time of this call.
        message: The error of a failed run.
    """

    name: str
    state: str
    updates: int
    metric: str
    value: float | None
    seconds: float
    message: str


def main(args: Sequence[str]) -> None:
    """Run `cit sweep SWEEP …`; the fields of the sweep's base are the flags.

    Raises:
        ConfigError: The sweep is unknown; the message has the nearest spelling.
        CitError: A run failed; the other runs were still made.
    """
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return
    name = args[0]
    if name not in SWEEPS:
        close = difflib.get_close_matches(name, SWEEPS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"there is no sweep {name!r}; there are {', '.join(SWEEPS)}{hint}")

    def sweep(
        config: RunFlags = SWEEPS[name].base(),  # noqa: B008 - frozen
        *,
        out: Path | None = None,
        only: str = "",
        print_config: bool = False,
        json: bool = False,
    ) -> None:
        """Train every run of a sweep; finished runs are kept, stopped ones resume.

        The sweep sets --metadata and --eval-task of each run; the other fields apply to all.

            cit sweep SWEEP --pool POOL --eval-data ROOT
            cit sweep SWEEP --pool POOL --eval-data ROOT --only food101,pets

        Args:
            config: Fields that all runs share.
            out: Folder of the runs, one sub-folder each; runs/SWEEP by default.
            only: Names of the runs to train, separated by commas.
            print_config: Only print the resolved fields of every run.
            json: Print one JSON document at the end instead of a table.
        """
        runs = SWEEPS[name].chosen(config, only)
        if print_config:
            print_json({run: flat(each) for run, each in runs.items()})
            return
        _sweep(runs, out or Path("runs") / name, as_json=json)

    call_with_flags(sweep, args[1:], prog=f"cit sweep {name}")


def _sweep(runs: dict[str, RunConfig], out: Path, *, as_json: bool) -> None:
    from cit_train.loop.progress import is_shown, watching
    from cit_train.outer_loop import train

    def say(text: str) -> None:
        if is_shown():
            print_line(text, stderr=True)

    rows: list[SweepRow] = []
    first_error: CitError | None = None
    for number, (name, config) in enumerate(runs.items(), 1):
        say(f"run {number} of {len(runs)}: {out / name}")
        started = time.monotonic()
        try:
            with watching(config.train.max_updates, label=name) as watcher:
                train(config, out / name, resume=True, watcher=watcher)
            message = ""
        except StoppedError as error:
            raise StoppedError(
                f"stopped in run {number} of {len(runs)}; the same command goes on from there"
            ) from error
        except CitError as error:
            first_error, message = first_error or error, str(error)
            say(f"{name} failed: {one_line(message)}")
        rows.append(_row(out / name, message, time.monotonic() - started))
    if is_shown():
        if as_json:
            print_json([asdict(row) for row in rows])
        else:
            draw(_table(rows))
    if first_error is not None:
        raise first_error


def _row(folder: Path, message: str, seconds: float) -> SweepRow:
    from cit_curate.run.ledger import Run

    commits = Run.open(folder).commits() if (folder / "config.json").is_file() else []
    best = commits[-1].best if commits else None
    state = "failed" if message else "finished"
    updates = commits[-1].update if commits else 0
    metric = str(best["metric"]) if best else ""
    value = float(best["value"]) if best else None
    return SweepRow(folder.name, state, updates, metric, value, seconds, message)


def _table(rows: Sequence[SweepRow]) -> Table:
    table = Table()
    for heading in ("run", "state", "updates", "metric", "value %", "seconds"):
        table.add_column(heading, justify="left" if heading in ("run", "metric") else "right")
    for row in rows:
        value = "–" if row.value is None else f"{row.value:.1f}"
        cells = (row.name, row.state, f"{row.updates:,}", row.metric, value, f"{row.seconds:.0f}")
        add_row(table, *cells)
    return table


def _overview() -> str:
    lines = ["usage: cit sweep SWEEP [--FIELD VALUE ...] [--out FOLDER] [--only NAMES]", ""]
    lines += ["sweeps:", *recipe_help({name: sweep.doc for name, sweep in SWEEPS.items()}), ""]
    return "\n".join(lines)
