"""Runs one tiny training in a process of its own: WORLD OUT JSON-FIELDS."""

import json
import sys
from pathlib import Path

from tiny import make_config

from cit_train.outer_loop import train

if __name__ == "__main__":
    world, out, fields = sys.argv[1:]
    train(make_config(Path(world), **json.loads(fields)), out, resume=True)
