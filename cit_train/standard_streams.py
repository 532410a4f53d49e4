"""stdout and stderr that a command can always write to, under any shell and locale."""

import codecs
import io
import os
import sys

# Replacements of the same width, for an ASCII terminal; other characters are escaped.
_PLAIN = {"–": "-", "…": ".", "\ufffd": "?"}


class LeavableStream(io.TextIOWrapper):
    """A text stream that discards all output once its reader has left (`| head`).

    The work continues, so that the exit code of the command does not depend on the reader.
    """

    # stderr hides every OSError: an error of its own cannot be shown. On stdout a full disk is an
    # error, because a result would be lost.
    errors_to_hide: type[OSError] = BrokenPipeError

    def write(self, text: str) -> int:
        """Write the text, or discard it."""
        try:
            return super().write(text)
        except self.errors_to_hide:
            self.drop()
            return len(text)

    def flush(self) -> None:
        """Write the buffered text, or discard it."""
        try:
            super().flush()
        except self.errors_to_hide:
            self.drop()

    def drop(self) -> None:
        """Redirect the buffered and all later text to the null device."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def open_streams() -> None:
    """Make stdout and stderr writable for any reader.

    Characters that the encoding lacks are escaped. With `C` or `POSIX` as the named locale, a
    terminal gets ASCII. Files and pipes keep the encoding that Python chose.
    """
    codecs.register_error("plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `cit ... >&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
            if stream is getattr(sys, f"__{name}__"):  # not a replacement, such as a test's
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
    """The character locale by name; empty where none is set, as in most containers."""
    names = map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))
    return next(filter(None, names), "")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The replacement of a character that the encoding lacks; an error handler of `codecs`."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    escaped = character.encode("ascii", "backslashreplace").decode("ascii")
    return _PLAIN.get(character, escaped), error.start + 1
