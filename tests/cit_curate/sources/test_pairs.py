"""Pairs made a column at a time are those of the plain functions, row by row."""

from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cit_curate.captions import cleaner
from cit_curate.sources.columns import Columns
from cit_curate.sources.pairs import (
    RejectRowError,
    checked_image_id,
    checked_image_uri,
    checked_text_key,
    pairs_of,
)
from cit_curate.sources.rows import (
    ROW,
    Problem,
    batches_of,
    cells_of,
    column_cells,
    texts_of_cells,
)
from cit_curate.sources.texts import seen_text

ROOT = Path("/images/root")
WIDE = Columns(image="image", text=("title", "tag"), extra=("note",))
LONG = Columns(image="image", text_key="key", caption="caption", extra=("note",))

# What the patterns look for, cut up so that hypothesis finds its edges.
PIECES = (
    *("a", "h", "ht", "http", "http://x", "w", "ww", "www.x", "<", "<b>", "</b>", "<a x>", ">"),
    *(" ", "\t", "\n", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028"),
    *("\u202f", "\u205f", "\u3000", ",", ",,", "é", "猫", "\udce9", "\ud800", "\udfff", "+", "%20"),
    *("%C3%A9", "\0", "\x7f", "x" * 5_000, "é" * 9_000),
)
texts = st.none() | st.lists(st.sampled_from(PIECES), max_size=5).map("".join) | st.text(max_size=8)
ids = st.sampled_from(
    ["1", "a b", "", None, "a\x1fb", "é", "x" * 255, "x" * 256, "é" * 128, "\udcff"]
)
PATHS = ("a", "/", ".", "..", "//", "./", "../", "b.jpg", "é", "\x01", "http://", "https://x/", ":")
paths = st.none() | st.lists(
    st.sampled_from([*PATHS, "zip://", "a.zip#c", "s3://", str(ROOT)]), max_size=5
).map("".join)
keys = st.sampled_from(["tag", "Alt_Text", "!!", "", None, "é", "x" * 300, "title"])
problems = st.builds(Problem, st.just("bad_row"), st.text("xy", max_size=3))


def plain(records, columns, clean):
    """Pairs and rejects, a row at a time."""
    pairs, rejects = [], []
    for number, (line, cells) in enumerate(records):
        if isinstance(cells, Problem):
            rejects.append((line, cells.reason, cells.detail, number))
            continue
        row = dict(zip((*columns.names, *columns.extra), cells, strict=True))
        try:
            image_id = checked_image_id(row[columns.image_id])
            uri = checked_image_uri(row["image"], ROOT)
            named = [(key, row[name]) for key, name in columns.texts]
            if columns.text_key:
                named = [(checked_text_key(row["key"]), row["caption"])]
            found = []
            for key, cell in named:
                caption, fixed = seen_text(cell, key, cleaner(clean)) if cell else (None, False)
                if caption is not None:
                    digest = blake2b(caption.encode(), digest_size=8).digest()
                    caption_hash = int.from_bytes(digest, "little")
                    found.append((line, image_id, uri, key, caption, caption_hash, fixed))
            if not found:
                what = ", ".join(key for key, _ in named)
                raise RejectRowError("empty_text", f"image {image_id}: no text in {what}")
            pairs += [(*pair, row["note"]) for pair in found]
        except RejectRowError as error:
            rejects.append((line, error.reason, error.detail, number))
    return pairs, rejects


def by_column(records, columns, clean):
    pairs, rejects, num_records = [], [], 0
    names = (ROW, "image_id", "image_uri", "text_key", "caption", "caption_hash", "text_fixed")
    for rows in batches_of(iter(records), columns):
        found = pairs_of(rows, columns, image_root=ROOT, clean=clean)
        pairs += [tuple(row[name] for name in (*names, "note")) for row in found.pairs.to_pylist()]
        rejects += [(each.row, each.reason, each.detail, each.record) for each in found.rejects]
        num_records += found.num_records
    assert num_records == len(records)
    return pairs, rejects


notes = st.sampled_from([None, "", "x", "é"])


@pytest.mark.faults("P1", "P2", "P5", "C1")
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(ids, paths, texts, texts, notes) | problems, max_size=12),
    st.sampled_from(["none", "yfcc"]),
)
@example([("1", "h", "h<b>ttp://x", "w<i>ww.x", None), ("2", "", "\u3000", "\x85", "")], "none")
@example(
    [("1", "", "x" * 16_385, "é" * 8_193, None), ("1", "", "\udced\udca0\udc80", "\xa0,", "")],
    "none",
)
def test_wide_rows_make_the_pairs_of_the_plain_functions(cells, clean):
    records = [(7 + 2 * place, each) for place, each in enumerate(cells)]
    assert by_column(records, WIDE, clean) == plain(records, WIDE, clean)


@pytest.mark.faults("P1", "P2", "P5", "C1")
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ids, paths, keys, texts, notes) | problems, max_size=12))
def test_long_rows_make_the_pairs_of_the_plain_functions(cells):
    records = list(enumerate(cells, 1))
    assert by_column(records, LONG, "none") == plain(records, LONG, "none")


@pytest.mark.faults("P2")
@given(st.lists(st.none() | st.text(st.characters(exclude_categories=[]), max_size=5)))
def test_cells_keep_every_text_lone_surrogates_included(cells):
    assert texts_of_cells(cells_of(cells)) == [text or "" for text in cells]


@pytest.mark.faults("P2")
@given(st.lists(st.none() | st.binary(max_size=5)))
def test_cells_of_a_column_are_its_bytes_whether_utf8_or_not(values):
    wanted = ["" if raw is None else raw.decode(errors="surrogateescape") for raw in values]
    column = pa.array(values, pa.binary()).view(pa.string())
    for cells in (column, column.dictionary_encode()):
        assert texts_of_cells(column_cells(cells)) == wanted
