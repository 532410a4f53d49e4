"""The scan of a mixture: each pool's own order, in its share, from wherever one starts."""

import csv
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.errors import ConfigError
from cit_curate.pool import format as pool_format
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture, parse_pool
from cit_curate.pool.order import ScanOrder
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.sources.columns import Columns

SIZES = {"large": 50, "small": 9}


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """A pool of 50 images and one of 9, in row groups of at most 3 rows."""
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_format, "ROW_GROUP_ROWS", 3)
        patch.setattr(pool_format, "MIN_ROW_GROUPS", 1)
        for name, size in SIZES.items():
            with (folder / f"{name}.csv").open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(("image_id", "title"))
                writer.writerows((f"{image:03d}", f"{name} {image}") for image in range(size))
            Pool.build([folder / f"{name}.csv"], folder / name, columns=Columns(text=("title",)))
    return folder


@pytest.fixture(scope="module")
def mixture(pools):
    return PoolMixture.open([f"{pools}/large=0.7", f"{pools}/small=0.3"])


def captions(order, start, count, batch_size=7):
    cursor = PoolCursor(*divmod(start, order.length))
    batches = list(order.batches(cursor, batch_size, count))
    for batch in batches:
        names = [caption.split()[0] for caption in batch.rows["caption"].to_pylist()]
        if "pool" in batch.rows.column_names:
            assert batch.rows["pool"].to_pylist() == names
    return [caption for batch in batches for caption in batch.rows["caption"].to_pylist()]


@pytest.mark.parametrize("num_lanes", [1, 2, 3])
@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_each_pools_captions_are_those_of_its_own_scan(mixture, num_lanes, order):
    for lane in range(num_lanes):
        place = {"seed": 5, "lane": lane, "num_lanes": num_lanes, "order": order}
        mixed = captions(MixedOrder(mixture, **place), 0, 200)
        for each in mixture:
            own = [caption for caption in mixed if caption.startswith(each.name)]
            rows = ScanOrder(each.pool, **place).rows(0, len(own))
            assert own == rows["caption"].to_pylist()
            assert abs(len(own) - 200 * each.share) < 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 400), st.integers(1, 60), st.integers(1, 40))
def test_a_scan_can_start_anywhere_in_batches_of_any_size(mixture, start, count, batch_size):
    order = MixedOrder(mixture, seed=1)
    walked = captions(MixedOrder(mixture, seed=1), 0, start + count)
    assert captions(order, start, count, batch_size) == walked[start:]


def test_the_last_cursor_of_a_batch_is_where_the_next_begins(mixture):
    order = MixedOrder(mixture, seed=1)
    batches = list(order.batches(PoolCursor(), 16, 160))
    assert [batch.scan_position[0] for batch in batches] == list(range(0, 160, 16))
    for batch in batches:
        cursor = batch.cursor
        assert cursor.pass_index * order.length + cursor.position == batch.scan_position[-1] + 1


def test_a_pass_ends_when_every_pool_was_gone_through(mixture):
    order = MixedOrder(mixture, seed=1)
    whole = captions(order, 0, order.length)
    assert len(set(whole)) == sum(SIZES.values())
    assert len(set(captions(order, 0, order.length - 1))) < sum(SIZES.values())
    assert order.repeats(order.length) == 3, "21 or 22 captions of a pool of 9"


def test_a_pool_alone_is_scanned_as_ever(pools):
    pool = Pool.open(pools / "large")
    alone, mixed = ScanOrder(pool, seed=3), MixedOrder(PoolMixture.of(pool), seed=3)
    assert mixed.length == alone.length
    for batch in mixed.batches(PoolCursor(), 8, 120):
        first, last = batch.scan_position[[0, -1]].tolist()
        assert batch.rows.drop_columns("pool").equals(alone.rows(first, last + 1))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("pools/a", (None, "pools/a", None)),
        ("pools/a=0.7", (None, "pools/a", Fraction(7, 10))),
        ("mine:pools/a=2", ("mine", "pools/a", Fraction(2))),
        ("mine:pools/a", ("mine", "pools/a", None)),
        ("year=2024/a", (None, "year=2024/a", None)),
        ("s3://bucket/a=.5", (None, "s3://bucket/a", Fraction(1, 2))),
        ("mine:s3://bucket/a=1", ("mine", "s3://bucket/a", Fraction(1))),
    ],
)
def test_how_a_pool_is_named_and_weighed(text, parsed):
    assert parse_pool(text) == parsed


def test_a_folder_that_looks_like_a_weight_is_the_folder(tmp_path):
    (tmp_path / "year=2024").mkdir()
    assert parse_pool(f"{tmp_path}/year=2024") == (None, f"{tmp_path}/year=2024", None)


@pytest.mark.parametrize("weight", ["0", "-1", "x", "", "nan", "1e400", "0.0"])
def test_a_weight_that_is_no_number_above_zero_is_refused(pools, weight):
    with pytest.raises(ConfigError, match="number above 0"):
        PoolMixture.open([f"{pools}/large={weight}", f"{pools}/small=1"])


def test_pools_that_cannot_be_told_apart_are_refused(pools, tmp_path):
    with pytest.raises(ConfigError, match="has no weight"):
        PoolMixture.open([f"{pools}/large", f"{pools}/small=1"])
    with pytest.raises(ConfigError, match="the same pool"):
        PoolMixture.open([f"{pools}/large=1", f"again:{pools}/../{pools.name}/large=1"])
    (tmp_path / "link").symlink_to(pools / "large")
    with pytest.raises(ConfigError, match="the same pool"):
        PoolMixture.open([f"{pools}/large=1", f"other:{tmp_path}/link=1"])
    with pytest.raises(ConfigError, match=r"both called 'large'.*--pool other:"):
        PoolMixture.open([f"{pools}/large=1", f"large:{pools}/small=1"])
    with pytest.raises(ConfigError, match="one part in 10,000"):
        PoolMixture.open([f"{pools}/large=100000", f"{pools}/small=1"])
    with pytest.raises(ConfigError, match="10 lanes"):
        MixedOrder(PoolMixture.open([f"{pools}/large=1", f"{pools}/small=1"]), seed=0, num_lanes=10)


def test_weights_are_shares_whatever_they_sum_to(pools):
    mixture = PoolMixture.open([f"a:{pools}/large=7", f"{pools}/small=3"])
    assert [(each.name, each.share) for each in mixture] == [
        ("a", Fraction(7, 10)),
        ("small", Fraction(3, 10)),
    ]
