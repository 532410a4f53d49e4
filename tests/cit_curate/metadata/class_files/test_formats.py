"""Files of class names that are refused by name: binary ones, and other text formats."""

import gzip
import zipfile
from collections.abc import Callable
from io import BytesIO

import pytest

from cit_curate.errors import ConfigError
from cit_curate.metadata.class_list import ClassList

Read = Callable[..., ClassList]


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("names.yaml", "names:\n  - spoon\n  - ferry\n", "names:"),
        ("names.yml", "- spoon\n- ferry\n", "- spoon"),
        ("names.txt", "names:\n- spoon\n- ferry\n", "names:"),
        ("names.txt", "names:\n  0: spoon\n  1: ferry\n", "names:"),
        ("names.txt", "---\n- spoon\n", "---"),
        ("names.txt", "- name: spoon\n- name: ferry\n", "- name: spoon"),
        ("names.txt", "names: [spoon, ferry]\n", "names: [spoon, ferry]"),
        ("names.txt", "['spoon',\n'ferry']\n", "['spoon',"),
        ("names.py", "# mine\nNAMES = (\n  'spoon',\n)\n", "NAMES = ("),
        ("names.txt", "{0: 'spoon',\n 1: 'ferry'}\n", "{0: 'spoon',"),
        ("names.txt", "('spoon', 'ferry')\n", "('spoon', 'ferry')"),
        ("names.txt", "'spoon', 'ferry',\n'owl'\n", "'spoon', 'ferry',"),
        ("names.txt", '["spoon", "ferry",\n', '["spoon", "ferry",'),
        ("names.csv", "['spoon', 'ferry']\n", "['spoon', 'ferry']"),
        ("names.csv", "names:\n  - spoon\n", "names:"),
        ("map.pbtxt", "item {\n  id: 1\n  name: 'spoon'\n}\n", "item {"),
        ("names.html", "<ul>\n<li>spoon</li>\n</ul>\n", "<ul>"),
        ("names.xml", "<?xml version='1.0'?>\n<names/>\n", "<?xml"),
        ("names.md", "| id | name |\n|----|------|\n| 0 | spoon |\n", "| id | name |"),
        ("names.ini", "[names]\n0 = spoon\n", "[names]"),
        ("names.json", "spoon\nferry\n", "spoon"),
        ("names.json", '["spoon", "ferry"', '["spoon", "ferry"'),
        ("names.jsonl", '{"name": "spoon"}\n{"name": \n', '{"name": "spoon"}'),
    ],
)
def test_another_format_is_refused_with_its_first_line_and_the_way_out(
    read: Read, name: str, content: str, first: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read(name, content)
    message = str(refused.value)
    assert name in message
    assert first in message
    assert "write one name a line, or give JSON or CSV" in message


def workbook() -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (workbook(), r"zip archive, as Excel's \.xlsx is; save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), r"Office document, as Excel's \.xls"),
        (gzip.compress(b"spoon\nferry\n"), "compressed with gzip; unpack it first"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\x80\x04\x95\x10\x00", "a pickle"),
        (b"spo\0on\nferry\n", "it holds NUL bytes"),
        ("spoon\nferry\n".encode("utf-16-le"), r"looks like UTF-16 .*; save it as UTF-8"),
        ("löffel\nfähre\n".encode("latin-1"), "is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("name", ["names.txt", "names.csv", "names.json"])
def test_what_is_no_text_is_refused_by_name(
    read: Read, name: str, content: bytes, what: str
) -> None:
    with pytest.raises(ConfigError, match=what) as refused:
        read(name, content)
    assert name in str(refused.value)
    assert str(refused.value).isprintable()
    assert "--encoding" not in str(refused.value)
