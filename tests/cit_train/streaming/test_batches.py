"""How often training used each pair."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.run.ledger_tables import SCHEMAS
from cit_train.streaming.batches import count_uses

PAIRS = st.tuples(st.sampled_from(["one", "two"]), st.sampled_from(["1_tag", "2_tag", "3_title"]))


def counted_one_by_one(pairs, first_update, pairs_per_update):
    uses = {}
    for place, (pool, key) in enumerate(pairs):
        update = first_update + place // pairs_per_update
        row = uses.setdefault((pool, key), [3, 1, key, 0, update, update, pool])
        row[3] += 1
        row[5] = update
    return list(uses.values())


@given(st.lists(PAIRS, max_size=30), st.integers(1, 9), st.integers(1, 7))
def test_uses_are_counted_by_pool_and_key_in_the_order_of_first_use(pairs, first, per_update):
    columns = {"pool": [pool for pool, _ in pairs], "pair_key": [key for _, key in pairs]}
    rows = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    uses = count_uses(rows, outer_step=3, lane=1, first_update=first, pairs_per_update=per_update)
    assert uses.schema == SCHEMAS["used"]
    found = [list(row.values()) for row in uses.to_pylist()]
    assert found == counted_one_by_one(pairs, first, per_update)
