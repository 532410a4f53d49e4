"""Blocks of a source: the same whoever reads them, made once, and damaged when they are cut."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cit_curate.config import EngineConfig
from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.pool.build import reading
from cit_curate.pool.build.blocks import Block, open_block
from cit_curate.pool.build.place import open_staging
from cit_curate.pool.build.reading import PieceTask, piece_tasks, read_piece
from cit_curate.pool.build.source_entries import source_entry
from cit_curate.pool.pool import Pool
from cit_curate.sources import rows
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import ROW, SourceReader
from cit_curate.sources.source import Source, find_sources, open_source

COLUMNS = Columns(text=("title", "desc"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BATCHES", 2)
    monkeypatch.setattr(reading, "BYTES_PER_WORKER", 100)
    monkeypatch.setattr(rows, "ROWS_PER_BATCH", 10)


def write_csv(path: Path, num_rows: int, bad: range = range(0)) -> Path:
    lines = ["image_id,title,desc"]
    lines += [f"{n},title {n}," if n in bad else f'{n},"a, {n}",b {n % 3}' for n in range(num_rows)]
    lines = [line.rstrip(",") if n - 1 in bad else line for n, line in enumerate(lines)]
    path.write_text("\n".join(lines) + "\n")
    return path


def opened(folder: Path, path: Path, num_workers: int) -> tuple[Path, list[PieceTask]]:
    (source,) = find_sources([path])
    entry = source_entry(source)
    (place,) = open_staging(folder, [source], [entry], {"--clean": "none"})
    reader = open_source(source, COLUMNS)
    options = {"num_workers": num_workers}
    return place, piece_tasks(place, source, entry, reader, COLUMNS, "none", **options)


def read_all(tasks: list[PieceTask]) -> list[Block]:
    """The blocks of all pieces, in order."""
    return sorted((block for task in tasks for block in read_piece(task)), key=lambda b: b.path)


def rows_of(read: list[Block]) -> list[object]:
    names = (ROW, "image_id", "text_key", "caption")
    return [
        (
            block.num_records,
            block.reasons,
            [batch.to_pylist() for batch in block.rows(names)],
            block.rejects().to_pylist(),
        )
        for block in read
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(num_rows=st.integers(1, 90), num_workers=st.integers(1, 5), first_bad=st.integers(0, 80))
def test_blocks_do_not_depend_on_the_number_of_stripes(
    tmp_path_factory, num_rows, num_workers, first_bad
):
    folder = tmp_path_factory.mktemp("blocks")
    path = write_csv(folder / "a.csv", num_rows, range(first_bad, first_bad + 7))
    found = []
    for name, number in (("one", 1), ("many", num_workers)):
        place, tasks = opened(folder / name, path, number)
        found.append(rows_of(read_all(list(reversed(tasks)))))
        assert found[-1] == rows_of(list(map(open_block, sorted(place.glob("block*")))))
    assert found[0] == found[1]
    assert sum(records for records, *_ in found[0]) == num_rows


def test_a_small_source_and_a_tar_are_read_by_one_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BYTES_PER_WORKER", 500)
    source = Source("a", tmp_path, "csv", tmp_path)
    path = write_csv(tmp_path / "a.csv", 100)
    entry = source_entry(replace(source, path=path))
    assert 1_000 < entry.bytes < 2_000

    def count(num_workers: int, **changes: object) -> int:
        changed = replace(source, **changes)
        reader = SourceReader(columns=COLUMNS, extra_types={}, read=lambda: iter(()))
        options = {"num_workers": num_workers}
        return len(piece_tasks(tmp_path, changed, entry, reader, COLUMNS, "none", **options))

    assert [count(number) for number in (1, 2, 50)] == [1, 2, entry.bytes // 500]
    assert count(50, format="webdataset") == 1


def test_what_is_there_is_not_read_again(tmp_path):
    path = write_csv(tmp_path / "a.csv", 90)
    place, tasks = opened(tmp_path / "staging", path, 2)
    assert len(tasks) == 2
    whole = rows_of(read_all(tasks))
    lost = place / "block-000001.arrow"
    lost.unlink()
    with pytest.raises(DamagedError, match="block-000001"):
        open_block(lost)
    made = {file: file.stat().st_mtime_ns for file in place.glob("block*")}
    place, tasks = opened(tmp_path / "staging", path, 1)
    assert rows_of(read_piece(tasks[0])) == whole
    assert made.items() <= {file: file.stat().st_mtime_ns for file in place.glob("block*")}.items()


def test_a_cut_block_is_damaged(tmp_path):
    place, tasks = opened(tmp_path / "staging", write_csv(tmp_path / "a.csv", 20), 1)
    read_piece(tasks[0])
    block = place / "block-000000.arrow"
    block.write_bytes(block.read_bytes()[:-40])
    with pytest.raises(DamagedError, match=r"block-000000.*remove"):
        read_piece(tasks[0])


@pytest.mark.faults("P10")
def test_blocks_of_a_changed_source_or_setting_are_removed_and_it_is_said(tmp_path, caplog):
    path = write_csv(tmp_path / "a.csv", 20)
    other = write_csv(tmp_path / "b.csv", 20)
    found = find_sources([path, other])
    entries = [source_entry(source) for source in found]
    staging, plain = tmp_path / "staging", {"--clean": "none", "--text": ["title"]}
    first = open_staging(staging, found, entries, plain)
    for place in first:
        place.mkdir()
    assert open_staging(staging, found, entries, plain) == first
    assert caplog.messages == []
    os.utime(path, (1, 1))
    entries = [source_entry(source) for source in found]
    second = open_staging(staging, found, entries, plain)
    assert second[0] != first[0]
    assert second[1] == first[1]
    assert sorted(staging.iterdir()) == sorted([first[1], staging / "key.json"])
    third = open_staging(staging, found, entries, {"--clean": "yfcc", "--text": ["desc"]})
    assert third[1] != first[1]
    assert list(staging.iterdir()) == [staging / "key.json"]
    assert caplog.messages == [
        f"{staging}: reading starts over, since the source {path} changed",
        f"{staging}: reading starts over, since --clean, --text changed",
    ]


def test_blocks_take_the_place_of_what_a_yfcc_build_has_left(tmp_path, caplog):
    (tmp_path / "staging/0123").mkdir(parents=True)
    (tmp_path / "staging/key.json").write_text('{"--metadata": 1}')
    (source,) = find_sources([write_csv(tmp_path / "a.csv", 20)])
    open_staging(tmp_path / "staging", [source], [source_entry(source)], {"--clean": "none"})
    assert "since --metadata, staging version" in caplog.text
    assert not (tmp_path / "staging/0123").exists()


@pytest.mark.faults("P10")
def test_a_folder_is_known_by_the_files_below_it(tmp_path):
    below = tmp_path / "images/below"
    below.mkdir(parents=True)
    (below / "a.txt").write_text("a cat")
    (below / "gone.jpg").symlink_to("nowhere")
    (source,) = find_sources([tmp_path / "images"])

    def state() -> tuple[int, str, int, Path]:
        entry = source_entry(source)
        (place,) = open_staging(tmp_path / "staging", [source], [entry], {})
        return entry.bytes, entry.head_sha256, entry.mtime_ns, place

    states = [state()]
    assert states[0][0] == 5
    (below / ".staging-pool").mkdir()
    (below / ".staging-pool/block").write_text("of the build itself")
    (tmp_path / "images/.pool.lock").write_text("")
    assert state() == states[0]
    for change in (
        lambda: (below / "a.txt").write_text("a dog"),
        lambda: os.utime(below / "a.txt", (1, 1)),
        lambda: (below / "a.txt").rename(below / "b.txt"),
        lambda: (below / "gone.jpg").replace(below / "c.jpg") and (below / "nowhere").touch(),
        lambda: (below / "b.txt").unlink(),
    ):
        change()
        states.append(state())
    for place, column in ((1, "head_sha256"), (3, "folder of blocks")):
        assert len({each[place] for each in states}) == len(states), column


@pytest.mark.faults("P11")
def test_many_malformed_rows_in_a_row_end_the_reading(tmp_path):
    path = write_csv(tmp_path / "a.csv", 2_000, range(500, 700))
    with pytest.raises(BadInputError, match="malformed rows in a row up to row 601"):
        Pool.build([path], tmp_path / "pool", columns=COLUMNS)


def test_a_stripe_leaves_the_rest_alone_behind_a_block_of_malformed_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ROWS_PER_BATCH", 100)
    path = write_csv(tmp_path / "a.csv", 2_000, range(450, 700))
    place, tasks = opened(tmp_path / "staging", path, 2)
    read_all(tasks)
    # Blocks of 200 rows: those of rows 400 and 600 have 100 bad ones in a row.
    names = [f"block-{number:06d}.arrow" for number in range(4)]
    assert sorted(file.name for file in place.iterdir()) == names


def test_blocks_stay_where_a_later_source_is_damaged_and_are_gone_at_the_end(tmp_path):
    good = write_csv(tmp_path / "a.csv", 50)
    bad = tmp_path / "b.parquet"
    bad.write_bytes(b"PAR1")
    columns = Columns(text=("title",))
    with pytest.raises(DamagedError, match=r"b\.parquet"):
        Pool.build([good, bad], tmp_path / "pool", columns=columns)
    with pytest.raises(ConfigError, match="a number of processes"):
        EngineConfig(workers=-1)
    Pool.build([good], tmp_path / "pool", columns=columns)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_spawned_processes_build_the_same_pool(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "a.csv", 300)
    build = {"columns": COLUMNS, "name": "pool"}
    one = Pool.build([path], tmp_path / "one", **build)
    two = Pool.build([path], tmp_path / "two", **build, engine=EngineConfig(workers=2))
    assert one.manifest == two.manifest
    assert not list(tmp_path.glob(".*"))
