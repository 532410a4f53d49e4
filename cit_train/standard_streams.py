"""stdout and stderr as a command needs them, whatever the shell and the locale left of them."""

import codecs
import io
import os
import sys

# For a terminal that has ASCII alone, as wide as before; what is not here is escaped.
_PLAIN = {"–": "-", "…": ".", "\ufffd": "?"}


class LeavableStream(io.TextIOWrapper):
    """A stream of this process; what comes after its reader has left (`| head`) goes nowhere.

    The work goes on, so that the command ends with the code that it has without a reader.
    """

    # Of stderr there is nobody to tell that it is full; of stdout a result would be lost.
    errors_to_hide: type[OSError] = BrokenPipeError

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        try:
            return super().write(text)
        except self.errors_to_hide:
            self.drop()
            return len(text)

    def flush(self) -> None:
        """Write what is kept back, or drop it."""
        try:
            super().flush()
        except self.errors_to_hide:
            self.drop()

    def drop(self) -> None:
        """Let what is kept back, and all that comes, go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def open_streams() -> None:
    """Make stdout and stderr writable, whoever reads them.

    What the encoding lacks of a caption or a path is escaped. Where the locale is `C` by name, a
    terminal gets ASCII; a file and a pipe have the encoding that Python chose, for they are kept.
    """
    codecs.register_error("plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `cit ... >&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
            if stream is getattr(sys, f"__{name}__"):  # not one that somebody listens in with
                setattr(sys, name, _leavable(stream))
    if isinstance(sys.stderr, LeavableStream):
        sys.stderr.errors_to_hide = OSError


def _leavable(stream: io.TextIOWrapper) -> LeavableStream:
    is_plain = stream.isatty() and _locale() in ("C", "POSIX")
    return LeavableStream(
        stream.buffer,
        encoding="ascii" if is_plain else stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _locale() -> str:
    """The locale of characters; empty where none is named, as in most containers."""
    names = map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))
    return next(filter(None, names), "")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is written instead of a letter that the encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    escaped = letter.encode("ascii", "backslashreplace").decode("ascii")
    return _PLAIN.get(letter, escaped), error.start + 1
