"""The process of one check: runs it, and writes how it ended as JSON."""

import json
import traceback
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path

from scripts.gpu_check.checks import CHECKS
from scripts.gpu_check.outcomes import Outcome, outcome_of
from scripts.gpu_check.setting import Check, Setting, SkippedError


def main() -> None:
    """Run the check that is named."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[check.name for check in CHECKS])
    parser.add_argument("--device", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    (check,) = (check for check in CHECKS if check.name == options.name)
    outcome = ended(check, Setting(options.device, options.folder, options.quick))
    members = {name: value for name, value in asdict(outcome).items() if name != "seconds"}
    options.out.write_text(json.dumps(members), encoding="utf-8")


def ended(check: Check, setting: Setting) -> Outcome:
    """How a check ends; one that raises has failed, and the traceback is in its log."""
    try:
        return outcome_of(check.name, check.function(setting))
    except SkippedError as error:
        return Outcome(check.name, "skipped", str(error))
    except Exception as error:  # noqa: BLE001 - the other checks go on
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return Outcome(check.name, "failed", f"{type(error).__name__}: {lines[0][:300]}")


if __name__ == "__main__":
    main()
