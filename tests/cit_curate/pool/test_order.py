"""The scan order, over a grid of seeds, lanes and batch sizes."""

import csv
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from cit_curate.errors import ConfigError
from cit_curate.pool import format as pool_format
from cit_curate.pool import order as pool_order
from cit_curate.pool import parts as pool_parts
from cit_curate.pool import scan_plan
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.pool.window import Window
from cit_curate.records import PAIR_COLUMNS, PoolCursor
from cit_curate.sources.columns import Columns

NUM_IMAGES = 120


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """120 images with 1 to 4 texts each, in row groups of at most 7 rows and parts of 28."""
    folder = tmp_path_factory.mktemp("order")
    with (folder / "a.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image_id", "key", "caption"))
        for image in range(NUM_IMAGES):
            for text in range(1 + image % 4):
                writer.writerow((f"{image:03d}", f"k{text}", f"{image} {text}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_format, "ROW_GROUP_ROWS", 7)
        patch.setattr(pool_format, "MIN_ROW_GROUPS", 1)
        patch.setattr(pool_parts, "PART_ROWS", 28)
        columns = Columns(text_key="key", caption="caption")
        return Pool.build([folder / "a.csv"], folder / "pool", columns=columns)


@pytest.fixture(params=["exact", "windows"])
def size(request, monkeypatch):
    """Both ways through the pool: as one window, or three parts at a time."""
    if request.param == "windows":
        monkeypatch.setattr(scan_plan, "EXACT_POOL_ROWS", 0)
        monkeypatch.setattr(scan_plan, "WINDOW_PARTS", 3)
        monkeypatch.setattr(pool_order, "ROWS_AT_ONCE", 11)
    return request.param


def scan_order(pool, **options):
    return MixedOrder(PoolMixture.of(pool), **options)


def scan(order, cursor, batch_size, limit):
    """(captions, positions, cursors) of the batches."""
    captions, positions, cursors = [], [], []
    for batch in order.batches(cursor, batch_size, limit):
        assert batch.rows.column_names == [*PAIR_COLUMNS, "pool"]
        assert len(batch) == batch.rows.num_rows <= batch_size
        captions += batch.rows["caption"].to_pylist()
        triples = zip(batch.pass_index, batch.position, batch.scan_position, strict=True)
        positions += [tuple(int(number) for number in triple) for triple in triples]
        cursors.append(batch.cursor)
    return captions, positions, cursors


@pytest.mark.parametrize("num_lanes", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("texts", ["one", "every"])
@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_lanes_together_scan_everything_once_per_pass(pool, size, num_lanes, texts, order):
    for seed in (0, 7):
        lanes = [
            scan_order(pool, seed=seed, lane=lane, num_lanes=num_lanes, order=order, texts=texts)
            for lane in range(num_lanes)
        ]
        for pass_index in range(2):
            seen = Counter()
            for lane_order in lanes:
                captions, positions, cursors = scan(
                    lane_order, PoolCursor(pass_index), 16, lane_order.length
                )
                assert len(captions) == lane_order.length
                start = pass_index * lane_order.length
                assert positions == [(pass_index, n, start + n) for n in range(lane_order.length)]
                assert cursors[-1] == PoolCursor(pass_index + 1, 0)
                seen.update(captions)
            if texts == "every":
                assert set(seen.values()) == {1}
                assert len(seen) == pool.num_pairs
            else:
                images = Counter(caption.split()[0] for caption in seen.elements())
                assert set(images.values()) == {1}
                assert len(images) == NUM_IMAGES


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize("texts", ["one", "every"])
@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_seeking_gives_what_reading_up_to_it_gives(pool, size, num_lanes, texts, order):
    for lane in range(num_lanes):
        options = {
            "seed": 3, "lane": lane, "num_lanes": num_lanes, "order": order, "texts": texts
        }  # fmt: skip
        whole = scan_order(pool, **options)
        total = 2 * whole.length + 9
        expected, positions, _ = scan(whole, PoolCursor(), 1000, total)
        # One by one, only over the end of the first pass.
        for batch_size, limit in ((1, whole.length + 9), (7, total), (64, total)):
            found = scan(whole, PoolCursor(), batch_size, limit)
            assert found[:2] == (expected[:limit], positions[:limit])
        for start in (0, 1, whole.length - 1, whole.length, whole.length + 5):
            cursor = PoolCursor(*divmod(start, whole.length))
            found = scan(scan_order(pool, **options), cursor, 13, total - start)
            assert found[:2] == (expected[start:], positions[start:])
        for cursor in scan(whole, PoolCursor(), 50, total)[2][:3]:
            done = cursor.pass_index * whole.length + cursor.position
            assert scan(whole, cursor, 50, total - done)[0] == expected[done:]


def test_a_limit_cuts_the_last_batch_and_no_limit_runs_over_the_pass(pool):
    order = scan_order(pool, seed=0)
    assert [len(batch) for batch in order.batches(PoolCursor(), 16, 40)] == [16, 16, 8]
    assert list(order.batches(PoolCursor(), 16, 0)) == []
    batches = order.batches(PoolCursor(), 100)
    first, second = next(batches), next(batches)
    assert first.cursor == PoolCursor(0, 100)
    assert second.cursor == PoolCursor(1, 80)
    assert second.pass_index.tolist() == [0] * 20 + [1] * 80
    assert second.position.tolist() == [*range(100, 120), *range(80)]
    assert second.scan_position.tolist() == list(range(100, 200))


def test_sequential_is_the_order_of_the_file(pool, size):
    order = scan_order(pool, seed=0, order="sequential", texts="every")
    captions = scan(order, PoolCursor(), 64, order.length)[0]
    table = pool.read_row_groups(range(len(pool.row_groups)))
    assert captions == table["caption"].to_pylist()


def test_another_pass_seed_or_lane_count_is_another_order(pool, size):
    def first(seed, pass_index):
        order = scan_order(pool, seed=seed, texts="every")
        return tuple(scan(order, PoolCursor(pass_index), 64, order.length)[0])

    orders = {first(seed, pass_index) for seed in range(3) for pass_index in range(3)}
    assert len(orders) == 9
    assert first(0, 0) == first(0, 0)


def test_the_shuffle_and_the_choice_of_texts_are_uniform(pool):
    order = scan_order(pool, seed=1)
    passes = 400
    captions = scan(order, PoolCursor(), 4096, passes * order.length)[0]
    places = np.array([int(caption.split()[0]) for caption in captions]).reshape(passes, -1)
    # Where image 0 lies in each pass: uniform on 0..119, mean 59.5, deviation 34.6 / sqrt(400).
    where = np.argmax(places == 0, axis=1)
    assert abs(where.mean() - 59.5) < 4 * 34.6 / 20
    # Image 3 has four texts: each chosen about 100 times of 400.
    chosen = Counter(caption for caption in captions if caption.startswith("3 "))
    assert len(chosen) == 4
    assert all(abs(count - 100) < 40 for count in chosen.values())


def test_a_lane_without_row_groups_and_wrong_arguments_are_refused(pool):
    with pytest.raises(ConfigError, match="row groups"):
        scan_order(pool, seed=0, num_lanes=1000)
    for wrong in ({"seed": -1}, {"seed": 0, "lane": 1}, {"seed": 0, "order": "random"}):
        with pytest.raises(ValueError):
            scan_order(pool, **wrong)
    order = scan_order(pool, seed=0)
    for cursor, batch_size in ((PoolCursor(0, 121), 1), (PoolCursor(-1), 1), (PoolCursor(), 0)):
        with pytest.raises(ValueError):
            next(order.batches(cursor, batch_size))


def test_a_window_holds_only_its_own_row_groups(pool, monkeypatch):
    monkeypatch.setattr(scan_plan, "EXACT_POOL_ROWS", 0)
    monkeypatch.setattr(scan_plan, "WINDOW_PARTS", 3)
    sizes = []

    def counted(pool, groups, tokens):
        sizes.append(len(groups))
        return Window(pool, groups, tokens)

    monkeypatch.setattr(pool_order, "Window", counted)
    order = scan_order(pool, seed=0, lane=1, num_lanes=2)
    table = pa.concat_tables([b.rows for b in order.batches(PoolCursor(), 5, order.length)])
    assert table.num_rows == order.length
    assert sum(sizes) == len(pool.row_groups) // 2
    assert max(sizes) <= 3 * 4
