"""Encodings: by their mark, by name, and the likely one of a message."""

from pathlib import Path

import pytest

from cit_curate.encodings import (
    LONE_SURROGATES,
    checked_encoding,
    encoding_of,
    likely_encoding,
    read_text,
)
from cit_curate.errors import ConfigError

TEXT = "café chairs at noon, a naïve sketch"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_is_read_by_its_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_letters_without_a_mark_are_refused_by_name(encoding: str) -> None:
    with pytest.raises(ConfigError, match=f"--encoding {encoding}"):
        encoding_of(TEXT.encode(encoding), "a.csv")


def test_bytes_that_are_not_utf8_are_refused_with_the_likely_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode("cp1252"))
    with pytest.raises(ConfigError, match=r"a\.txt is not UTF-8 .* looks like cp1252"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        (
            "cp1252",
            "ein schöner Kessel über dem Kanal, “très” jolie fenêtre – garçon",
        ),
        ("cp1251", "Чайник на столе, красная лодка у причала"),
        ("cp932", "青い空の下の古い石の橋とボート"),
        ("gb18030", "蓝天下的旧石桥和小船,公园里的猫"),
        ("euc_kr", "파란 하늘 아래 오래된 돌다리와 배"),
    ],
)
def test_the_likely_encoding(encoding: str, text: str) -> None:
    assert likely_encoding(text.encode(encoding)) == encoding


@pytest.mark.parametrize("name", ["utf-99", "hex", "rot13", ""])
def test_a_name_that_is_no_text_encoding_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--encoding {name}"):
        checked_encoding(name)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "utf-16-le", "gb18030"])
def test_undecodable_bytes_become_lone_surrogates(encoding: str) -> None:
    bad = {"utf-16-le": b"\x3d\xd8", "cp1252": b"\x81", "gb18030": b"\xff"}.get(encoding, b"\xff")
    text = ("a".encode(encoding) + bad + "b".encode(encoding)).decode(encoding, LONE_SURROGATES)
    assert (text[0], text[-1]) == ("a", "b")
    assert all("\udc80" <= letter <= "\udcff" for letter in text[1:-1])
    assert len(text) > 2
