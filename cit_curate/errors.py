"""The tree of errors raised on purpose; the exit codes are the command line's contract.

```
CitError                       1  an error that a person can act on
├── ConfigError                2  a flag, a config field or a path is wrong; nothing was done
│   └── QueryError             2  the SQL is not one SELECT over the run's views, or it failed
├── BadInputError              3  more bad input than the limit allows, or none that is usable
│   └── ShortfallError         3  the pool passes did not fill the budget
├── DamagedError               4  stored data does not match its manifest
├── ResourceError              5  disk, memory, a lock or a time limit ended the work
├── PeerLostError              6  the other side is gone or too slow
└── NotFiniteError             7  a vector, a loss or a gradient is NaN or infinite
    └── BrokenVectorsError     7  the vectors of some texts are
```
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # NumPy, which a message about a wrong flag must not wait for
    from cit_curate.records import Bool, Float32


class CitError(Exception):
    """An error that a person can act on: the message says what, where, why and what to do.

    Attributes:
        exit_code: The exit code of the command line.
        is_reported: Whether another process has reported the error, so that this one stays silent.
    """

    exit_code = 1
    is_reported = False


class DamagedError(CitError):
    """Stored data does not match its manifest: cut, changed or missing.

    Attributes:
        file: The damaged file, where the message begins with it.
    """

    exit_code = 4

    def __init__(self, message: str, *, file: str | None = None) -> None:
        super().__init__(message)
        self.file = file


class ConfigError(CitError):
    """A flag, a config field or a path is wrong; nothing was done."""

    exit_code = 2


class QueryError(ConfigError):
    """The SQL is not one SELECT over the run's views, or it failed."""


class BadInputError(CitError):
    """More bad input than the limit allows, or no usable input at all."""

    exit_code = 3


class ShortfallError(BadInputError):
    """The pool passes that an outer step may make did not fill its budget.

    Attributes:
        best_similarity: The highest similarity seen; -1.0 when nothing was scanned.
        suggested_threshold: The threshold at which this scan would have kept enough pairs; None =
            the pool is too small at any threshold.
    """

    def __init__(
        self, message: str, *, best_similarity: float, suggested_threshold: float | None
    ) -> None:
        super().__init__(message)
        self.best_similarity = best_similarity
        self.suggested_threshold = suggested_threshold

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error with its attributes, for another process."""
        made = partial(
            type(self),
            best_similarity=self.best_similarity,
            suggested_threshold=self.suggested_threshold,
        )
        return made, self.args


class ResourceError(CitError):
    """Disk, memory, a lock or a time limit ended the work."""

    exit_code = 5


class PeerLostError(CitError):
    """The other side of a shard stream or of a process group is gone or too slow."""

    exit_code = 6


class NotFiniteError(CitError):
    """A vector, a loss or a gradient is NaN or infinite.

    Attributes:
        pair_keys: The keys of the pairs that caused it, where they are known.
    """

    exit_code = 7

    def __init__(self, message: str, pair_keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.pair_keys = list(pair_keys)


class BrokenVectorsError(NotFiniteError):
    """The vectors of some texts are NaN, infinite or zero.

    Attributes:
        vectors: float32 [texts, dim], as the text tower returned them.
        broken: bool [texts], the unusable ones.
    """

    def __init__(self, message: str, *, vectors: "Float32", broken: "Bool") -> None:
        super().__init__(message)
        self.vectors = vectors
        self.broken = broken

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error with its attributes, for another process."""
        return partial(type(self), vectors=self.vectors, broken=self.broken), self.args


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type when the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
