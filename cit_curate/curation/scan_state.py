"""The state of a scan, in memory and as JSON beside its tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cit_curate.curation.moments import Moments
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.audit import Audit
from cit_curate.records import PoolCursor


@dataclass(frozen=True)
class ScanState:
    """The state of a scan, from which it resumes as if never stopped.

    Attributes:
        cursor: The position of the scan.
        totals: The counts so far.
        num_requested: The pairs requested so far.
        near_misses: The best pairs that were not kept.
        surplus: Kept pairs that have not been taken.
        taken: The keys of the pairs taken, of which `unique` collection takes no second.
        set_aside: The captions without a usable vector, see `LaneScan.reject_rows`.
        reserve: The best captions for when the passes end; None = the scan needs none.
    """

    cursor: PoolCursor
    totals: ScanTotals
    num_requested: int
    near_misses: pa.Table
    surplus: pa.Table
    taken: Sequence[str]
    set_aside: Sequence[Mapping[str, Any]] = ()
    reserve: pa.Table | None = None


def state_to_json(state: ScanState) -> dict[str, Any]:
    """A state as JSON values, without its tables."""
    # Not asdict: it rebuilds a Counter from key-value pairs, and so counts the pairs.
    totals = {
        **vars(state.totals),
        "histogram": state.totals.histogram.tolist(),
        "audit": state.totals.audit and asdict(state.totals.audit),
        "moments": asdict(state.totals.moments),
    }
    return {
        "cursor": asdict(state.cursor),
        "totals": totals,
        "num_asked": state.num_requested,
        "taken": list(state.taken),
        "set_aside": list(state.set_aside),
    }


def state_from_json(
    value: Mapping[str, Any],
    *,
    near_misses: pa.Table,
    surplus: pa.Table,
    reserve: pa.Table | None = None,
) -> ScanState:
    """The state that `state_to_json` turned into `value`, with its tables.

    Raises:
        KeyError: A value is missing.
        TypeError: The totals have other names.
    """
    saved = value["totals"]
    totals = ScanTotals(
        **{
            **saved,
            "histogram": np.asarray(saved["histogram"], dtype=np.int64),
            "scanned_of_pool": Counter(saved["scanned_of_pool"]),
            "kept_of_pool": Counter(saved["kept_of_pool"]),
            "audit": saved["audit"] and Audit.from_json(saved["audit"]),
            # Absent in runs of an older version, which had no policies.
            "kept_of_entry": Counter(
                {int(k): v for k, v in saved.get("kept_of_entry", {}).items()}
            ),
            "kept_of_reason": Counter(saved.get("kept_of_reason", {})),
            "moments": Moments(**saved.get("moments", {})),
        }
    )
    return ScanState(
        PoolCursor(**value["cursor"]),
        totals,
        value["num_asked"],
        near_misses,
        surplus,
        value["taken"],
        value.get("set_aside", ()),  # absent in runs of an older version
        reserve,
    )
