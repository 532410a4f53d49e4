"""Text files as they come: compressed, cut, with any line end, in any encoding."""

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.sources.text import files
from cit_curate.sources.text.files import compression_of, text_lines

LINES = ["id,caption", *(f"{number},a kite no {number} é" for number in range(50))]
CONTENT = "\n".join(LINES).encode()
COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


def read(path: Path, encoding: str = "") -> list[str]:
    lines = text_lines(path, encoding)
    found = [line for block in lines.blocks() for line in block]
    assert lines.num_lines == len(found)
    return found


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_is_read_by_its_first_bytes(suffix: str, tmp_path: Path) -> None:
    for name in (f"t.csv{suffix}", "t.csv"):
        path = tmp_path / name
        path.write_bytes(COMPRESS[suffix](CONTENT))
        assert compression_of(path) == suffix
        assert read(path) == LINES


def test_a_file_that_was_unpacked_but_not_renamed_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(CONTENT)
    assert read(tmp_path / "t.csv.gz") == LINES


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_that_was_cut_anywhere_is_damaged(suffix: str, tmp_path: Path) -> None:
    whole = COMPRESS[suffix](CONTENT)
    path = tmp_path / f"t.csv{suffix}"
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedError, match=r"t\.csv\.\w+ is damaged, cut"):
            read(path)


def test_a_carriage_return_in_a_line_is_a_blank_and_a_line_end_where_there_is_no_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"one\ntwo\rmore\r\nthree\r\r\nfour")
    assert read(path) == ["one", "two more", "three", "four"]
    path.write_bytes(b"one\rtwo\rthree\r")
    assert read(path) == ["one", "two", "three"]
    path.write_bytes(b"one\r\n\r\nthree\r\n")
    assert (read(path), text_lines(path).newline) == (["one", "", "three"], "\r\n")
    path.write_bytes(b"")
    assert read(path) == []


def test_other_ends_of_unicode_are_letters(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\x85b\u2028c\x0bd\ne", encoding="utf-8")
    assert read(tmp_path / "t.txt") == ["a\x85b\u2028c\x0bd", "e"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_tells_the_encoding_and_is_no_letter(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("naïve\nkite".encode(encoding))
    assert read(tmp_path / "t.txt") == ["naïve", "kite"]


def test_an_encoding_is_taken_as_given(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("café\nnaïve".encode("cp1252"))
    assert read(path, "cp1252") == ["café", "naïve"]
    assert read(path) == ["caf\udce9", "na\udcefve"]
    path.write_bytes("\ufeffcafé\nx".encode("utf-16-le"))
    assert read(path, "utf-16-le") == ["café", "x"]
    with pytest.raises(ConfigError, match="--encoding utf-99"):
        read(path, "utf-99")


@given(
    text=st.text(st.sampled_from("ab\r\n é"), max_size=60),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-16-be", "cp1252"]),
    chunk=st.integers(1, 9),
)
def test_lines_are_the_same_in_chunks_of_any_size(
    text: str, encoding: str, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "t.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk)
        found = read(path, encoding)
    end = "\n" if "\n" in text or "\r" not in text else "\r"
    wanted = text.removesuffix(end).split(end) if text else []
    if end == "\n":
        wanted = [line.rstrip("\r").replace("\r", " ") for line in wanted]
    assert found == wanted


def test_a_line_that_is_too_long_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_CHARS", 100)
    monkeypatch.setattr(files, "CHUNK_BYTES", 64)
    (tmp_path / "t.txt").write_text("a\n" + "b" * 1000 + "\nc\n" + "d" * 500)
    assert read(tmp_path / "t.txt") == ["a", "b" * 100, "c", "d" * 100]
