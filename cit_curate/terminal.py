"""What commands show a person: lines, tables and bars that a terminal draws and does not obey.

A name of a class, a path or a caption may hold escape sequences: this is the only module that
gives a text to a terminal, and none leaves it as it came.
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
    """A text for one line of a terminal: control and direction characters become U+FFFD."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def printable_lines(text: str) -> str:
    """A text of several lines, each printable."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(message: str) -> str:
    """A message of several lines as one."""
    return " ".join(message.split())


def inert(text: str, style: str = "") -> Text:
    """A text for a cell or a heading: printable, and without the markup of rich."""
    return Text(printable(text), style=style)


def print_line(text: str, *, stderr: bool = False) -> None:
    """Show a text as one line, however long."""
    stream = sys.stderr if stderr else sys.stdout
    stream.write(f"{printable(text)}\n")


def print_document(text: str) -> None:
    """Show lines that are also read by programs: a file and a pipe get them as they are."""
    sys.stdout.write(printable_lines(text) if sys.stdout.isatty() else text)


def draw(table: Table, *, width: int | None = None) -> None:
    """Show a table on stdout.

    Args:
        table: Its cells are from `add_row`, its headings and title are `inert` or literals.
        width: In columns; left out, that of the terminal.
    """
    for column in table.columns:
        column.overflow = "fold"  # a name that is cut short may be another one's
    console(width=width).print(table)


def add_row(table: Table, *cells: str, style: str = "") -> None:
    """Add a row of texts."""
    table.add_row(*map(inert, cells), style=style)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Where tables and bars are drawn; with NO_COLOR in one colour and one weight."""
    return Console(
        stderr=stderr,
        width=width,
        highlight=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )


class InertColumn(TextColumn):
    """A part of a bar's line that shows a text."""

    def render(self, task: Task) -> Text:
        """The text of the task."""
        return inert(self.text_format.format(task=task))


def progress_bar() -> Progress:
    """A bar with what is done, its `numbers` field, and time passed and left.

    It is on stderr, only where a person sees it, and gone at the end. Each task needs `numbers`.
    """
    shown_on = console(stderr=True)
    return Progress(
        InertColumn("{task.description}"),
        BarColumn(bar_width=20),  # the rest fits 80 columns
        InertColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=shown_on,
        transient=True,
        disable=not shown_on.is_terminal,
    )


def count_and_rate(done: int, total: int | None, seconds: float | None, unit: str) -> str:
    """`120 of 400 pictures, 12/s`; what is not known is left out."""
    count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
    rate = f", {done / seconds:,.0f}/s" if seconds else ""
    return f"{count} {unit}{rate}"
