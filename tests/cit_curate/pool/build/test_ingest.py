"""Building pools: the same bytes every time, every dropped row accounted for."""

import random
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long_tables import LONG, WIDE, bytes_of, pairs_in, rejects_in, write_long

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.pool import format as pool_format
from cit_curate.pool import parts as pool_parts
from cit_curate.pool.check import verify_pool
from cit_curate.pool.parts import cut_groups, image_starts
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns


def test_rows_of_an_image_are_together_in_order_of_first_appearance(tmp_path):
    rows = [("b", "t", "1"), ("a", "t", "2"), ("b", "d", "3"), ("c", "t", "4"), ("a", "d", "5")]
    pool = Pool.build([write_long(tmp_path / "a.csv", rows)], tmp_path / "pool", columns=LONG)
    expected = [("b", "t", "1"), ("b", "d", "3"), ("a", "t", "2"), ("a", "d", "5"), ("c", "t", "4")]
    assert pairs_in(pool) == expected
    assert (pool.num_pairs, pool.num_images, pool.has_images, pool.name) == (5, 3, False, "pool")
    assert pool.manifest.text_keys == {"d": 2, "t": 3}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.faults("P4")
def test_the_first_of_a_repeated_pair_wins_and_other_texts_of_its_key_get_numbers(tmp_path):
    first = write_long(tmp_path / "a.csv", [("1", "t", "x"), ("1", "t", "x"), ("2", "t", "z")])
    second = write_long(tmp_path / "b.csv", [("3", "t", "w"), ("2", "T", "y"), ("2", "t", "y")])
    pool = Pool.build([first, second], tmp_path / "pool", columns=LONG)
    assert pairs_in(pool) == [("1", "t", "x"), ("2", "t", "z"), ("2", "t-2", "y"), ("3", "t", "w")]
    assert rejects_in(pool) == [("a.csv", 3, "duplicate_pair"), ("b.csv", 4, "duplicate_pair")]
    detail = pq.read_table(pool.path / "rejects/part-000000.parquet")["detail"].to_pylist()
    assert detail[1] == "its text is that of 2_t-2, from b.csv row 3"


ids = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8)


# Bytes that break readers: no UTF-8, NUL, line ends, byte order marks, lone surrogates, quotes.
captions = st.lists(
    st.text(st.characters(exclude_categories=[]), max_size=6).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
    | st.binary(max_size=6)
    | st.sampled_from([b"\0", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xb0\x80"])
    | st.sampled_from([b'"', b",", b"caf\xe9", b"\xf0\x9f\x90"]),
    max_size=4,
).map(b"".join)


def decoded(raw):
    """What a pool has of a caption's bytes, and whether it was mended: byte by byte.

    Where lines end in LF, a carriage return in a line is a blank.
    """
    text = re.sub("\r(?!\n)", " ", raw.decode("utf-8", "surrogateescape"))
    return re.sub("[\ud800-\udfff]", "\ufffd", text), any("\ud800" <= x <= "\udfff" for x in text)


@pytest.mark.faults("P1", "P2", "P5")
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(ids, st.sampled_from(["t", "tag", "D_x"]), captions), min_size=1, max_size=30
    )
)
@pytest.mark.slow
def test_every_row_is_a_pair_or_a_reject(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    rows = [*rows, ("last", "t", b"so that the pool is not empty")]
    quoted = [
        b",".join(
            b'"' + cell.replace(b'"', b'""') + b'"' for cell in (image.encode(), key.encode(), text)
        )
        for image, key, text in rows
    ]
    (folder / "a.csv").write_bytes(b"\n".join([b"image_id,key,caption", *quoted]))
    pool = Pool.build([folder / "a.csv"], folder / "pool", columns=LONG)
    assert pool.num_pairs + sum(pool.manifest.rejects.values()) == len(rows)
    assert len(rejects_in(pool)) == sum(pool.manifest.rejects.values())
    columns = ["image_id", "text_key", "caption", "text_fixed"]
    table = pq.read_table(pool.path / pool.parts[0].file.path, columns=columns)
    found = [tuple(row.values()) for row in table.to_pylist()]
    wanted = {(image, key.lower().replace("_", "-"), *decoded(text)) for image, key, text in rows}
    unnumbered = {(image, re.sub("-[0-9]+$", "", key), *rest) for image, key, *rest in found}
    assert unnumbered <= wanted
    assert len({pair[:2] for pair in found}) == len(found)
    with duckdb.connect(str(pool.path / "pool.duckdb"), read_only=True) as sql:
        assert sql.execute(f"SELECT {', '.join(columns)} FROM pairs").fetchall() == found


NASTY = {
    b"caf\xe9": "caf\ufffd",
    b"\xed\xa0\x80 lone surrogate": "\ufffd\ufffd\ufffd lone surrogate",
    b"nul\0byte": None,
    b"\xef\xbb\xbfmark": None,
    b"\xff\xfe\0u": "\ufffd\ufffd\0u",
    "\u202egnp.exe \U0001f431 \u732b e\u0301".encode(): None,
}


@pytest.mark.faults("P2", "C4")
def test_bytes_that_are_no_utf8_are_mended_flagged_and_the_same_in_parquet_and_duckdb(tmp_path):
    rows = [b"%d,t,%s" % (number, caption) for number, caption in enumerate(NASTY)]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfimage_id,key,caption\r\n" + b"\r\n".join(rows))
    pool = Pool.build([tmp_path / "a.csv"], tmp_path / "pool", columns=LONG)
    mended = [mend or raw.decode() for raw, mend in NASTY.items()]
    expected = [*zip(mended, [mend is not None for mend in NASTY.values()], strict=True)]
    table = pq.read_table(pool.path / "pairs/part-000000.parquet")
    columns = table["caption"].to_pylist(), table["text_fixed"].to_pylist()
    assert [*zip(*columns, strict=True)] == expected
    with duckdb.connect(str(pool.path / "pool.duckdb"), read_only=True) as sql:
        select = "SELECT caption, text_fixed FROM pairs ORDER BY image_id"
        assert sql.execute(select).fetchall() == expected
    assert table["image_id"].to_pylist() == [str(number) for number in range(len(NASTY))]


def test_the_same_sources_give_the_same_bytes(tmp_path):
    rng = random.Random(0)
    rows = [(str(rng.randrange(400)), rng.choice("abc"), f"text {n}") for n in range(3000)]
    source = write_long(tmp_path / "a.csv", rows)
    one = Pool.build([source], tmp_path / "one", columns=LONG)
    two = Pool.build([source], tmp_path / "two", columns=LONG)
    assert bytes_of(one.path) == bytes_of(two.path)
    assert one.fingerprint == two.fingerprint
    assert verify_pool(one.path) == []


def test_parts_and_row_groups_are_cut_at_image_boundaries(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_format, "ROW_GROUP_ROWS", 10)
    monkeypatch.setattr(pool_parts, "PART_ROWS", 40)
    rng = random.Random(0)
    rows = [
        (f"{image:04d}", f"k{text}", f"{image} {text}")
        for image in range(300)
        for text in range(rng.choice([1, 2, 3, 25 if image % 100 == 7 else 4]))
    ]
    pool = Pool.build([write_long(tmp_path / "a.csv", rows)], tmp_path / "pool", columns=LONG)
    assert pairs_in(pool) == rows
    seen = set()
    for number, group in enumerate(pool.row_groups):
        table = pool.read_row_groups([number])
        images = set(table["image_id"].to_pylist())
        assert (table.num_rows, len(images)) == (group.rows, group.images)
        assert group.rows <= 10 or group.images == 1
        assert not images & seen
        seen |= images
    assert len(seen) == pool.num_images == 300
    assert all(part.file.rows <= 40 for part in pool.parts)
    assert len(pool.parts) > 10
    assert verify_pool(pool.path) == []


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 6), st.lists(st.integers(1, 20)))
def test_cut_groups_keeps_every_row_and_no_image_in_two_groups(counts, max_rows, batches):
    ids = [str(image) for image, count in enumerate(counts) for _ in range(count)]
    table = pa.table({"image_id": pa.array(ids, pa.string())})
    pieces, done = [], 0
    for size in [*batches, len(ids)]:
        pieces.append(table.slice(done, size))
        done += size
    groups = [group["image_id"].to_pylist() for group in cut_groups(pieces, max_rows)]
    assert [image for group in groups for image in group] == ids
    assert all(len(group) <= max_rows or len(set(group)) == 1 for group in groups)
    assert sum(len(set(group)) for group in groups) == len(counts)
    assert len(image_starts(table["image_id"])) == len(counts)


@pytest.mark.faults("P6")
def test_extra_columns_are_carried_and_drift_between_sources_is_refused(tmp_path):
    for name, scores in (("1", pa.array([0.5, 1.5])), ("2", pa.array([3, 4]))):
        table = pa.table({"image_id": [name + "a", name + "b"], "title": ["x", "y"], "s": scores})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    columns = Columns(text=("title",), extra=("s",))
    pool = Pool.build([tmp_path / "1.parquet"], tmp_path / "pool", columns=columns)
    assert pq.read_table(pool.path / "pairs/part-000000.parquet")["s"].to_pylist() == [0.5, 1.5]
    with pytest.raises(ConfigError, match=r"column 's' is int64 in .*2\.parquet and double in"):
        Pool.build(
            [tmp_path / "1.parquet", tmp_path / "2.parquet"], tmp_path / "p", columns=columns
        )
    assert not (tmp_path / "p").exists()


@pytest.mark.faults("P6")
@pytest.mark.parametrize(
    ("first", "second"), [("int64", "int32"), ("int32", "int64"), ("int64", "uint64")]
)
def test_extra_columns_of_different_whole_numbers_are_refused(tmp_path, first, second):
    for name, kind in (("1", first), ("2", second)):
        scores = pa.array([2**31 - 1], getattr(pa, kind)())
        table = pa.table({"image_id": [name], "title": ["x"], "s": scores})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    columns = Columns(text=("title",), extra=("s",))
    both = rf"column 's' is {second} in .*2\.parquet and {first} in .*1\.parquet"
    with pytest.raises(ConfigError, match=both):
        Pool.build(
            [tmp_path / "1.parquet", tmp_path / "2.parquet"], tmp_path / "p", columns=columns
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.parquet", "2.parquet"]


@pytest.mark.faults("P6")
def test_an_extra_column_may_be_a_dictionary_in_one_of_the_sources(tmp_path):
    for name, scores in (("1", pa.array([7, 8])), ("2", pa.array([7, 8]).dictionary_encode())):
        table = pa.table({"image_id": [name + "a", name + "b"], "title": ["x", "y"], "s": scores})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    columns = Columns(text=("title",), extra=("s",))
    pool = Pool.build(
        [tmp_path / "2.parquet", tmp_path / "1.parquet"], tmp_path / "p", columns=columns
    )
    part = pq.read_table(pool.path / "pairs/part-000000.parquet")
    assert part["s"].to_pylist() == [7, 8, 7, 8]


@pytest.mark.faults("P6")
def test_a_source_that_lacks_a_column_of_the_others_is_named(tmp_path):
    whole = write_long(tmp_path / "a.csv", [("1", "t", "x")])
    (tmp_path / "b.csv").write_text("image_id,key,text\n2,t,y\n")
    with pytest.raises(ConfigError, match=r"b\.csv has no column 'caption'"):
        Pool.build([whole, tmp_path / "b.csv"], tmp_path / "pool", columns=LONG)
    assert not (tmp_path / "pool").exists()


@pytest.mark.faults("P1")
def test_malformed_rows_over_the_limit_stop_the_build(tmp_path):
    rows = [(str(number), "t", "x") for number in range(198)]
    source = write_long(tmp_path / "a.csv", [*rows, ("short",), ("short", "too")])
    Pool.build([source], tmp_path / "at", columns=LONG)
    source = write_long(tmp_path / "b.csv", [*rows, ("short",), ("short", "too"), ("", "t", "x")])
    with pytest.raises(BadInputError, match=r"3 of 201 rows are malformed.*column_count 2"):
        Pool.build([source], tmp_path / "over", columns=LONG)
    assert not (tmp_path / "over").exists()
    Pool.build([source], tmp_path / "over", columns=LONG, max_reject_ratio=0.1)


@pytest.mark.faults("P1", "P11")
def test_a_build_that_malformed_rows_stop_leaves_a_list_of_them_beside_the_pool(tmp_path):
    good = [(str(number), "t", "x") for number in range(20)]
    out, listed = tmp_path / "pool", tmp_path / "pool.rejects.parquet"

    def stopped(rows, message):
        source = write_long(tmp_path / "a.csv", rows)
        with pytest.raises(BadInputError, match=message) as caught:
            Pool.build([source], out, columns=LONG)
        assert str(caught.value).endswith(f"; the rejected rows are listed in {listed}")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", listed.name]
        table = pq.read_table(listed)
        assert table.schema == pool_format.REJECT_SCHEMA
        return [(row["row"], row["reason"]) for row in table.to_pylist()]

    found = stopped([*good, ("short",), ("1", "t", ""), ("", "t", "x")], "2 of 23 rows")
    assert found == [(22, "column_count"), (23, "empty_text"), (24, "bad_image_id")]
    found = stopped([("short",)] * 30 + [("", "t", "x")] * 80, "100 malformed rows in a row")
    assert found == [(n, "column_count" if n < 32 else "bad_image_id") for n in range(2, 112)]
    found = stopped([("1", "t", "")], "1 rows were read and no pair came of them")
    assert found == [(2, "empty_text")]
    (tmp_path / f".tmp-99999999-{listed.name}").touch()
    source = write_long(tmp_path / "a.csv", good)
    Pool.build([source], out, columns=LONG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "pool"]
    with pytest.raises(BadInputError) as caught:
        Pool.build([write_long(tmp_path / "b.csv", [])], tmp_path / "none", columns=LONG)
    assert "listed" not in str(caught.value)


@pytest.mark.faults("P1")
def test_a_hundred_malformed_rows_in_a_row_stop_the_build(tmp_path):
    rows = [(str(number), "t", "x") for number in range(20_000)]
    for count in (99, 100):
        broken = [*rows[:8150], *[("short",)] * count, *rows[8150:]]
        source = write_long(tmp_path / f"{count}.csv", broken)
        if count < 100:
            Pool.build([source], tmp_path / "pool", columns=LONG)
        else:
            with pytest.raises(BadInputError, match="100 malformed rows in a row up to row 8251"):
                Pool.build([source], tmp_path / "none", columns=LONG)


def test_duplicates_and_empty_texts_never_count_against_the_limit(tmp_path):
    rows = [("1", "t", "x"), *[("1", "t", "x")] * 300, *[("2", "t", " ")] * 300]
    pool = Pool.build([write_long(tmp_path / "a.csv", rows)], tmp_path / "pool", columns=LONG)
    assert pool.manifest.rejects == {"duplicate_pair": 300, "empty_text": 300}


@pytest.mark.faults("P11")
def test_no_rows_or_only_rejects_is_an_error_with_the_top_reasons(tmp_path):
    with pytest.raises(BadInputError, match="there is no row"):
        Pool.build([write_long(tmp_path / "a.csv", [])], tmp_path / "pool", columns=LONG)
    rows = [("1", "t", ""), ("2", "t", " "), ("", "t", "x"), ("3", "!", "x"), ("4",)]
    with pytest.raises(
        BadInputError, match=r"5 rows .* most often: empty_text 2 \(first: b.csv row 2"
    ):
        Pool.build([write_long(tmp_path / "b.csv", rows)], tmp_path / "pool", columns=LONG)
    assert list(tmp_path.glob(".*")) == []
    assert not (tmp_path / "pool").exists()


@pytest.mark.faults("P11")
def test_a_source_of_malformed_rows_alone_is_an_error_with_the_three_top_reasons(tmp_path):
    rows = [("", "t", "x")] * 20 + [("1", "!", "x")] * 30 + [("short",)] * 50 + [('a"',)] * 9
    source = write_long(tmp_path / "a.csv", rows)
    with pytest.raises(BadInputError, match="100 malformed rows in a row up to row 101") as caught:
        Pool.build([source], tmp_path / "pool", columns=LONG)
    reasons = str(caught.value).partition("most often: ")[2].split("; ")
    assert reasons[:-1] == [
        "column_count 59 (first: a.csv row 52, 1 columns where the header has 3)",
        "bad_text_key 30 (first: a.csv row 22, text key '!' has no letter or digit, or too many)",
        "bad_image_id 20 (first: a.csv row 2, the image id is empty)",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "pool.rejects.parquet"]


@pytest.mark.faults("P3")
def test_damage_is_found_by_open_or_by_verify(tmp_path):
    source = write_long(tmp_path / "a.csv", [(str(n), "t", f"x{n}") for n in range(500)])
    pool = Pool.build([source], tmp_path / "pool", columns=LONG)
    part = pool.path / "pairs/part-000000.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    with pytest.raises(DamagedError, match="part-000000"):
        Pool.open(pool.path)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    part.write_bytes(flipped)
    Pool.open(pool.path)
    with pytest.raises(DamagedError, match=r"part-000000.*SHA-256"):
        verify_pool(pool.path)
    part.write_bytes(content)
    (pool.path / "pairs/part-000009.parquet").write_bytes(b"")
    with pytest.raises(DamagedError, match="belongs to no manifest"):
        verify_pool(pool.path)
    (pool.path / "pairs/part-000009.parquet").unlink()
    manifest = (pool.path / "pool.json").read_text()
    for wrong in ("{", "[]", "{}", manifest.replace('"fingerprint": "', '"fingerprint": "0')):
        (pool.path / "pool.json").write_text(wrong)
        with pytest.raises(DamagedError, match=r"pool\.json"):
            Pool.open(pool.path)
    (pool.path / "pool.json").unlink()
    with pytest.raises(DamagedError):
        Pool.open(pool.path)
    with pytest.raises(ConfigError, match="cit pool build"):
        Pool.open(tmp_path / "nowhere")


@pytest.mark.faults("L10")
def test_the_catalog_answers_sql_and_is_rebuilt_after_a_move(tmp_path):
    rows = [("1", "t", "x"), ("1", "d", "y"), ("2", "t", "z"), ("2", "t", "z")]
    source = write_long(tmp_path / "a.csv", rows)
    pool = Pool.build([source], tmp_path / "a [1] 'pool'", columns=LONG)
    with duckdb.connect(str(pool.path / "pool.duckdb"), read_only=True) as sql:
        assert sql.execute("SELECT count(*) FROM pairs").fetchall() == [(3,)]
        assert sql.execute("SELECT image_id, num_pairs FROM images ORDER BY 1").fetchall() == [
            ("1", 2),
            ("2", 1),
        ]
        assert sql.execute("SELECT source, reason FROM rejects").fetchall() == [
            ("a.csv", "duplicate_pair")
        ]
        assert sql.execute("SELECT num_rows, num_images FROM shards").fetchall() == [(3, 2)]
        assert sql.execute("SELECT name, num_records FROM sources").fetchall() == [("a.csv", 4)]
    moved = pool.path.rename(tmp_path / "moved")
    assert "cit pool repair" in verify_pool(moved)[0]
    Pool.open(moved).rebuild_catalog()
    assert verify_pool(moved) == []
    (moved / "pool.duckdb").write_bytes(b"nonsense")
    assert "cannot be read" in verify_pool(moved)[0]
    Pool.open(moved).rebuild_catalog()
    assert verify_pool(moved) == []


def damaged_catalog(path, damage):
    """Damages the catalog, and gives a process that has to be ended, if any."""
    data = bytearray(path.read_bytes())
    if damage in ("locked", "log"):
        script = (
            "import duckdb, sys, time; connection = duckdb.connect(sys.argv[1]); "
            "connection.execute('CREATE TABLE t AS FROM range(500)'); "
            "print(flush=True); time.sleep(600)"
        )
        process = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
        process.stdout.readline()
        if damage == "locked":
            return process
        process.kill()
        process.communicate()
        path = path.with_name("pool.duckdb.wal")
        data = bytearray(path.read_bytes())
    # The main header: 8 bytes checksum, 4 bytes DUCK, 8 bytes version of the storage.
    data[{"log": len(data) // 2, "version": 12, "flipped": 4096 + 8}[damage]] ^= 0x7F
    path.write_bytes(data)
    return None


@pytest.mark.faults("L10")
@pytest.mark.parametrize("damage", ["locked", "log", "version", "flipped"])
def test_a_pool_is_read_whatever_became_of_its_catalog_which_is_rebuilt(tmp_path, damage):
    source = write_long(tmp_path / "a.csv", [("1", "t", "x"), ("2", "t", "z")])
    pool = Pool.build([source], tmp_path / "pool", columns=LONG)
    rows = pool.read_row_groups(range(len(pool.row_groups)))
    owner = damaged_catalog(pool.path / "pool.duckdb", damage)
    try:
        again = Pool.open(pool.path)
        assert again.read_row_groups(range(len(again.row_groups))).equals(rows)
        (note,) = verify_pool(pool.path)
        assert "pool.duckdb cannot be read" in note
        assert f"cit pool repair {pool.path}" in note
        again.rebuild_catalog()
        assert verify_pool(pool.path) == []
    finally:
        if owner is not None:
            owner.kill()
            owner.communicate()
    assert verify_pool(pool.path) == []


def test_images_stay_where_they_are_and_are_read_by_source(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(name.encode())
        (tmp_path / name / "t.csv").write_text(f"image_id,title,tag,image\n{name},x,,a.jpg\n")
    sources = [tmp_path / "one/t.csv", tmp_path / "two/t.csv"]
    pool = Pool.build(sources, tmp_path / "pool", columns=WIDE)
    table = pool.read_row_groups(range(len(pool.row_groups)))
    read = [pool.image_bytes(row["image_uri"], row["source"]).decode() for row in table.to_pylist()]
    assert read == ["one", "two"] == table["image_id"].to_pylist()
    assert pool.has_images
    with pytest.raises(ConfigError, match="no source 'x'"):
        pool.image_bytes("a.jpg", "x")


NOTHING = [" ", "\t", "<b>", "</b>", "<a href=x>", "</a>", " http://x.org/a?b ", " www.x.org "]


@pytest.mark.faults("C1")
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["none", "yfcc"]).flatmap(
        lambda clean: st.tuples(
            st.just(clean),
            st.lists(
                st.sampled_from([*NOTHING, *(["+", "%20"] if clean == "yfcc" else [])]), max_size=8
            ).map("".join),
            # A long text is searched for tags line by line.
            st.sampled_from(["", " " * 2000]),
        )
    )
)
@pytest.mark.slow
def test_a_caption_of_blanks_markup_and_addresses_alone_is_no_pair(tmp_path_factory, drawn):
    clean, caption, padding = drawn
    folder = tmp_path_factory.mktemp("empty")
    rows = [("1", "title", caption + padding), ("2", "title", "a cat")]
    source = write_long(folder / "a.csv", rows)
    pool = Pool.build([source], folder / "pool", columns=LONG, clean=clean)
    assert pairs_in(pool) == [("2", "title", "a cat")]
    assert rejects_in(pool) == [("a.csv", 2, "empty_text")]


@pytest.mark.faults("C1")
def test_a_caption_that_says_something_is_stored_with_its_markup_and_addresses(tmp_path):
    texts = ["<b>a cat</b>", " http://x.org/a cat", "www is three letters", "a < b", ",<i>,</i>"]
    rows = [(str(number), "title", text) for number, text in enumerate(texts)]
    source = write_long(tmp_path / "a.csv", [*rows, ("9", "tag", ",<i>,</i>")])
    pool = Pool.build([source], tmp_path / "pool", columns=LONG)
    assert pairs_in(pool) == rows
    assert rejects_in(pool) == [("a.csv", 7, "empty_text")]


def test_cleaning_is_by_name(tmp_path):
    source = write_long(tmp_path / "a.csv", [("1", "title", "My+cat"), ("2", "tag", "%2C+,")])
    pool = Pool.build([source], tmp_path / "pool", columns=LONG, clean="yfcc")
    assert pairs_in(pool) == [("1", "title", "My cat")]
    assert pool.manifest.cleaning == "yfcc"
    assert Path(pool.sources[0].path) == source
