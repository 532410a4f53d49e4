"""Near misses that are sorted now and then are those of sorting every row at once."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.curation import near_misses
from cit_curate.curation.near_misses import NearMisses
from cit_curate.curation.selection import best_per_entry

# Few similarities and entries, so that ties and full entries are common.
ROW = st.tuples(st.sampled_from([-1.0, 0.1, 0.2, 0.3]), st.integers(0, 3))


def table(rows: list[tuple[float, int]], first: int = 0) -> pa.Table:
    similarity, entry = ([row[0] for row in rows], [row[1] for row in rows])
    return pa.table(
        {
            "scan_position": pa.array(range(first, first + len(rows)), pa.int64()),
            "similarity": pa.array(similarity, pa.float32()),
            "metadata_id": pa.array(entry, pa.int32()),
        }
    )


@given(st.lists(st.lists(ROW, max_size=8), max_size=12), st.integers(1, 20), st.booleans())
def test_rows_are_the_best_of_all_batches(batches, sorted_at_once, goes_on):
    found = NearMisses(table([]), best=2)
    every, first = [table([])], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_misses, "SORTED_AT_ONCE", sorted_at_once)
        for rows in batches:
            every.append(table(rows, first))
            first += len(rows)
            found.add(every[-1])
            if goes_on:  # as a scan that is taken up again does
                found = NearMisses(found.rows, best=2)
    rows = pa.concat_tables(every)
    columns = [rows[name].to_numpy() for name in ("similarity", "metadata_id", "scan_position")]
    assert found.rows.equals(rows.take(best_per_entry(*columns, best=2)))
