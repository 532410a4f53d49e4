"""The root of the errors that are raised on purpose; each carries the exit code of the command."""


class CitError(Exception):
    """Something a person can act on: the message says what, where, why and what to do.

    `exit_code` is what the command line ends with; `is_told` says that another process has said
    what is wrong, so this one need not.
    """

    exit_code = 1
    is_told = False


class DamagedError(CitError):
    """Stored data does not match its manifest: cut, changed or missing.

    `file` is the damaged file, where the message begins with it.
    """

    exit_code = 4

    def __init__(self, message: str, *, file: str | None = None) -> None:
        super().__init__(message)
        self.file = file
