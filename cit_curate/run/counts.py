"""Counts by pair key alone, which are ambiguous where two pools have the same key."""

import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.errors import ConfigError

# The query of `Run.counts` and of the JSON export.
COUNTS_BY_KEY = "SELECT pair_key, count FROM counts ORDER BY pair_key"


def refuse_same_keys(keys: pa.Array, last: str | None) -> str | None:
    """Raise where two pools have pairs with the same key.

    Args:
        keys: The next pair keys, in ascending order.
        last: The key before them; None = there is none.

    Returns:
        The last key so far.

    Raises:
        ConfigError: A key comes twice.
    """
    if not len(keys):
        return last
    is_repeat = pc.equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    row = pc.index(is_repeat, True).as_py()
    first, end = keys[0].as_py(), keys[-1].as_py()
    if first == last or row >= 0:
        pair_key = first if first == last else keys[row].as_py()
        raise ConfigError(
            f"the pair key {pair_key} is in more than one pool of this run, so counts by pair key "
            "alone would merge different pairs; export .parquet or .csv, which have a column pool"
        )
    return str(end)
