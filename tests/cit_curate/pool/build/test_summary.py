"""What a build says: every line accounted for, guesses and mended text with the option for each."""

import json
import logging
import shlex
from pathlib import Path
from typing import Any

import duckdb
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.config import READ_AS_FOUND, ReadConfig
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.pool import commands
from cit_curate.pool.build.ingest import build_pool
from cit_curate.pool.build.summary import read_build_report
from cit_curate.sources.columns import Columns
from cit_curate.sources.source import find_sources

ACCENTS = ["café chairs", "a naïve sketch", "“open” sign", "señora with scarf", "a plain kite"]


def built(capsys: pytest.CaptureFixture[str], out: Path, *words: object) -> dict[str, Any]:
    """What `cit pool build … --json` prints."""
    tyro.cli(commands.build, args=[*map(str, words), "--out", str(out), "--overwrite", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def captions(out: Path) -> list[str]:
    rows = duckdb.sql(f"SELECT caption FROM '{out}/pairs/*.parquet'").fetchall()
    return [caption for (caption,) in rows]


def table(path: Path, rows: list[str], header: str = "id\tcaption") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


READ = ("--image-id", "id", "--text", "caption")


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_a_stray_quote_costs_no_pair_and_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = "," if name == "t.csv" else "\t"
    rows = [f"{row}{mark}a kite no {row}" for row in range(200)]
    rows[50], rows[179] = f'50{mark}"Best of the kites', f'179{mark}a kite of 5"'
    path = table(tmp_path / name, rows, f"id{mark}caption")
    found = built(capsys, tmp_path / "p", path, *READ)
    assert (found["num_pairs"], found["rejects"]) == (200, {})
    assert (found["num_lines"], found["num_rows_mended"]) == (201, 1)
    assert any("1 row mended, the first in line 52" in note for note in found["notes"])
    assert {'"Best of the kites', 'a kite of 5"'} <= set(captions(tmp_path / "p"))


def test_strict_quotes_warn_of_a_record_that_swallows_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{row}\ta kite no {row}" for row in range(200)]
    rows[50], rows[179] = '50\t"Best of the kites', '179\ta kite of 5"'
    path = table(tmp_path / "t.tsv", rows)
    found = built(capsys, tmp_path / "p", path, *READ, "--quoting", "csv")
    assert (found["num_pairs"], found["num_lines"]) == (71, 201)
    assert "a record of 130 lines begins in line 52" in caplog.text
    assert found["warnings"]


def test_lines_of_a_record_that_is_rejected_count_against_the_limit(tmp_path: Path) -> None:
    rows = [f"{row}\ta kite no {row}" for row in range(300)]
    rows[50] = '50\t"one\ntwo\nthree\nfour"\ttoo many'
    path = table(tmp_path / "t.tsv", rows)
    sources = find_sources([path])
    columns = Columns(image_id="id", text=("caption",))
    with pytest.raises(BadInputError, match="4 of 303 rows are malformed"):
        build_pool(sources, tmp_path / "p", columns=columns, max_reject_ratio=0.01)
    build_pool(sources, tmp_path / "p", columns=columns, max_reject_ratio=0.02)


def test_records_that_span_lines_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["1\tone", '2\t"two\nlines"', "3\tthree", '4\t"a\nb\nc\nd"']
    found = built(capsys, tmp_path / "p", table(tmp_path / "t.tsv", rows), *READ)
    assert found["num_records_spanning_lines"] == 2
    assert "t.tsv: 2 records span lines, the longest 4 (from line 6)" in found["notes"]
    commands.info(tmp_path / "p")
    shown = capsys.readouterr().out
    assert "lines: 9: 1 of headers, 8 of rows" in shown


@pytest.mark.faults("P2")
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_text_in_another_encoding_is_counted_shown_and_its_encoding_guessed(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / name
    if name == "t.csv":
        text = "\n".join(["id,caption", *(f"{n},{text}" for n, text in enumerate(ACCENTS))])
    else:
        lines = ({"id": n, "caption": text} for n, text in enumerate(ACCENTS))
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_bytes(text.encode("cp1252"))
    found = built(capsys, tmp_path / "p", path, *READ)
    assert (found["num_pairs"], found["num_text_fixed"]) == (5, 4)
    assert "4 of 5 captions" in caplog.text
    assert "--encoding cp1252" in caplog.text
    found = built(capsys, tmp_path / "p", path, *READ, "--encoding", "cp1252")
    assert (found["num_text_fixed"], found["warnings"]) == (0, [])
    assert captions(tmp_path / "p") == ACCENTS


@pytest.mark.faults("P2")
def test_utf16_is_read_by_its_mark_and_refused_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(
        tmp_path / "t.csv", [f"{n},{text}" for n, text in enumerate(ACCENTS)], "id,caption"
    )
    text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-16")
    found = built(capsys, tmp_path / "p", path, *READ)
    assert "t.csv: read as utf-16" in found["notes"]
    assert captions(tmp_path / "p") == ACCENTS
    path.write_bytes(text.encode("utf-16-le"))
    with pytest.raises(ConfigError, match="--encoding utf-16-le") as raised:
        built(capsys, tmp_path / "p", path, *READ)
    assert "\0" not in str(raised.value)
    built(capsys, tmp_path / "p", path, *READ, "--encoding", "utf-16-le")
    assert captions(tmp_path / "p") == ACCENTS


@pytest.mark.parametrize(("mark", "name"), [(";", "a semicolon"), ("\t", "a tab"), ("|", "a bar")])
def test_a_delimiter_that_is_not_that_of_the_suffix_is_found_and_said(
    mark: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{row}{mark} a kite, no {row}" for row in range(5)]
    path = table(tmp_path / "t.csv", rows, f"id{mark} caption")
    found = built(capsys, tmp_path / "p", path, *READ)
    assert any(f"the delimiter is {name}" in note for note in found["notes"])
    assert captions(tmp_path / "p")[2] == "a kite, no 2"
    given = "tab" if mark == "\t" else mark
    found = built(capsys, tmp_path / "p", path, *READ, "--delimiter", given)
    assert found["notes"] == []
    with pytest.raises(ConfigError, match="has no column 'id'"):
        built(capsys, tmp_path / "p", path, *READ, "--delimiter", ",")


def test_a_table_without_a_header_is_told_and_its_columns_can_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"a kite by the sea no {row}\thttps://example.org/{row}.jpg" for row in range(5)]
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(rows))
    asked = ("--image", "url", "--text", "caption")
    with pytest.raises(ConfigError, match=r"line 1 looks like data.*--columns caption,url"):
        built(capsys, tmp_path / "p", path, *asked)
    found = built(capsys, tmp_path / "p", path, *asked, "--columns", "caption,url")
    assert (found["num_pairs"], found["num_images"], found["num_lines"]) == (5, 5, 5)
    assert captions(tmp_path / "p")[0] == "a kite by the sea no 0"
    with pytest.raises(ConfigError, match=r"--columns has 3 names, but line 1 .* has 2 cells"):
        built(capsys, tmp_path / "p", path, *asked, "--columns", "caption,url,more")


def test_ids_that_are_made_are_said_and_stay_when_rows_are_appended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "t.csv", ["one", "two"], "caption,")
    path.write_text("caption,x\none,1\ntwo,2\n")
    found = built(capsys, tmp_path / "p", path, "--text", "caption")
    assert any("ids are SOURCE/ROW" in note for note in found["notes"])
    ids = f"SELECT image_id FROM '{tmp_path}/p/pairs/*.parquet'"
    assert duckdb.sql(ids).fetchall() == [("t.csv/00000000",), ("t.csv/00000001",)]
    path.write_text("caption,x\none,1\ntwo,2\nthree,3\n")
    built(capsys, tmp_path / "p", path, "--text", "caption")
    assert duckdb.sql(ids).fetchall()[:2] == [("t.csv/00000000",), ("t.csv/00000001",)]
    with pytest.raises(ConfigError, match="no column 'key'"):
        built(capsys, tmp_path / "p", path, "--text", "caption", "--image-id", "key")


def test_a_reason_that_loses_many_texts_ends_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{row}\ta kite" if row % 4 else f"{row}\ta kite\tmore" for row in range(40)]
    path = table(tmp_path / "t.tsv", rows)
    built(capsys, tmp_path / "p", path, *READ, "--max-reject-ratio", "0.5")
    assert "10 of 40 records (25%) are rejected as column_count" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_pool_that_was_read_otherwise_is_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "t.tsv", ["1\tone", "2\ttwo"])
    commands.build((path,), tmp_path / "p", image_id="id", text="caption")
    with pytest.raises(ConfigError, match="--quoting was none, now csv"):
        commands.build(
            (path,),
            tmp_path / "p",
            reading=ReadConfig(quoting="csv"),
            image_id="id",
            text="caption",
        )


def test_a_report_is_empty_for_pools_that_have_none(tmp_path: Path) -> None:
    assert read_build_report(tmp_path).counts == {}


CELL = st.text(st.sampled_from("ab \"',;\té\r\n"), max_size=8)


@settings(deadline=None)
@given(
    lines=st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=25),
    encoding=st.sampled_from(["utf-8", "utf-16", "cp1252"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from(["auto", "csv", "none"]),
    delimiter=st.sampled_from(",\t;"),
)
def test_every_line_of_any_table_is_accounted_for(
    lines: list[list[str]],
    encoding: str,
    newline: str,
    quoting: str,
    delimiter: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    text = newline.join([delimiter.join(["id", "caption"]), *map(delimiter.join, lines), "x"])
    (folder / "t.csv").write_bytes(text.encode(encoding))
    reading = ReadConfig(quoting=quoting, delimiter=delimiter, encoding=encoding)
    sources = find_sources([folder / "t.csv"], reading=reading)
    try:
        manifest = build_pool(
            sources,
            folder / "p",
            columns=Columns(image_id="id", text=("caption",)),
            max_reject_ratio=1.0,
        )
    except BadInputError:
        return  # no pair came of it
    counts = read_build_report(folder / "p").counts
    ended = text.replace("\r", "") if "\n" in text else text
    assert counts["num_lines"] == len(ended.removesuffix("\n").split("\n"))
    rejected = sum(manifest.rejects.values())
    assert manifest.num_pairs + rejected == manifest.num_records


def test_peek_reads_a_table_without_any_flag_and_its_command_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{row};kites/{row}.jpg;a kite by the sea no {row}" for row in range(5)]
    path = table(tmp_path / "t.csv", rows, "id;image;caption")
    tyro.cli(commands.build, args=[str(path), "--peek"])
    shown = capsys.readouterr().out
    assert "delimiter a semicolon" in shown
    assert "a kite by the sea no 2" in shown
    command = shlex.split(shown.rstrip().splitlines()[-1].strip())
    assert command[:3] == ["cit", "pool", "build"]
    words = [word.replace("POOL", str(tmp_path / "p")) for word in command[3:]]
    words.append("--allow-missing-images")
    tyro.cli(commands.build, args=words)
    assert "5 pairs of 5 images" in capsys.readouterr().out


def test_peek_takes_every_column_that_is_called_a_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = "id\ttitle\tpath\tDescription"
    path = table(tmp_path / "t.tsv", ["1\ta kite\tx.jpg\tseen by the sea"], header)
    tyro.cli(commands.build, args=[str(path), "--peek", "--json"])
    (found,) = json.loads(capsys.readouterr().out)["sources"]
    assert "--image-id id --image path --text title,Description" in found["command"]


def test_peek_names_the_columns_of_a_table_without_a_header(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.tsv").write_text("a kite by the sea\thttps://example.org/1.jpg\n")
    tyro.cli(commands.build, args=[str(tmp_path / "t.tsv"), "--peek", "--json"])
    (found,) = json.loads(capsys.readouterr().out)["sources"]
    assert "--columns caption,url --image url --text caption" in found["command"]
    assert found["pairs"][0]["caption"] == "a kite by the sea"
    assert not (tmp_path / "POOL").exists()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a kite by the sea\thttps://example.org/1.jpg\n", "tsv"),
        ("id,caption\n1,a kite by the sea\n", "csv"),
        ('[{"id": 1, "caption": "a kite by the sea"}]', "jsonl"),
    ],
)
def test_peek_tells_the_format_of_a_file_whose_name_tells_none(
    text: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unknown").write_text(text)
    tyro.cli(commands.build, args=[str(tmp_path / "unknown"), "--peek", "--json"])
    (found,) = json.loads(capsys.readouterr().out)["sources"]
    assert found["format"] == kind
    assert f"--format {kind}" in found["command"]
    assert found["pairs"][0]["caption"] == "a kite by the sea"


def test_errors_about_columns_end_with_the_command_that_shows_them(tmp_path: Path) -> None:
    path = table(tmp_path / "t.tsv", ["1\tone"])
    with pytest.raises(ConfigError, match=r"cit pool build \S+t\.tsv --peek$"):
        build_pool(find_sources([path]), tmp_path / "p", columns=Columns(text=("title",)))
    with pytest.raises(ConfigError, match=r"say where the texts are.* --peek$"):
        build_pool(find_sources([path]), tmp_path / "p", columns=Columns())


def test_out_may_be_left_out_for_peek_alone(tmp_path: Path) -> None:
    path = table(tmp_path / "t.tsv", ["1\tone"])
    with pytest.raises(ConfigError, match="--out is missing"):
        commands.build((path,), image_id="id", text="caption", reading=READ_AS_FOUND)
