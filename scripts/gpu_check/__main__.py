"""Everything that only a GPU can show, in one table; without a GPU, a rehearsal.

    python -m scripts.gpu_check [--json FILE] [--minutes 8] [--keep FOLDER] [--only NAME ...]
    python -m scripts.gpu_check --device cpu --quick

Each check runs in a process of its own, and a failed one does not stop the others. What the time is
too short for is reported as not run. Exit code 1: a check failed; 2: none failed, but some were not
run. Nothing is fetched: towers come from packages, captions from packages and the golden file, and
pictures are drawn.
"""

import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cit_curate.storage.durable import write_json
from scripts.bench.side_by_side import machine
from scripts.gpu_check.checks import CHECKS
from scripts.gpu_check.outcomes import Outcome, document, exit_code, summary, table
from scripts.gpu_check.processes import last_lines, run_check
from scripts.gpu_check.setting import Setting


def main() -> None:
    """Run the checks."""
    names = [check.name for check in CHECKS]
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all checks together")
    parser.add_argument("--slow", type=float, default=1.0, help="longer limits, by this factor")
    parser.add_argument("--json", type=Path, help="also write the outcomes to this file")
    parser.add_argument("--keep", type=Path, help="new folder for logs and runs, which stay")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    options = parser.parse_args()
    if options.list:
        print("\n".join(names))
        return
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="cit-gpu-check-", ignore_cleanup_errors=True)
        folder = (options.keep or Path(stack.enter_context(temporary))).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"--keep {folder} is not empty; runs of another time would be compared")
        outcomes = run(Setting(options.device, folder, options.quick), options)
    print(f"\n{table(outcomes)}\n\n{machine()}: {summary(outcomes)}")
    sys.exit(exit_code(outcomes))


def run(setting: Setting, options: Namespace) -> list[Outcome]:
    """The outcomes of the chosen checks; the JSON file has them as soon as each has ended."""
    started = time.monotonic()
    facts = {
        "machine": machine(),
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "device": setting.device,
        "quick": setting.is_quick,
        "minutes": options.minutes,
    }
    outcomes: list[Outcome] = []
    for check in CHECKS:
        if check.name not in options.only:
            continue
        left = 60 * options.minutes - (time.monotonic() - started)
        own = replace(check, limit_seconds=check.limit_seconds * options.slow)
        ended = run_check(own, setting, left)
        outcomes.append(ended)
        print(f"{ended.result:8} {ended.seconds:4.0f} s  {ended.check}  {ended.why}", flush=True)
        log = setting.folder / check.log_name
        if ended.result == "failed" and log.is_file():
            print("    " + last_lines(log).replace("\n", "\n    "), flush=True)
        if options.json is not None:
            write_json(options.json, document(outcomes, facts))
    return outcomes


if __name__ == "__main__":
    main()
