"""Cells that no spreadsheet runs, and that come back exactly."""

import csv
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cit_curate.csv_cells import (
    csv_line,
    csv_text,
    guard_remover,
    is_formula,
    needs_guards,
    with_guards,
)

# What spreadsheets and CSV readers stumble over, more often than chance would bring it.
LETTERS = st.sampled_from("=+-@\t\r\n'\",; ab1é|￿\u2028\x00")
CELLS = st.text(LETTERS | st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = ["-12", "-7.5", "+3", "1e-3", "-1e-3", "+.5", "-1.", "-1E+10", "+0"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_plain_number_is_no_formula(number: str) -> None:
    assert csv_text(number) == number
    assert csv_text(-1) == -1


@pytest.mark.parametrize(
    "text",
    ["-", "+-1", "-1+1", "-50% off", "+1 more", "-1e", "-.", "-1\n", "-1 ", "-١", "=1", "@a"],
)
def test_what_only_starts_like_a_number_is_guarded(text: str) -> None:
    assert csv_text(text) == f"'{text}"


@pytest.mark.faults("C3")
@given(st.text())
def test_csv_text_changes_only_what_starts_like_a_formula(text: str) -> None:
    cell = str(csv_text(text))
    assert cell in (text, f"'{text}")
    assert not is_formula(cell)


@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=6))
@example([["=1", "'=1", "''=1"], ["-1", "'-1", "'"]])
def test_guarded_rows_come_back_and_say_where_they_are_guarded(rows: list[list[str]]) -> None:
    names = ["image_id", "=a b", "text-key"]
    lines = [csv_line([*names, "guarded"]), *(csv_line(with_guards(names, row)) for row in rows)]
    header, *read = csv.reader(io.StringIO("".join(lines), newline=""), strict=True)
    remove_guards = guard_remover(header)
    assert remove_guards is not None
    for row, cells in zip(rows, read, strict=True):
        assert not any(map(is_formula, cells))
        assert bool(cells[-1]) <= needs_guards(row)
        remove_guards(cells)
        assert cells[:-1] == row


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=6))
def test_lines_are_read_by_pythons_own_reader(rows: list[list[str]]) -> None:
    text = "".join(map(csv_line, rows))
    assert list(csv.reader(io.StringIO(text, newline=""), strict=True)) == rows


@given(st.lists(st.sampled_from(["a", "", 'q"', ",", "\n", None, 1.5]), min_size=1, max_size=3))
def test_lines_are_what_pythons_own_writer_writes(row: list[object]) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(row)
    assert csv_line(row) == stream.getvalue()


def test_a_file_without_the_column_has_no_guards() -> None:
    assert guard_remover(["image_id", "caption"]) is None


@pytest.mark.parametrize("own", ["yes", "caption yes", "image_id", "caption", "guarded"])
def test_a_users_own_column_of_that_name_takes_nothing_off(own: str) -> None:
    remove_guards = guard_remover(["image_id", "caption", "guarded"])
    assert remove_guards is not None
    row = ["1", "'quoted'", own]
    remove_guards(row)
    assert row == ["1", "'quoted'", own]
