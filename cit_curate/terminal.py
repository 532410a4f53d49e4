"""The output of commands for a person: lines, tables and bars, safe to show in a terminal.

A class name, a path or a caption may hold escape sequences. This is the only module that writes
text to a terminal, and it makes every text harmless.
"""

import os
import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


def printable(text: str) -> str:
    """A text safe for one line of a terminal: control and direction characters become U+FFFD."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def printable_lines(text: str) -> str:
    """A text of several lines, each made printable."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(message: str) -> str:
    """A message of several lines as one line."""
    return " ".join(message.split())


def inert(text: str, style: str = "") -> Text:
    """A text for a cell or a heading: printable, its rich markup shown and not applied."""
    return Text(printable(text), style=style)


def print_line(text: str, *, stderr: bool = False) -> None:
    """Print a text as one line, however long."""
    stream = sys.stderr if stderr else sys.stdout
    stream.write(f"{printable(text)}\n")


def print_document(text: str) -> None:
    """Print lines that programs read too: printable on a terminal, unchanged in a file or pipe."""
    sys.stdout.write(printable_lines(text) if sys.stdout.isatty() else text)


def draw(table: Table, *, width: int | None = None) -> None:
    """Draw a table on stdout.

    Args:
        table: The table, with cells from `add_row`, and `inert` or literal headings and title.
        width: The width in columns; None = the width of the terminal.
    """
    for column in table.columns:
        column.overflow = "fold"  # a name that is cut short may look like another name
    console(width=width).print(table)


def add_row(table: Table, *cells: str, style: str = "") -> None:
    """Add a row of texts, each made inert."""
    table.add_row(*map(inert, cells), style=style)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """The console that draws tables and bars; with NO_COLOR, in one colour and one weight."""
    return Console(
        stderr=stderr,
        width=width,
        highlight=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )


class InertColumn(TextColumn):
    """A column of a progress bar that shows a text."""

    def render(self, task: Task) -> Text:
        """The text of the task."""
        return inert(self.text_format.format(task=task))


def progress_bar() -> Progress:
    """A progress bar with its `numbers` field, and the time passed and left.

    It is drawn on stderr, only in a terminal, and disappears at the end. Each task needs `numbers`.
    """
    screen = console(stderr=True)
    return Progress(
        InertColumn("{task.description}"),
        BarColumn(bar_width=20),  # the rest fits 80 columns
        InertColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )


def count_and_rate(done: int, total: int | None, seconds: float | None, unit: str) -> str:
    """`120 of 400 pictures, 12/s`; unknown parts are left out."""
    count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
    rate = f", {done / seconds:,.0f}/s" if seconds else ""
    return f"{count} {unit}{rate}"
