"""Records of a table: quotes as people mean them, so that a stray one swallows no rows.

RFC 4180 lets a quoted field span lines. A quote that nothing closes, or that another stray quote
closes far away, would therefore make one record of many rows. `_spans` tells the two apart.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cit_curate.config import Quoting
from cit_curate.sources.text.files import TextLines

MAX_FIELD_CHARS = 4 * 1024 * 1024
# The most lines of a record, unless quotes are read as RFC 4180 says.
MAX_RECORD_LINES = 1000
# A longer record needs one line in ten that is no row, so that a single malformed row between does
# not hide a block of swallowed ones.
SHORT_RECORD_LINES = 20
BROKEN_LINE_SHARE = 0.1


# A record: its first line, from 1; the lines that it spans; its cells, none in a blank line; for a
# malformed one None and its problem; and whether a quote in it was read as a letter. A plain tuple,
# since there may be a hundred million.
Record = tuple[int, int, list[str] | None, str, bool]


@dataclass(frozen=True)
class TableFormat:
    """How the lines of a table are read as cells.

    Attributes:
        delimiter: The character between cells.
        quoting: See `ReadConfig.quoting`.
        skips_blanks: Whether blanks behind a delimiter belong to it.
        num_columns: The number of columns; 0 while it is unknown, as for a header.
    """

    delimiter: str
    quoting: Quoting
    skips_blanks: bool = False
    num_columns: int = 0

    def records(self, lines: TextLines) -> Iterator[Record]:
        """The records of a file, blank lines included; together they have all of its lines.

        Raises:
            DamagedError: See `TextLines.blocks`.
        """
        if self.quoting == "none":
            line = 1
            for block in lines.blocks():
                for number, text in enumerate(block, line):
                    yield number, 1, *self._plain(text), False
                line += len(block)
        else:
            yield from self._quoted(lines)

    def _plain(self, line: str) -> tuple[list[str] | None, str]:
        """The cells of a line in which quotes are letters, or its problem."""
        if len(line) > MAX_FIELD_CHARS:
            return None, f"the line has more than {MAX_FIELD_CHARS:,} characters"
        cells = line.split(self.delimiter) if line else []
        return ([cell.strip(" ") for cell in cells] if self.skips_blanks else cells), ""

    def _mended(self, line: str) -> tuple[list[str] | None, str]:
        """The cells of a line; a field whose quote is not closed within it is read as it stands."""
        if len(line) > MAX_FIELD_CHARS:
            return self._plain(line)
        quoted = re.compile(rf' *+"((?:[^"]|"")*+)"(?={re.escape(self.delimiter)}|$)')
        start, cells = 0, []
        while True:
            may_be_quoted = self.skips_blanks or line.startswith('"', start)
            match = quoted.match(line, start) if may_be_quoted else None
            if match:
                cells.append(match[1].replace('""', '"'))
                end = match.end()
            else:
                end = line.find(self.delimiter, start)
                end = len(line) if end < 0 else end
                cells.append(line[start:end].strip(" ") if self.skips_blanks else line[start:end])
            if end >= len(line):
                return cells, ""
            start = end + 1

    def _quoted(self, lines: TextLines) -> Iterator[Record]:
        window: list[str] = []
        first, blocks, at_end = 1, lines.blocks(), False
        needed = MAX_RECORD_LINES
        while True:
            while not at_end and len(window) <= needed:
                block = next(blocks, None)
                at_end = block is None
                window += block or []
            if not window:
                return
            done = 0
            for record in self._in_window(window, first, lines, at_end=at_end):
                done += record[1]
                yield record
            # A record may need more lines than there are; the next window then has twice as many.
            needed = MAX_RECORD_LINES if done else 2 * len(window)
            del window[:done]
            first += done
            lines.forget(first)

    def _in_window(
        self, window: list[str], first: int, lines: TextLines, *, at_end: bool
    ) -> Iterator[Record]:
        """The records in some of the lines, of which the first has the number `first`.

        Unless the file ends with them, the last `MAX_RECORD_LINES` lines are left, since a record
        might go on behind them.
        """
        # This limit is a setting of the whole process. The default of 128 KiB loses long captions.
        csv.field_size_limit(MAX_FIELD_CHARS)
        reader, reads_from, num_read = self._reader_from(window, 0), 0, 0
        line = 0
        stop = len(window) if at_end else len(window) - MAX_RECORD_LINES
        while line < stop:
            text = window[line]
            if '"' not in text:
                yield first + line, 1, *self._plain(text), False
                line += 1
                continue
            if reads_from != line:
                reader, num_read = self._reader_from(window, line), 0
            try:
                cells, problem = next(reader), ""
            except csv.Error as error:
                cells, problem = [], str(error)
            num_lines = reader.line_num - num_read
            if num_lines == 1 and not problem:
                num_read = reader.line_num
                yield first + line, 1, cells, "", False
                line += 1
                reads_from = line
                continue
            if "unexpected end" in problem and not at_end and self.quoting == "csv":
                return  # the quote may be closed behind the window
            spanned = window[line : line + num_lines]
            if not problem and (self.quoting == "csv" or self._spans(spanned)):
                # The lines have no ends here, but the field that spans them does.
                (cells,) = self._reader_from(lines.with_ends(spanned, first + line), 0)
                yield first + line, num_lines, cells, "", False
            elif self.quoting == "csv":
                problem += "; a field that starts with a quote must end with one"
                yield first + line, num_lines, None, problem, False
            else:
                num_lines = 1
                yield first + line, 1, *self._mended(text), True
            line += num_lines

    def _reader_from(self, lines: Sequence[str], start: int) -> Any:
        """A reader of the records from a line on."""
        rest = iter(lines)
        rest.__setstate__(start)  # type: ignore[attr-defined]
        # Without `strict`, a quote that is never closed silently swallows the rest of the file.
        return csv.reader(
            rest, delimiter=self.delimiter, strict=True, skipinitialspace=self.skips_blanks
        )

    def _spans(self, lines: Sequence[str]) -> bool:
        """Whether a record means to span lines: some of them are not rows by themselves."""
        if len(lines) > (MAX_RECORD_LINES if self.num_columns else SHORT_RECORD_LINES):
            return False
        delimiters = self.num_columns - 1
        broken = sum(line.count(self.delimiter) != delimiters for line in lines)
        if len(lines) <= SHORT_RECORD_LINES:
            return broken > 0
        return broken >= BROKEN_LINE_SHARE * len(lines)
