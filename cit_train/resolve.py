"""The config of a run from a recipe and flags: every field of the recipe is a flag."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from cit_train.config import RunConfig

Result = TypeVar("Result")

RunFlags = tyro.conf.OmitArgPrefixes[RunConfig]
"""The type of a parameter whose fields are flags under their own names."""


def resolve(recipe: RunConfig, args: Sequence[str], *, prog: str) -> RunConfig:
    """The config of a run.

    Args:
        recipe: The defaults of all fields.
        args: Flags that override its fields.
        prog: The command's name, for messages.

    Raises:
        ConfigError: A value is out of range, or two values exclude each other.
        SystemExit: A flag is unknown or a value has the wrong type (2); the message is on stderr.
    """

    def resolved(config: RunFlags = recipe) -> RunConfig:
        return config

    return call_with_flags(resolved, args, prog=prog)


def call_with_flags(command: Callable[..., Result], args: Sequence[str], *, prog: str) -> Result:
    """Call a command with the values of its flags.

    Args:
        command: A function whose parameters are flags; one of them may be a `RunFlags`.
        args: The flags.
        prog: The command's name, for help and messages.

    Raises:
        SystemExit: As `resolve`; also after --help (0).
    """
    style = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(command, prog=prog, args=one_pool_flag(args), config=style)


def one_pool_flag(args: Sequence[str]) -> list[str]:
    """The arguments with `--pool A … --pool B` merged into one flag for tyro, `… --pool A B`."""
    rest: list[str] = []
    pools: list[str] = []
    position = 0
    while position < len(args):
        name, equals, value = args[position].partition("=")
        position += 1
        if name != "--pool":
            rest.append(args[position - 1])
        elif equals:
            pools.append(value)
        else:
            while position < len(args) and not args[position].startswith("--"):
                pools.append(args[position])
                position += 1
    return [*rest, "--pool", *pools] if len(pools) > 1 else list(args)
