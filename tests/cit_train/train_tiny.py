"""Runs one tiny training in a process of its own: WORLD OUT JSON-FIELDS [JSON-FAULTS].

Started by torchrun it is one rank. Faults are those of faults.py.
"""

import json
import logging
import sys
from pathlib import Path

from faults import plant
from tiny import make_config

from cit_train import cli
from cit_train.outer_loop import train


def main() -> None:
    """Train, and end as the command does."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    world, out, fields, *faults = sys.argv[1:]
    for fault in json.loads(faults[0]) if faults else []:
        plant(fault)
    try:
        train(make_config(Path(world), **json.loads(fields)), out, resume=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - as the command does
        sys.exit(cli._report(error))


if __name__ == "__main__":
    main()
