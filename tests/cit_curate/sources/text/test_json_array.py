"""JSON files that are one array or one object: told by their content, read piece by piece."""

import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_rows import read_all

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.sources.columns import Columns
from cit_curate.sources.text import files
from cit_curate.sources.text.files import text_lines
from cit_curate.sources.text.json_array import open_json
from cit_curate.sources.text.json_text import JsonText, json_shape

COLUMNS = Columns(image_id="id", image="file", text=("text",))
ROWS = [
    {"id": number, "file": f"{number}.png", "text": f"a tin can, {number}"} for number in range(5)
]


def read(path, columns=COLUMNS, kind="json", encoding=""):
    return read_all(open_json(path, columns, kind, encoding), path.parent)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize(
    "written",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps(ROWS, indent=2).replace("\n", "\r\n"),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
        "  \n\n[" + ",".join(map(json.dumps, ROWS)) + "]",
        json.dumps(ROWS).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
        gzip.compress(json.dumps(ROWS).encode()),
        "\n".join(map(json.dumps, ROWS)),
        json.dumps({"version": 2, "data": ROWS}),
        json.dumps({"data": ROWS, "info": {"made": [1, 2]}, "tags": ["a", "b"]}, indent=1),
        json.dumps({"licenses": [{"name": "free"}], "rows": ROWS}),
    ],
)
def test_a_file_is_told_by_its_content_not_its_name(tmp_path, written, kind):
    found = read(write(tmp_path / "a.json", written), kind=kind)
    assert found.values("image_id", "image_uri", "caption") == [
        (str(row["id"]), row["file"], row["text"]) for row in ROWS
    ]
    assert found.rejects == []


def test_the_list_that_was_chosen_is_said(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"n": 1, "rows": ROWS}))
    assert "the rows are the list 'rows'" in open_json(path, COLUMNS, "json").notes


@pytest.mark.faults("P1")
@pytest.mark.parametrize("element", ["5", "null", '"text"', '["a", "b"]', "true", "NaN"])
def test_an_element_that_is_no_object_is_a_bad_row_with_its_number(tmp_path, element):
    rows = [json.dumps(row) for row in ROWS]
    path = write(tmp_path / "a.json", f"[{rows[0]}, {element}, {rows[1]}]")
    found = read(path)
    assert [p["image_id"] for p in found.pairs] == ["0", "1"]
    assert found.reasons == [(2, "bad_row")]
    assert found.rejects[0].detail.startswith("element 2 is no object")
    assert found.num_records == 3


def test_what_python_writes_and_json_does_not_have_is_read(tmp_path):
    path = write(
        tmp_path / "a.json",
        b'[{"id": 1, "text": "caf\xe9", "score": NaN}, {"id": 2.0, "text": "b", "file": null},'
        b' {"id": 2.5, "text": "c", "file": "x"}, {"id": 3, "text": "d \\ud800", "score": 1e400}]',
    )
    found = read(path, Columns(image_id="id", text=("text",), extra=("score",)))
    assert found.values("image_id", "caption", "score") == [
        ("1", "caf\ufffd", "NaN"),
        ("2", "b", None),
        ("3", "d \ufffd", "Infinity"),
    ]
    assert found.reasons == [(3, "bad_image_id")]


def test_without_a_column_image_id_ids_are_made(tmp_path):
    rows = [{"text": row["text"]} for row in ROWS]
    found = read(write(tmp_path / "a.json", json.dumps(rows)), Columns(text=("text",)))
    assert [p["image_id"] for p in found.pairs] == [f"source/{row:08d}" for row in range(5)]


def test_a_text_column_that_is_nowhere_is_named_with_the_keys_that_are_there(tmp_path):
    path = write(tmp_path / "a.json", json.dumps(ROWS))
    with pytest.raises(ConfigError, match=r"a\.json has no column 'txt'; it has id, file, text"):
        open_json(path, Columns(image_id="id", text=("txt",)), "json")
    with pytest.raises(ConfigError, match=r"say where the texts are.*id, file, text.*--peek"):
        open_json(path, Columns(image_id="id"), "json")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            '{"id": [1, 2], "text": ["a", "b"]}',
            r"'id' \(a list of 2, no objects\).*orient='records'",
        ),
        ('{"id": {"0": 1}, "text": {"0": "a"}}', r"'id' \(an object\).*orient='records'"),
        (
            '{"1.jpg": {"text": "a"}, "2.jpg": {"text": "b"}}',
            r"'1.jpg' \(an object\).*rows by name",
        ),
        (
            '{"a": [{"x": 1}], "b": [{"y": 1}, {}], "v": 1}',
            r"'a' \(a list of 1 with x\), 'b' \(a list of 2 with y\).*--text or --caption",
        ),
        (
            '{"v": 1, "rows": ["a"]}',
            r"'rows' \(a list of 1, no objects\); rows are objects in a list",
        ),
    ],
)
def test_an_object_without_rows_is_refused_by_saying_what_it_holds(tmp_path, written, said):
    for content in (written, json.dumps(json.loads(written), indent=1)):
        with pytest.raises(ConfigError, match=said):
            open_json(write(tmp_path / "a.json", content), COLUMNS, "json")


def test_a_lone_object_is_one_row_where_it_holds_no_list_or_is_called_a_line(tmp_path):
    path = write(tmp_path / "a.json", json.dumps(ROWS[3]))
    assert [p["image_id"] for p in read(path).pairs] == ["3"]
    path = write(tmp_path / "a.jsonl", json.dumps({**ROWS[3], "tags": ["x"]}) + "\n")
    assert [p["image_id"] for p in read(path, kind="jsonl").pairs] == ["3"]


def test_lines_of_which_the_first_is_no_object_stay_lines(tmp_path):
    rows = [json.dumps(row) for row in ROWS]
    for first in ('["id", "text"]', '{"id": 9, "text": "cut', "[broken", "nothing", "5"):
        path = write(tmp_path / "a.jsonl", "\n".join([first, *rows]))
        found = read(path, kind="jsonl")
        assert found.reasons == [(1, "bad_row")], first
        assert len(found.pairs) == 5


@pytest.mark.faults("P3")
def test_an_array_cut_anywhere_is_damaged(tmp_path):
    written = json.dumps(ROWS, indent=1)
    for size in range(30, len(written) - 1, 7):
        path = write(tmp_path / "a.json", written[:size])
        with pytest.raises((DamagedError, BadInputError)):
            read(path)
    for more in ("]", "[]", ", {}"):
        with pytest.raises(DamagedError, match=r"more comes behind its end .*, in line 27"):
            read(write(tmp_path / "a.json", written + more))
    with pytest.raises(DamagedError, match=r"a\.json is no whole JSON text: .*, in line 3"):
        read(write(tmp_path / "a.json", '[{"id": 1,\n"text": "x"},\n{"id" 2}]'))


def test_arrays_and_files_without_an_object_say_so(tmp_path):
    for written in ("[]", "[1, 2]", "", "nothing", "[[]]"):
        with pytest.raises(BadInputError, match=r"none of its .* is a JSON object"):
            open_json(write(tmp_path / "a.json", written), COLUMNS, "json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(json_values, max_size=6), st.integers(1, 9), st.sampled_from([None, 0, 2]))
def test_reading_piece_by_piece_gives_what_reading_at_once_gives(
    tmp_path_factory, values, size, indent
):
    path = tmp_path_factory.mktemp("json") / "a.json"
    written = write(path, json.dumps(values, indent=indent)).read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", size)
        text = JsonText(text_lines(path))
        found = list(text.elements())
        text.end()
    assert repr(found) == repr(json.loads(written))
    assert json_shape(text_lines(path)) == "array"


@pytest.mark.slow
def test_memory_does_not_grow_with_an_array(tmp_path):
    path = tmp_path / "a.json"
    row = json.dumps({"id": 1, "file": "x.png", "text": "words " * 30})
    with path.open("w") as file:
        file.write("[" + row)
        for _ in range(500):
            file.write(f", {row}" * 1000)
        file.write("]")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from cit_curate.sources.columns import Columns\n"
        "from cit_curate.sources.text.json_array import open_json\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "columns = Columns(image_id='id', text=('text',))\n"
        "reader = open_json(Path(sys.argv[1]), columns, 'json')\n"
        "rows = reader.read(); next(rows); before = peak()\n"
        "print(sum(batch.num_records for batch in rows), peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True
    )
    num_records, grown = map(int, done.stdout.split())
    assert num_records > 450_000
    assert grown < 40
