"""The output of commands: one JSON document for programs, or lines for a person."""

import json
import math
import sys
from typing import Any

from cit_curate.terminal import print_line


def print_json(value: Any) -> None:
    """Print a value as one JSON document, in which NaN and infinity are null."""
    sys.stdout.write(
        json.dumps(_finite(value), ensure_ascii=True, indent=1, default=str, allow_nan=False) + "\n"
    )


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def show(summary: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """Print the result of a command: lines for a person, or one JSON object."""
    if as_json:
        print_json(summary)
    else:
        for line in lines:
            print_line(line)
