"""What a scan reads of a pool, and that it holds it whatever way it is read."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cit_curate.config import CurateConfig, MetadataConfig
from cit_curate.curation import lane_scan
from cit_curate.curation.curator import Curator, write_scan
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.pool import format as pool_format
from cit_curate.pool import parts as pool_parts
from cit_curate.pool import scan_plan
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.pool.window import Window
from cit_curate.records import PoolCursor
from cit_curate.run.ledger import Run
from scripts.bench.fixed_cost import RandomEncoder, made_pool

NUM_ROWS = 4_000
ROWS_PER_GROUP, GROUPS_PER_PART = 20, 4


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """2,000 images in 50 parts of 4 row groups, which a scan takes 3 parts at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_format, "ROW_GROUP_ROWS", ROWS_PER_GROUP)
        patch.setattr(pool_parts, "PART_ROWS", ROWS_PER_GROUP * GROUPS_PER_PART)
        return Pool.open(made_pool(tmp_path_factory.mktemp("window") / "pool-4000", NUM_ROWS))


@pytest.fixture
def groups_read(monkeypatch):
    """(file, row groups) of every read of a Parquet file, from here on."""
    read, opened = [], pq.ParquetFile.__init__

    def remember(self, source, *args, **options):
        self.source = str(source)
        opened(self, source, *args, **options)

    def counted(name):
        plain = getattr(pq.ParquetFile, name)

        def method(self, *args, **options):
            groups = args[0] if name == "read_row_groups" else range(self.num_row_groups)
            read.append((self.source, list(groups)))
            return plain(self, *args, **options)

        monkeypatch.setattr(pq.ParquetFile, name, method)

    monkeypatch.setattr(pq.ParquetFile, "__init__", remember)
    for name in ("read", "read_row_groups", "iter_batches", "scan_contents"):
        counted(name)
    return read


@pytest.mark.parametrize(
    "groups", [[0], [3, 4, 5], [190, 191, 0, 7, 8], [1, 0, 5, 4], range(0, 200, 3)]
)
def test_a_window_gives_the_rows_of_one_table(pool, groups):
    window, table = Window(pool, groups), pool.read_row_groups(groups)
    assert len(window) == len(table)
    bounds = np.append(pool_parts.image_starts(table["image_id"]), len(table))
    assert window.bounds.tolist() == bounds.tolist()
    rng = np.random.default_rng(0)
    some = rng.integers(len(table), size=100)
    for rows in (some, some[:1], some[:0], np.sort(some), rng.permutation(len(table))):
        taken = window.take(rows)
        assert taken.equals(table.take(pa.array(rows)))
        assert all(column.num_chunks <= 1 for column in taken.columns)


def test_an_outer_step_reads_one_window_of_a_big_pool_and_the_next_one_nothing(
    pool, tmp_path, monkeypatch, groups_read
):
    monkeypatch.setattr(scan_plan, "EXACT_POOL_ROWS", 0)
    monkeypatch.setattr(scan_plan, "WINDOW_PARTS", 3)
    monkeypatch.setattr(lane_scan, "SMALLEST_WINDOW", 16)
    (tmp_path / "names.txt").write_text("east\nwest\n")
    config = CurateConfig(threshold=1.0, min_ratio=0.25, batch_size=8, index="exact")
    metadata = MetadataConfig(metadata=str(tmp_path / "names.txt"))
    curator = Curator(PoolMixture.open(pool.path), metadata, config)
    assert not groups_read  # opening looks at the sizes of files, and into none

    encoder, cursors = RandomEncoder(), [PoolCursor()]
    scores = curator.lane_scores(encoder, curator.refresh(encoder))
    run = Run.create(tmp_path / "run", config={}, environment={})
    window = 3 * GROUPS_PER_PART
    for outer_step, expected in enumerate([window, 0, 0, window]):
        step = OuterStep(outer_step, 0, encoder.fingerprint)
        (lane,) = curator.run(step, cursors, scores, num_pairs=8)
        write_scan(run, lane.scan, lane.rows)
        cursors = [lane.scan.cursor]
        assert lane.scan.totals.scanned == 32
        from_pool = [groups for path, groups in groups_read if path.startswith(str(pool.path))]
        assert sum(map(len, from_pool)) == expected
        groups_read.clear()
