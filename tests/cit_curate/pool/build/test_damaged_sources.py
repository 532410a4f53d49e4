"""Sources that are damaged: named, or left out; and malformed rows in a row, with a limit given."""

import gzip
import io
import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from long_tables import LONG, bytes_of, pairs_in, rejects_in, write_long

from cit_curate.config import READ_AS_FOUND, EngineConfig
from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.pool.build import reading
from cit_curate.pool.build.summary import read_build_report
from cit_curate.pool.format import read_manifest
from cit_curate.pool.pool import Pool
from cit_curate.sources import rows
from cit_curate.sources.columns import Columns

SKIP = replace(READ_AS_FOUND, on_damaged="skip")
COLUMNS = Columns(image_id="id", text=("text",))


def tar(path, names, *, is_cut=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name in names:
            for suffix, content in (("jpg", b"no picture"), ("txt", f"a pan, {name}".encode())):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    if is_cut:
        path.write_bytes(path.read_bytes()[: 512 * (4 * len(names) - 1)])
    return path


@pytest.fixture
def tars(tmp_path):
    for number in range(3):
        names = [f"{number}{letter}" for letter in "abcd"]
        tar(tmp_path / f"tars/{number}.tar", names, is_cut=number == 1)
    return tmp_path / "tars"


@pytest.mark.faults("P3")
def test_a_damaged_tar_is_named_with_the_option_that_leaves_it_out(tars, tmp_path):
    with pytest.raises(DamagedError, match=r"1\.tar .*damaged.*give --on-damaged skip"):
        Pool.build([tars], tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


@pytest.mark.faults("P3")
def test_a_damaged_tar_is_left_out_whole_and_everywhere_said(tars, tmp_path):
    pool = Pool.build([tars], tmp_path / "pool", reading=SKIP)
    assert pool.num_pairs == pool.num_images == 8
    assert {key for key, _, _ in pairs_in(pool)} == {
        f"{number}{letter}" for number in (0, 2) for letter in "abcd"
    }
    assert rejects_in(pool) == [("tars/1.tar", 0, "damaged_archive")]
    manifest = read_manifest(pool.path)
    assert [(s.name, s.num_records, s.damaged) for s in manifest.sources] == [
        ("tars/0.tar", 4, False),
        ("tars/1.tar", 0, True),
        ("tars/2.tar", 4, False),
    ]
    stored = json.loads((pool.path / "pool.json").read_text())["sources"]
    assert ["damaged" in source for source in stored] == [False, True, False]
    report = read_build_report(pool.path)
    (warning,) = [each for each in report.warnings if "left out" in each]
    assert "1.tar" in warning
    assert report.counts["num_sources_damaged"] == 1
    assert not list(tmp_path.glob(".*"))


def damaged_file(folder, kind):
    """A source whose beginning can be read, and whose end is missing or changed."""
    table = [{"id": str(number), "text": f"a pan {number}"} for number in range(900)]
    if kind == "csv.gz":
        text = "id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in table)
        content = gzip.compress(text.encode(), mtime=0)[:-20]
    elif kind == "json":
        content = json.dumps(table).encode()[:-5]
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), folder / "whole", row_group_size=100)
        content = bytearray((folder / "whole").read_bytes())
        (folder / "whole").unlink()
        content[len(content) // 2 : len(content) // 2 + 200] = b"\xff" * 200
    else:
        whole = pa.Table.from_pylist(table)
        with pa.ipc.new_file(folder / "whole", whole.schema) as writer:
            writer.write_table(whole, max_chunksize=100)
        content = (folder / "whole").read_bytes()[:-9]
        (folder / "whole").unlink()
    (folder / f"b.{kind}").write_bytes(content)
    return folder / f"b.{kind}"


@pytest.mark.faults("P3")
@pytest.mark.parametrize("kind", ["csv.gz", "json", "parquet", "arrow"])
def test_rows_before_the_damage_are_not_half_in_the_pool(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(rows, "ROWS_PER_BATCH", 40)
    sources = [tmp_path / "a.csv", damaged_file(tmp_path, kind), tmp_path / "c.csv"]
    sources[0].write_text("id,text\na1,a lid\na2,a jug\n")
    sources[2].write_text("id,text\nc1,a mug\n")
    with pytest.raises(DamagedError, match=rf"b\.{kind}.*give --on-damaged skip"):
        Pool.build(sources, tmp_path / "pool", columns=COLUMNS)
    # The blocks of that build are used again, as after a kill.
    pool = Pool.build(sources, tmp_path / "pool", columns=COLUMNS, reading=SKIP)
    assert [image_id for image_id, _, _ in pairs_in(pool)] == ["a1", "a2", "c1"]
    assert rejects_in(pool) == [(f"b.{kind}", 0, "damaged_file")]
    for run, piece_bytes in enumerate((1, 10**9)):
        monkeypatch.setattr(reading, "BYTES_PER_WORKER", piece_bytes)
        again = tmp_path / f"again-{run}" / "pool"
        again.parent.mkdir()
        Pool.build(sources, again, columns=COLUMNS, reading=SKIP, engine=EngineConfig(workers=1))
        assert bytes_of(again) == bytes_of(pool.path)


@pytest.mark.slow
def test_workers_leave_out_the_same(tars, tmp_path):
    damaged_file(tars, "csv.gz").rename(tmp_path / "b.csv.gz")
    (tmp_path / "c.csv").write_text("id,text\nc1,a mug\n")
    for workers in (1, 3):
        sources, columns = [tmp_path / "b.csv.gz", tmp_path / "c.csv"], COLUMNS
        pool = Pool.build(
            sources,
            tmp_path / str(workers) / "pool",
            columns=columns,
            reading=SKIP,
            engine=EngineConfig(workers=workers),
        )
        assert rejects_in(pool) == [("b.csv.gz", 0, "damaged_file")]
    assert bytes_of(tmp_path / "1/pool") == bytes_of(tmp_path / "3/pool")


@pytest.mark.faults("P11")
def test_damaged_sources_alone_are_no_pool(tars, tmp_path):
    with pytest.raises(BadInputError, match=r"no pair came of them; most often: damaged_archive 1"):
        Pool.build([tars / "1.tar"], tmp_path / "pool", reading=SKIP)


def test_a_damaged_source_has_no_columns_to_agree_with(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"id": [1], "text": ["a lid"], "n": [7]}), tmp_path / "b.parquet")
    columns = Columns(image_id="id", text=("text",), extra=("n",))
    sources = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    pool = Pool.build(sources, tmp_path / "pool", columns=columns, reading=SKIP)
    assert pool.num_pairs == 1
    assert rejects_in(pool) == [("a.parquet", 0, "damaged_file")]


def test_what_is_wrong_otherwise_is_not_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,a lid\n")
    (tmp_path / "b.csv").write_text("id,caption\n2,a jug\n")
    with pytest.raises(ConfigError, match="no column 'text'"):
        Pool.build(
            [tmp_path / "a.csv", tmp_path / "b.csv"],
            tmp_path / "pool",
            columns=COLUMNS,
            reading=SKIP,
        )


def run_of(tmp_path, num_bad, *, num_good, start):
    good = [(str(number), "t", "a lid") for number in range(num_good)]
    return write_long(tmp_path / "run.csv", [*good[:start], *[("short",)] * num_bad, *good[start:]])


@pytest.mark.faults("P1")
@pytest.mark.parametrize("start", [0, 700, 1880])
def test_a_limit_that_is_given_and_holds_wins_over_a_run(tmp_path, start):
    source = run_of(tmp_path, 120, num_good=1880, start=start)
    with pytest.raises(BadInputError, match=r"100 malformed rows in a row.*--max-reject-ratio is"):
        Pool.build([source], tmp_path / "pool", columns=LONG)
    pool = Pool.build([source], tmp_path / "pool", columns=LONG, max_reject_ratio=0.1)
    assert pool.num_pairs == 1880
    assert pool.manifest.rejects == {"column_count": 120}
    with pytest.raises(BadInputError, match="120 of 2,000 rows are malformed"):
        Pool.build([source], tmp_path / "over", columns=LONG, max_reject_ratio=0.05)


@pytest.mark.faults("P1")
def test_a_run_of_a_thousand_ends_the_reading_where_the_limit_is_passed_so_far(tmp_path):
    source = run_of(tmp_path, 1200, num_good=3000, start=2000)
    pool = Pool.build([source], tmp_path / "pool", columns=LONG, max_reject_ratio=0.5)
    assert pool.manifest.rejects == {"column_count": 1200}
    with pytest.raises(BadInputError) as error:
        Pool.build([source], tmp_path / "none", columns=LONG, max_reject_ratio=0.3)
    words = "1,000 malformed rows in a row up to row 3001, and 1,000 of 3,000 so far, more than"
    assert words in str(error.value)
    Pool.build([source], tmp_path / "one", columns=LONG, max_reject_ratio=1)
