"""Quotes as people mean them: none swallows rows, and those that span lines are read whole."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.config import Quoting
from cit_curate.sources.text.files import text_lines
from cit_curate.sources.text.quotes import MAX_RECORD_LINES, TableFormat

Rows = list[tuple[int, list[str], bool]]


def read(
    path: Path, text: str, quoting: Quoting = "auto", delimiter: str = "\t", columns: int = 2
) -> Rows:
    """The line, the cells and whether they were mended of each row; all lines are accounted for."""
    path.write_text(text, encoding="utf-8", newline="")
    lines = text_lines(path)
    records = list(TableFormat(delimiter, quoting, num_columns=columns).records(lines))
    num_lines = 0
    for line, spanned, cells, problem, _ in records:
        assert line == num_lines + 1
        assert (cells is None) == bool(problem)
        num_lines += spanned
    assert num_lines == lines.num_lines
    return [(line, cells, mended) for line, _, cells, _, mended in records if cells]


def table(num_rows: int, **odd: str) -> str:
    return "".join(
        odd.get(f"row{row}", f"{row}\ta kite no {row}") + "\n" for row in range(num_rows)
    )


def test_a_quote_that_closes_far_away_swallows_nothing(tmp_path: Path) -> None:
    rows = read(tmp_path / "t", table(60, row5='5\t"best of show', row50='50\tan inch is 1"'))
    assert len(rows) == 60
    assert rows[5] == (6, ["5", '"best of show'], True)
    assert [row for row, (_, _, mended) in enumerate(rows) if mended] == [5]


@pytest.mark.parametrize("num_rows", [20, 3 * MAX_RECORD_LINES])
def test_a_quote_that_nothing_closes_is_a_letter(num_rows: int, tmp_path: Path) -> None:
    rows = read(tmp_path / "t", table(num_rows, row3='3\t"open', row9='9\t"open too'))
    assert len(rows) == num_rows
    assert [line for line, _, mended in rows if mended] == [4, 10]


def test_inch_marks_are_letters_and_other_fields_of_their_line_stay_quoted(tmp_path: Path) -> None:
    rows = read(tmp_path / "t", '"13" wide,"a, b","c ""d"""\n"x",y,z\n', delimiter=",", columns=3)
    assert rows == [(1, ['"13" wide', "a, b", 'c "d"'], True), (2, ["x", "y", "z"], False)]


def test_a_record_with_line_breaks_is_one(tmp_path: Path) -> None:
    text = table(30, row4='4\t"two\nlines"', row9='9\t"a, ""b""\n\n\nfour"')
    rows = read(tmp_path / "t", text)
    assert len(rows) == 30
    assert rows[4][1:] == (["4", "two\nlines"], False)
    assert rows[9][1:] == (["9", 'a, "b"\n\n\nfour'], False)
    crlf = read(tmp_path / "t", text.replace("\n", "\r\n"))
    assert crlf[4][1] == ["4", "two\r\nlines"]


def test_a_long_record_needs_one_line_in_ten_that_is_no_row(tmp_path: Path) -> None:
    paragraph = "\n".join(f"line {number}" for number in range(40))
    rows = read(tmp_path / "t", table(10, row4=f'4\t"{paragraph}"'))
    assert (len(rows), rows[4][1]) == (10, ["4", paragraph])
    # One row with a cell too few among forty that a stray quote would swallow.
    swallowed = table(60, row5='5\t"open', row20="20", row50='50\tclosed"')
    assert len(read(tmp_path / "t", swallowed)) == 60


def test_strict_quotes_are_those_of_the_csv_module(tmp_path: Path) -> None:
    text = table(60, row5='5\t"best of show', row50='50\tan inch is 1"')
    rows = read(tmp_path / "t", text, "csv")
    assert len(rows) == 60 - 45
    many = table(3 * MAX_RECORD_LINES, row5='5\t"open', row2500='2500\tclosed"')
    assert len(read(tmp_path / "t", many, "csv")) == 3 * MAX_RECORD_LINES - 2495


def test_without_quoting_a_line_is_a_row(tmp_path: Path) -> None:
    rows = read(tmp_path / "t", '1\t"a\n2\tb"\n3\t"c"\n', "none")
    assert [cells for _, cells, _ in rows] == [["1", '"a'], ["2", 'b"'], ["3", '"c"']]


CELLS = st.text(st.sampled_from('ab "\t,;\né'), max_size=12)


@given(
    text=st.text(st.sampled_from('a "\t,\n\r'), max_size=200),
    quoting=st.sampled_from(["auto", "csv", "none"]),
)
def test_every_line_of_any_text_is_accounted_for(
    text: str, quoting: Quoting, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read(tmp_path_factory.mktemp("text") / "t", text, quoting)


@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=30),
    delimiter=st.sampled_from("\t,;|"),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_a_table_that_was_written_properly_is_read_as_it_was(
    rows: list[list[str]],
    delimiter: str,
    newline: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator=newline).writerows(rows)
    path = tmp_path_factory.mktemp("table") / "t"
    strict = read(path, stream.getvalue(), "csv", delimiter, 3)
    assert [cells for _, cells, _ in strict] == rows
    # Line breaks are told from stray quotes by lines that are no rows.
    ambiguous = any("\n" in cell for row in rows for cell in row)
    found = read(path, stream.getvalue(), "auto", delimiter, 3)
    if not ambiguous:
        assert found == strict
