"""Counts by pair key alone, which a run of several pools may not have."""

import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.errors import ConfigError

# `Run.counts` and the JSON export, over the view `counts`.
COUNTS_BY_KEY = "SELECT pair_key, count FROM counts ORDER BY pair_key"


def refuse_same_keys(keys: pa.Array, last: str | None) -> str | None:
    """Raise where two pools have pairs of the same key.

    Args:
        keys: The next pair keys, in their order.
        last: The key before them.

    Returns:
        The last one of them.

    Raises:
        ConfigError: A key comes twice.
    """
    if not len(keys):
        return last
    again = pc.equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    place = pc.index(again, True).as_py()
    first, end = keys[0].as_py(), keys[-1].as_py()
    if first == last or place >= 0:
        pair_key = first if first == last else keys[place].as_py()
        raise ConfigError(
            f"the pair key {pair_key} is in more than one pool of this run, so counts by pair key "
            "alone would merge different pairs; export .parquet or .csv, which have a column pool"
        )
    return str(end)
