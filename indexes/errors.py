"""The root of the errors that are raised on purpose; each carries the exit code of the command."""


class CitError(Exception):
    """Something a person can act on: the message says what, where, why and what to do.

    `exit_code` is what the command line ends with; `is_told` says that another process has said
    what is wrong, so this one need not.
    """

    exit_code = 1
    is_told = False


class DamagedError(CitError):
    """Stored data does not match its manifest: cut, changed or missing."""

    exit_code = 4
