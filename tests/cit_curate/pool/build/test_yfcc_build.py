"""Pools from YFCC100M: what is in them, and the same bytes however and how often they are built."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.captions import clean_tags, clean_text, is_blank
from cit_curate.config import EngineConfig
from cit_curate.errors import BadInputError, ConfigError, DamagedError, ResourceError
from cit_curate.pool import commands
from cit_curate.pool import parts as pool_parts
from cit_curate.pool.build import ingest
from cit_curate.pool.build.ingest import build_pool
from cit_curate.pool.check import verify_pool
from cit_curate.pool.format import REJECT_SCHEMA, read_manifest
from cit_curate.pool.parts import cut_groups, part_ends
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from cit_curate.sources.source import yfcc_source
from cit_curate.sources.yfcc import lines as yfcc_lines
from cit_curate.sources.yfcc.format import COLUMNS
from cit_curate.sources.yfcc.source import YfccSource
from cit_curate.storage.fail_points import VARIABLE
from cit_curate.storage.lock import writer_lock

TITLES = ("IMG_0520", "My+cat", "caf%C3%A9", "", "+", "a+b%2Bc", "%3Cb%3Ebold%3C%2Fb%3E")
DESCRIPTIONS = ("", "see+http%3A%2F%2Fx.org+end", "two%0Alines", "www.only", "%E6%9D%B1%E4%BA%AC")
TAGS = ("", "", "cat,dog", "new+york", "%2C")


def made_up(image, rng):
    cells = {name: f"<{name}>" for name in COLUMNS} | {
        "line_number": str(image),
        "title": rng.choice(TITLES),
        "description": rng.choice(DESCRIPTIONS),
        "user_tags": rng.choice(TAGS),
        "machine_tags": rng.choice(("", "", "", "uploaded:by=instagram")),
        "license_name": rng.choice(("Attribution License", "Attribution-ShareAlike License")),
        "page_url": f"http://www.flickr.com/photos/x/{image}/",
    }
    return "\t".join(cells.values())


def files(folder, lines, ids, subset=None, **options):
    """A source of these lines and lists."""
    folder.mkdir(exist_ok=True)
    (folder / "dataset.txt").write_text("".join(f"{line}\n" for line in lines))
    np.save(folder / "ids.npy", np.array(ids, np.int64))
    if subset is not None:
        (folder / "subset.tsv").write_text("".join(f"{image}\t{image}9\tff\n" for image in subset))
    return YfccSource(
        format="yfcc100m" if subset is None else "yfcc15m",
        metadata=folder / "dataset.txt",
        image_ids=folder / "ids.npy",
        subset=None if subset is None else folder / "subset.tsv",
        **options,
    )


def build(source, out, **options):
    """A pool, built in this process unless workers are asked for."""
    source = replace(source, range_bytes=options.pop("range_bytes", source.range_bytes))
    defaults = {"columns": None, "clean": "yfcc", "engine": EngineConfig(workers=1)}
    manifest = build_pool([yfcc_source(source)], out, **{**defaults, **options})
    return Pool(out, manifest)


def rows_in(pool):
    table = pa.concat_tables([pq.read_table(pool.path / p.file.path) for p in pool.parts])
    return table.to_pylist()


def pairs_in(pool):
    return [(row["image_id"], row["text_key"], row["caption"]) for row in rows_in(pool)]


def rejects_in(pool):
    return [
        (row["row"], row["reason"])
        for entry in pool.manifest.reject_parts
        for row in pq.read_table(pool.path / entry.path).to_pylist()
    ]


def bytes_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.parquet"))
    }


def plain_pairs(lines, wanted):
    """The pairs by `docs/method.md`, a line at a time."""
    pairs, seen = [], set()
    for line in lines:
        cells = dict(zip(COLUMNS, line.split("\t"), strict=True))
        image = int(cells["line_number"])
        if image not in wanted or image in seen:
            continue
        texts = {
            "title": clean_text(cells["title"]).strip(),
            "desc": clean_text(cells["description"]).strip(),
            "tag": clean_tags(cells["user_tags"], cells["machine_tags"]).strip(),
        }
        found = [(f"{image:08d}", k, text) for k, text in texts.items() if not is_blank(text, k)]
        pairs += found
        if found:
            seen.add(image)
    return pairs


@pytest.fixture(scope="module")
def ten_thousand(tmp_path_factory):
    """10,000 lines, some of them twice, as yfcc15m; and the pairs that must come of them."""
    rng = random.Random(0)
    images = [*range(9_000), *rng.sample(range(9_000), 500), *range(20_000_000, 20_000_500)]
    lines = [made_up(image, rng) for image in images]
    ids = sorted({*rng.sample(images, 9_000), 77_777_777})
    subset = [*rng.sample(images, 6_000), 88_888_888, 77_777_777]
    source = files(tmp_path_factory.mktemp("yfcc"), lines, ids, subset)
    return source, plain_pairs(lines, {*ids} & {*subset})


def test_ten_thousand_lines_become_the_pairs_that_a_plain_script_makes(ten_thousand, tmp_path):
    source, wanted = ten_thousand
    told = []
    pool = build(
        source, tmp_path / "pool", range_bytes=300_000, progress=lambda *state: told.append(state)
    )
    assert pairs_in(pool) == wanted
    for what, rows in (("reading", 10_000), ("writing", len(wanted))):
        states = [state for state in told if state[0] == what]
        assert states == sorted(states)
        assert (states[0], states[-1]) == ((what, 0, 0.0), (what, rows, 1.0))
    manifest = pool.manifest
    assert (manifest.num_pairs, manifest.num_records) == (len(wanted), 10_000)
    assert manifest.num_with_image == len(wanted)
    assert manifest.cleaning == "yfcc"
    assert set(manifest.rejects) == {"duplicate_key", "empty_text"}
    lists = manifest.id_lists
    assert lists["num_ids_without_line"] == 1
    kept_or_rejected = manifest.num_images + sum(manifest.rejects.values())
    assert lists["num_lines_listed"] == kept_or_rejected
    assert len(lists["image_ids"]["sha256"]) == len(lists["subset"]["sha256"]) == 64
    assert manifest.sources[0].num_records == 10_000
    assert verify_pool(pool.path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_ranges_do_not_show_in_the_bytes(ten_thousand, tmp_path):
    source, _ = ten_thousand
    one = build(source, tmp_path / "one")
    small = build(source, tmp_path / "small", range_bytes=200_001)
    assert one.fingerprint == small.fingerprint
    assert bytes_of(one.path) == bytes_of(small.path)


def test_workers_do_not_show_in_the_bytes(tmp_path):
    rng = random.Random(0)
    lines = [made_up(image, rng) for image in range(300)]
    source = files(tmp_path / "in", lines, range(300))
    one = build(source, tmp_path / "one", range_bytes=20_000)
    two = build(source, tmp_path / "two", engine=EngineConfig(workers=2), range_bytes=20_000)
    assert bytes_of(one.path) == bytes_of(two.path)


def test_an_image_has_its_zip_its_license_and_its_page(tmp_path):
    rng = random.Random(0)
    pool = build(
        files(tmp_path / "in", [made_up(12_345_678, rng)], [12_345_678]), tmp_path / "pool"
    )
    row = rows_in(pool)[0]
    assert row["image_id"] == "12345678"
    assert row["image_uri"] == "zip://images/12/345.zip#678.jpg"
    assert row["page_url"] == "http://www.flickr.com/photos/x/12345678/"
    assert row["license_name"].startswith("Attribution")
    assert (row["license_url"], row["source"]) == ("<license_url>", "dataset.txt")
    assert pool.manifest.sources[0].image_root == str(tmp_path / "in")


def test_without_its_tags_an_image_is_dropped_or_kept_as_the_reference_does(tmp_path):
    rng = random.Random(0)
    lines = []
    for image in (3, 4):
        cells = made_up(image, rng).split("\t")
        cells[8:12] = ["a+cat" if image == 3 else "", "", "", ""]
        lines.append("\t".join(cells))
    plain = build(files(tmp_path / "in", lines, [3, 4]), tmp_path / "plain")
    assert pairs_in(plain) == [("00000003", "title", "a cat")]
    assert rejects_in(plain) == [(2, "empty_text")]
    source = files(tmp_path / "in", lines, [3, 4], reference_empty_tags=True)
    kept = build(source, tmp_path / "kept")
    assert pairs_in(kept)[1:] == [("00000003", "tag", ","), ("00000004", "tag", ",")]
    assert kept.manifest.id_lists["reference_empty_tags"] is True
    assert plain.manifest.id_lists["reference_empty_tags"] is False


@pytest.mark.faults("P4")
def test_the_first_line_of_an_image_that_has_a_text_wins(tmp_path):
    rng = random.Random(1)
    lines = [made_up(image, rng) for image in (1, 2, 1, 3, 2, 1)]
    cells = lines[0].split("\t")
    cells[8:12] = [""] * 4
    lines[0] = "\t".join(cells)
    for size in (10_000, 100):
        pool = build(
            files(tmp_path / "in", lines, range(9)), tmp_path / f"{size}", range_bytes=size
        )
        assert list(dict.fromkeys(i for i, _, _ in pairs_in(pool))) == [
            "00000002",
            "00000001",
            "00000003",
        ]
        assert rejects_in(pool) == [(1, "empty_text"), (5, "duplicate_key"), (6, "duplicate_key")]
        assert pool.manifest.id_lists["num_ids_without_line"] == 6


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=60),
    st.integers(1, 7),
    st.integers(7, 20),
    st.integers(1, 60),
)
def test_parts_are_cut_where_a_stream_of_pairs_is_cut(counts, max_rows, part_rows, length):
    ids = [str(image) for image, count in enumerate(counts) for _ in range(count)]
    groups = cut_groups([pa.table({"image_id": pa.array(ids, pa.string())})], max_rows)
    parts, rows = [[]], 0
    for group in groups:
        if rows and rows + group.num_rows > part_rows:
            parts.append([])
            rows = 0
        parts[-1] += dict.fromkeys(group["image_id"].to_pylist())
        rows += group.num_rows
    pieces = [np.array(counts[n : n + length]) for n in range(0, len(counts), length)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_parts, "PART_ROWS", part_rows)
        ends = [0, *part_ends(pieces, max_rows)]
    assert [list(dict.fromkeys(ids[start:stop])) for start, stop in pairwise(ends)] == parts


def test_a_pool_of_several_parts(ten_thousand, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_parts, "PART_ROWS", 1_000)
    source, wanted = ten_thousand
    pool = build(source, tmp_path / "pool", range_bytes=200_000)
    assert len(pool.parts) > 10
    assert all(part.file.rows <= 1_000 for part in pool.parts)
    assert pairs_in(pool) == wanted
    assert verify_pool(pool.path) == []


@pytest.mark.faults("P1")
def test_malformed_lines_over_the_limit_stop_the_build(tmp_path):
    rng = random.Random(0)
    lines = [made_up(image, rng) for image in range(197)]
    lines[50:50] = ["short", "", made_up("x", rng)]
    source = files(tmp_path / "in", lines, range(200))
    pool = build(source, tmp_path / "at", max_reject_ratio=0.011, range_bytes=5_000)
    assert [r for r in rejects_in(pool) if r[1] != "empty_text"] == [
        (51, "column_count"),
        (53, "bad_image_id"),
    ]
    assert pool.manifest.num_records == 199
    with pytest.raises(BadInputError, match=r"2 of 199 rows .*column_count 1 \(first: line 51"):
        build(source, tmp_path / "over", range_bytes=5_000)
    assert not (tmp_path / "over").exists()
    listed = tmp_path / "over.rejects.parquet"
    table = pq.read_table(listed)
    assert table.schema == REJECT_SCHEMA
    found = [(r["source"], r["row"], r["reason"]) for r in table.to_pylist()]
    assert [row for row in found if row[2] != "empty_text"] == [
        ("dataset.txt", 51, "column_count"),
        ("dataset.txt", 53, "bad_image_id"),
    ]
    # What was read is kept: the same command with a higher limit goes on at once.
    assert (tmp_path / ".staging-over").is_dir()
    build(source, tmp_path / "over", max_reject_ratio=0.1, range_bytes=5_000)
    assert not (tmp_path / ".staging-over").exists()
    assert not listed.exists()


RUNS = {99: "99 of .* rows are malformed", 100: "100 malformed rows in a row up to row 108"}


@pytest.mark.faults("P1")
@pytest.mark.parametrize("range_bytes", [3_000, 10**9])
def test_a_hundred_malformed_lines_in_a_row_stop_the_build(tmp_path, range_bytes):
    rng = random.Random(0)
    lines = [made_up(image, rng) for image in range(20)]
    for count in (99, 100):
        broken = [*lines[:7], *["a\tb" * 10] * 50, "", *["a\tb" * 10] * (count - 50), *lines[7:]]
        source = files(tmp_path / f"{count}", broken, range(20))
        given = {"max_reject_ratio": 1, "range_bytes": range_bytes}
        assert build(source, tmp_path / f"given-{count}", **given).num_images > 10
        with pytest.raises(BadInputError, match=RUNS[count]):
            build(source, tmp_path / f"none-{count}", range_bytes=range_bytes)
        # What the reading skipped there is read now.
        assert build(source, tmp_path / f"none-{count}", **given).num_images > 10


@pytest.mark.faults("P11")
def test_no_line_or_no_listed_image_is_an_error_that_says_why(tmp_path):
    rng = random.Random(0)
    with pytest.raises(BadInputError, match="there is no line in it"):
        build(files(tmp_path / "a", [], [1]), tmp_path / "pool")
    with pytest.raises(BadInputError, match=r"1 lines .* none has an id that the lists name"):
        build(files(tmp_path / "b", [made_up(5, rng)], [6]), tmp_path / "pool")
    cells = made_up(5, rng).split("\t")
    cells[8:12] = [""] * 4
    assert not (tmp_path / "pool.rejects.parquet").exists()
    with pytest.raises(BadInputError, match=r"rejected: empty_text 1; .*/pool\.rejects\.parquet"):
        build(files(tmp_path / "c", ["\t".join(cells)], [5]), tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


@pytest.mark.faults("P11")
@pytest.mark.parametrize("range_bytes", [3_000, 10**9])
def test_malformed_lines_alone_are_an_error_with_the_three_top_reasons(
    tmp_path, monkeypatch, range_bytes
):
    monkeypatch.setattr(yfcc_lines, "MAX_LINE_BYTES", 1_000)
    rng = random.Random(0)
    lines = [made_up("x", rng)] * 20 + ["y" * 1_500] * 30 + ["a\tb"] * 51
    source = files(tmp_path / "in", lines, [1])
    with pytest.raises(BadInputError, match="100 malformed rows in a row up to row 100") as caught:
        build(source, tmp_path / "pool", range_bytes=range_bytes)
    reasons = str(caught.value).partition("most often: ")[2].split("; ")
    listed = tmp_path / "pool.rejects.parquet"
    assert reasons.pop() == f"the rejected rows are listed in {listed}"
    assert pq.read_table(listed)["row"].to_pylist() == [*range(1, 102)]
    assert reasons == [
        "column_count 51 (first: line 51, 2 columns where YFCC100M has 25, separated by tabs)",
        "bad_row 30 (first: line 21, the line is longer than 1,000 bytes)",
        "bad_image_id 20 (first: line 1, image id 'x' is no line number of at most 8 digits)",
    ]


@pytest.mark.faults("P1", "P2")
def test_a_byte_order_mark_and_a_cut_last_line(tmp_path):
    rng = random.Random(3)
    source = files(tmp_path / "in", [made_up(image, rng) for image in range(9)], range(9))
    content = source.metadata.read_bytes()
    source.metadata.write_bytes(b"\xef\xbb\xbf" + content[:-40])
    pool = build(source, tmp_path / "pool", max_reject_ratio=0.2)
    assert pairs_in(pool)[0][0] == "00000000"
    assert rejects_in(pool)[-1] == (9, "column_count")


@pytest.mark.faults("P10")
@pytest.mark.parametrize("change", ["metadata", "ids", "option", "half a marker"])
@pytest.mark.slow
def test_what_was_read_under_other_conditions_is_not_used(tmp_path, change, caplog):
    rng = random.Random(0)
    lines = [made_up(image, rng) for image in range(50)]
    source = files(tmp_path / "in", lines, range(50), range(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "planned", _fail)
        with pytest.raises(OSError, match="made up"):
            build(source, tmp_path / "pool", range_bytes=2_000)
    staging = tmp_path / ".staging-pool"
    options = {}
    if change == "metadata":
        lines[7] = lines[8]
    elif change == "option":
        options = {"reference_empty_tags": True}
    elif change == "half a marker":
        (next(staging.glob("*/"))).rename(staging / "0")
        (staging / "key.json").write_text("{")
    source = files(
        tmp_path / "in", lines, range(30 if change == "ids" else 50), range(40), **options
    )
    pool = build(source, tmp_path / "pool", range_bytes=2_000)
    assert f"{staging}: reading starts over" in caplog.text
    named = {"metadata": "--metadata", "ids": "--image-ids", "option": "--reference-empty-tags"}
    assert named.get(change, "damaged") in caplog.text
    assert bytes_of(pool.path) == bytes_of(build(source, tmp_path / "fresh").path)


def _fail(blocks, folder, places):
    raise OSError("made up")


@pytest.mark.faults("P3")
def test_a_damaged_block_is_named(tmp_path, monkeypatch):
    rng = random.Random(0)
    source = files(tmp_path / "in", [made_up(image, rng) for image in range(50)], range(50))
    monkeypatch.setattr(ingest, "planned", _fail)
    with pytest.raises(OSError, match="made up"):
        build(source, tmp_path / "pool")
    monkeypatch.undo()
    (block,) = (tmp_path / ".staging-pool").glob("*/block-000000.arrow")
    block.write_bytes(block.read_bytes()[:-30])
    with pytest.raises(DamagedError, match=r"block-000000.* remove .*\.staging-pool and build"):
        build(source, tmp_path / "pool")


@pytest.mark.faults("P10")
def test_metadata_that_changes_while_it_is_read_is_refused(ten_thousand, tmp_path):
    rng = random.Random(0)
    source = files(tmp_path / "in", [made_up(image, rng) for image in range(50)], range(50))

    def touch(what, rows, share):
        if what == "reading":
            os.utime(source.metadata, ns=(1, 1))

    with pytest.raises(DamagedError, match="changed while it was read"):
        build(source, tmp_path / "pool", progress=touch)
    assert not (tmp_path / "pool").exists()


@pytest.mark.faults("P9")
def test_a_second_builder_is_refused(ten_thousand, tmp_path):
    source, _ = ten_thousand
    with writer_lock(tmp_path / "pool"), pytest.raises(ResourceError, match="is held by"):
        build(source, tmp_path / "pool")


@pytest.mark.faults("P8")
def test_a_full_disk_is_a_resource_error_and_the_next_build_goes_on(
    ten_thousand, tmp_path, monkeypatch
):
    source, _ = ten_thousand
    needed = 3 * source.metadata.stat().st_size
    usage = shutil.disk_usage("/")._replace(free=1_234_567)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(
            ResourceError,
            match=rf"the disk of {tmp_path}/pool is full: about {needed:,} bytes are needed while "
            r"building, 1,234,567 are free \(",
        ):
            build(source, tmp_path / "pool", range_bytes=500_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "pool").exists()
    build(source, tmp_path / "pool", range_bytes=500_000)


BUILD = """
import sys
from pathlib import Path
from cit_curate.config import EngineConfig
from cit_curate.pool.build.ingest import build_pool
from cit_curate.sources.source import yfcc_source
from cit_curate.sources.yfcc.source import YfccSource
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    names = [folder / name for name in ("dataset.txt", "ids.npy", "subset.tsv")]
    lists = {"image_ids": names[1], "subset": names[2], "range_bytes": 50_000}
    source = yfcc_source(YfccSource(format="yfcc15m", metadata=names[0], **lists))
    engine = EngineConfig(workers=2)
    build_pool([source], Path(sys.argv[2]), columns=None, clean="yfcc", engine=engine)
"""


def test_no_process_of_a_build_imports_pandas(tmp_path):
    rng = random.Random(0)
    lines = [made_up(image % 90, rng) for image in range(100)]
    files(tmp_path / "in", lines, range(95), range(95))
    script = BUILD.replace("workers=2", "workers=1") + '    sys.exit("pandas" in sys.modules)\n'
    command = [sys.executable, "-c", script, str(tmp_path / "in"), str(tmp_path / "pool")]
    subprocess.run(command, check=True)
    assert Pool.open(tmp_path / "pool").manifest.rejects["duplicate_key"] > 5


@pytest.mark.faults("P7")
@pytest.mark.slow
def test_killed_builds_go_on_and_end_in_the_same_bytes(ten_thousand, tmp_path):
    source, _ = ten_thousand
    whole = build(source, tmp_path / "whole", range_bytes=50_000)
    (tmp_path / "build.py").write_text(BUILD)
    command = [sys.executable, "build.py", str(source.metadata.parent), str(tmp_path / "pool")]
    staging, numbers = tmp_path / ".staging-pool", []
    for wait_for in (1, 15, 40):
        with subprocess.Popen(command, cwd=tmp_path) as running:
            while len(list(staging.glob("*/block*"))) < wait_for and running.poll() is None:
                time.sleep(0.01)
            running.send_signal(signal.SIGKILL)
        numbers.append(len(list(staging.glob("*/block*"))))
        assert not (tmp_path / "pool").exists()
    assert numbers == sorted(numbers)
    kept = {path: path.stat().st_ino for path in staging.glob("*/block*")}
    time.sleep(0.5)
    assert not _workers_of(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "planned", _fail)
        with pytest.raises(OSError, match="made up"):
            build(source, tmp_path / "pool", range_bytes=50_000)
    assert {path: path.stat().st_ino for path in kept} == kept
    pool = build(source, tmp_path / "pool", range_bytes=50_000)
    assert bytes_of(pool.path) == bytes_of(whole.path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.faults("P7")
@pytest.mark.parametrize("moment", ["other.renamed", "pool_catalog.start"])
@pytest.mark.slow
def test_a_build_that_is_killed_before_its_catalog_is_finished_by_the_same_command(
    tmp_path, moment
):
    rng = random.Random(0)
    lines = [made_up(image, rng) for image in range(50)]
    source = files(tmp_path / "in", lines, range(50), range(40))
    whole = build(source, tmp_path / "whole", name="pool", range_bytes=50_000)
    script = BUILD.replace("workers=2", "workers=1")
    command = [sys.executable, "-c", script, str(tmp_path / "in"), str(tmp_path / "pool")]
    killed = subprocess.run(command, env=os.environ | {VARIABLE: f"{moment}:1:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "pool/pool.duckdb").exists()
    # The catalog is the last of all.
    assert (tmp_path / ".staging-pool").exists() == (moment == "other.renamed")
    written = {path: path.stat().st_ino for path in (tmp_path / "pool").rglob("*.*")}
    with pytest.raises(
        ConfigError, match="--reference-empty-tags was False, now True; its catalog is missing"
    ):
        build(replace(source, reference_empty_tags=True), tmp_path / "pool")
    # Other ranges or workers make the same pool.
    pool = build(source, tmp_path / "pool")
    assert pool.manifest == Pool.open(whole.path).manifest
    assert {path: path.stat().st_ino for path in written} == written
    assert bytes_of(pool.path) == bytes_of(whole.path)
    assert verify_pool(pool.path) == []
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.faults("P10")
def test_a_pool_of_other_lists_or_metadata_is_refused_naming_each_difference(tmp_path):
    rng = random.Random(0)
    lines = [made_up(image, rng) for image in range(20)]
    source = files(tmp_path / "in", lines, range(20), range(10))
    lists = build(source, tmp_path / "pool").manifest.id_lists
    now = files(tmp_path / "in", lines, range(15), reference_empty_tags=True)
    with pytest.raises(ConfigError) as caught:
        build(now, tmp_path / "pool")
    sha256 = hashlib.sha256(now.image_ids.read_bytes()).hexdigest()
    for told in (
        f"the source {now.metadata} was read as yfcc15m, now yfcc100m",
        f"the source {now.metadata} was written again",
        f"--image-ids was {lists['image_ids']['sha256']}, now {sha256}",
        f"--subset was {lists['subset']['sha256']}, now none",
        "--reference-empty-tags was False, now True",
    ):
        assert told in str(caught.value)
    (tmp_path / "a.csv").write_text("image_id,title\n1,a cat\n")
    with pytest.raises(
        ConfigError, match=r"dataset.txt is no source any more; the source .*a\.csv"
    ):
        Pool.build([tmp_path / "a.csv"], tmp_path / "pool", columns=Columns(text=("title",)))


def _workers_of(folder):
    """Processes that still work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append(process.name)
        except OSError:
            continue
    return found


def test_the_command_builds_and_says_what_the_lists_held(ten_thousand, tmp_path, capsys):
    source, wanted = ten_thousand
    flags = ["--format", "yfcc15m", "--metadata", str(source.metadata), "--workers", "1"]
    flags += ["--image-ids", str(source.image_ids), "--subset", str(source.subset)]
    out = tmp_path / "pool"
    tyro.cli(commands.build, args=[*flags, "--out", str(out), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["num_pairs"] == len(wanted)
    assert shown["id_lists"]["num_ids_without_line"] == 1
    assert read_manifest(out).id_lists == shown["id_lists"]
    tyro.cli(commands.info, args=[str(out)])
    assert "of which 1 have no line" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(ConfigError, match="its sources have not changed since"):
        tyro.cli(commands.build, args=[*flags, "--out", str(out)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "yfcc15m"], "needs --subset"),
        (["--format", "yfcc100m", "--subset", "x"], "is for --format yfcc15m"),
        (["--format", "yfcc100m", "--text", "title"], "columns of its own"),
        (["a.csv", "--format", "yfcc100m"], "named by --metadata"),
        (["a.csv", "--text", "x"], "are for --format yfcc15m"),
        (["--format", "yfcc100m", "--image-root", "none"], "image root none is not a folder"),
        (["--format", "yfcc100m", "--workers", "-1"], "a number of processes"),
        (["--format", "yfcc100m", "--max-reject-ratio", "2"], "from 0 to 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(ten_thousand, tmp_path, flags, message):
    source, _ = ten_thousand
    lists = ["--metadata", str(source.metadata), "--image-ids", str(source.image_ids)]
    with pytest.raises(ConfigError, match=message):
        tyro.cli(commands.build, args=[*flags, *lists, "--out", str(tmp_path / "pool")])


def test_compressed_or_missing_metadata_is_refused_with_advice(ten_thousand, tmp_path):
    source, _ = ten_thousand
    packed = tmp_path / "dataset.bz2"
    packed.write_bytes(b"BZh91AY&SY")
    with pytest.raises(ConfigError, match="unpack it first"):
        YfccSource(format="yfcc100m", metadata=packed, image_ids=source.image_ids)
    with pytest.raises(ConfigError, match="no such file"):
        YfccSource(format="yfcc100m", metadata=tmp_path / "x", image_ids=source.image_ids)
    with pytest.raises(ConfigError, match="needs --metadata FILE and --image-ids"):
        commands.build((), tmp_path / "pool", format="yfcc100m")
