"""What commands show a person: bars on stderr, and text that a terminal does not obey."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar() -> Progress:
    """A bar with what is done, its `numbers` field, and time passed and left.

    It is on stderr, only where a person sees it, and gone at the end. Each task needs `numbers`.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),  # the rest fits 80 columns
        TextColumn("{task.fields[numbers]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def count_and_rate(done: int, total: int | None, seconds: float | None, unit: str) -> str:
    """`120 of 400 pictures, 12/s`; what is not known is left out."""
    count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
    rate = f", {done / seconds:,.0f}/s" if seconds else ""
    return f"{count} {unit}{rate}"


def printable(text: str) -> str:
    """A text for one line of a terminal: control and direction characters become U+FFFD."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
