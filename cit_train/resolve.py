"""From a recipe and its flags to the config of a run: every field of the recipe is a flag."""

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
        recipe: What holds where no flag is given.
        args: Flags over its fields.
        prog: The command that they belong to, for messages.

    Raises:
        ConfigError: The values do not fit together.
        SystemExit: A flag is unknown or a value has the wrong type (2), as stderr says.
    """

    def resolved(config: RunFlags = recipe) -> RunConfig:
        return config

    return call_with_flags(resolved, args, prog=prog)


def call_with_flags(command: Callable[..., Result], args: Sequence[str], *, prog: str) -> Result:
    """Call a command with what its flags say.

    Args:
        command: Its parameters are flags; one of them may be a `RunFlags`.
        args: The flags.
        prog: Its name, for help and messages.

    Raises:
        SystemExit: As `resolve`; also after --help (0).
    """
    style = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(command, prog=prog, args=one_pool_flag(args), config=style)


def one_pool_flag(args: Sequence[str]) -> list[str]:
    """Arguments in which `--pool A … --pool B` is one flag, `… --pool A B`, as tyro reads it."""
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
