"""Reading the metadata of YFCC100M: every line once, and every listed image of it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.sources.rows import ROW, num_texts
from cit_curate.sources.yfcc import lines as yfcc_lines
from cit_curate.sources.yfcc.format import COLUMNS, NUM_COLUMNS, NUM_IDS
from cit_curate.sources.yfcc.lines import parse_block, read_blocks
from cit_curate.sources.yfcc.texts import texts_of

EVERY_ID = np.full(NUM_IDS // 8, 255, np.uint8)


def line(image=0, **cells):
    values = {name: f"<{name}>" for name in COLUMNS} | {"line_number": str(image)} | cells
    return "\t".join(values.values())


def bits_of(*ids):
    listed = np.zeros(NUM_IDS, np.bool_)
    listed[list(ids)] = True
    return np.packbits(listed)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), max_size=30),
    st.booleans(),
    st.integers(1, 70),
    st.sampled_from([7, 16, 64]),
)
def test_ranges_of_any_size_give_every_line_once(tmp_path_factory, lengths, cut, size, block):
    path = tmp_path_factory.mktemp("lines") / "dataset.txt"
    content = b"".join(b"%d" % (n % 10) * length + b"\n" for n, length in enumerate(lengths))
    path.write_bytes(content[: len(content) - cut])
    content = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yfcc_lines, "BLOCK_BYTES", block)
        blocks = [
            block
            for start in range(0, len(content), size)
            for block in read_blocks(path, start, min(start + size, len(content)))
        ]
    assert b"".join(blocks) == content
    assert all(block.endswith(b"\n") for block in blocks[:-1])


@pytest.mark.faults("P1")
def test_a_line_without_end_is_cut_and_rejected_and_the_next_one_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(yfcc_lines, "BLOCK_BYTES", 300)
    monkeypatch.setattr(yfcc_lines, "MAX_LINE_BYTES", 500)
    path = tmp_path / "dataset.txt"
    path.write_text(f"{line(1)}\n{line(2, title='x' * 5_000)}\n{line(3)}\n")
    size = path.stat().st_size
    for step in (size, 700):
        blocks = [
            parse_block(block, EVERY_ID)
            for start in range(0, size, step)
            for block in read_blocks(path, start, min(start + step, size))
        ]
        assert sum(block.num_lines for block in blocks) == 3
        assert [i for b in blocks for i in b.rows["image_id"].to_pylist()] == [
            "00000001",
            "00000003",
        ]
        assert [r.reason for b in blocks for r in b.rejects] == ["bad_row"]


def test_listed_images_keep_their_license_and_page():
    block = "\n".join([line(5, title="a+cat"), line(6), line(7, license_name="CC é")]).encode()
    found = parse_block(block, bits_of(5, 7, 9))
    rows = found.rows.to_pylist()
    assert [row["image_id"] for row in rows] == ["00000005", "00000007"]
    assert rows[0]["caption"][0] == "a cat"
    assert rows[0]["text_key"] == ["title", "desc", "tag"]
    assert [row["license_name"] for row in rows] == ["<license_name>", "CC é"]
    assert (rows[0]["license_url"], rows[0]["page_url"]) == ("<license_url>", "<page_url>")
    assert [(row[ROW], len(row["caption"])) for row in rows] == [(0, 3), (2, 3)]
    assert (found.num_lines, found.num_records, found.rejects) == (3, 3, [])


@pytest.mark.faults("P1", "P2")
def test_malformed_lines_are_rejected_with_their_line_and_reason():
    lines = [
        line(1),
        "\t".join(["x"] * 23),
        "",
        "cut",
        line("x1"),
        line("123456789"),
        line(2, title="nul\0, quote \", caf\xe9 and %00"),
        line(3, title="+", description="", user_tags=",", machine_tags=""),
        line(4) + "\t",
        "  ",
    ]  # fmt: skip
    found = parse_block("\r\n".join(lines).encode("latin-1"), EVERY_ID)
    assert [(r.row, r.reason, r.record) for r in found.rejects] == [
        *[(1, "column_count", 1), (3, "column_count", 2), (4, "bad_image_id", 3)],
        *[(5, "bad_image_id", 4), (7, "empty_text", 7), (8, "column_count", 7)],
    ]
    assert "without line numbers and hashes" in found.rejects[0].detail
    assert found.rejects[2].detail == "image id 'x1' is no line number of at most 8 digits"
    assert (found.num_lines, found.num_records) == (10, 8)
    rows = found.rows.to_pylist()
    assert [(row["image_id"], len(row["caption"])) for row in rows] == [
        *[("00000001", 3), ("00000002", 3), ("00000003", 0)],
    ]
    assert rows[1]["caption"][0] == 'nul\0, quote ", caf\ufffd and \0'
    assert rows[1]["text_fixed"][0]


@pytest.mark.faults("P2")
def test_columns_that_are_not_utf8_are_mended():
    block = line(1, page_url="http://x/\xe9", license_url="\xff").encode("latin-1")
    row = parse_block(block, EVERY_ID).rows.to_pylist()[0]
    assert (row["page_url"], row["license_url"]) == ("http://x/\ufffd", "\ufffd")


raw_lines = st.lists(
    st.lists(st.sampled_from([b"1", b"22", b"x", b"", b"\xff", b"%41"]), min_size=1, max_size=27)
    | st.integers(0, 10**8).map(lambda n: [b"%d" % n, *[b"a"] * (NUM_COLUMNS - 1)]),
    max_size=8,
)


@pytest.mark.faults("P1")
@settings(deadline=None)
@given(raw_lines)
def test_every_line_is_an_image_a_reject_or_blank(rows):
    block = b"\n".join(b"\t".join(cells) for cells in rows)
    found = parse_block(block, EVERY_ID)
    assert found.num_records == np.count_nonzero(num_texts(found.rows)) + len(found.rejects)
    assert found.num_lines == len(block.split(b"\n")) - (block.endswith(b"\n") or not block)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            *[
                st.lists(
                    st.sampled_from(["a", "%4", "1", "+", "%2B", "é", "%C3", "%A9", ","]),
                    max_size=4,
                ).map("".join)
            ]
            * 4
        ),
        max_size=6,
    ),
    st.integers(0, 3),
)
@pytest.mark.slow
def test_the_images_of_a_block_have_the_texts_of_their_own_cells(cells, skipped):
    names = ("title", "description", "user_tags", "machine_tags")
    lines = [line(n, **dict(zip(names, four, strict=True))) for n, four in enumerate(cells)]
    listed = range(skipped, len(cells))
    found = parse_block("\n".join(lines).encode(), bits_of(*listed)).pairs.to_pylist()
    regions = ["\t".join([*cells[n], ""]).encode() for n in listed]
    columns = texts_of(pa.array(regions, pa.binary()))
    wanted = [
        (f"{image:08d}", *text[:3])
        for image, *texts in zip(listed, *(column.to_pylist() for column in columns), strict=True)
        for text in zip(*texts, strict=True)
    ]
    names = ("image_id", "text_key", "caption", "caption_hash")
    assert [tuple(pair[name] for name in names) for pair in found] == wanted
