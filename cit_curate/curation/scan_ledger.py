"""The records of a scan: its rows in the tables of the ledger, and its line of metrics."""

from collections import Counter
from dataclasses import asdict
from typing import Any, Literal

import pyarrow as pa

from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.scan_rows import count_values
from cit_curate.run.ledger_tables import SCHEMAS


def ledger_rows(
    scan: LaneScan, rows: pa.Table, table: Literal["selections", "near_misses"]
) -> pa.Table:
    """The rows of a scan with the columns of `selections` or `near_misses`."""
    schema = SCHEMAS[table]
    constants = {
        "outer_step": scan.step.number,
        "lane": scan.lane,
        "encoder": scan.step.encoder,
    }
    columns = [
        pa.repeat(constants[name], len(rows)) if name in constants else rows[name]
        for name in schema.names
    ]
    return pa.table(columns, names=schema.names).cast(schema)


def round_row(scan: LaneScan, *, selected: int, pools: pa.ChunkedArray | None = None) -> pa.Table:
    """The `rounds` row of a scan; `pools` has the pool of each selected pair."""
    totals, config = scan.totals, scan.config
    row = {
        "outer_step": scan.step.number,
        "lane": scan.lane,
        "update": scan.step.update,
        "scanned": totals.scanned,
        "kept": totals.kept,
        "selected": selected,
        "threshold": _threshold(scan),
        "min_ratio": config.min_ratio,
        "best_similarity": None if scan.everything_passes else totals.best_similarity,
        "pool_passes": totals.scanned / scan.order.length,
        "histogram": totals.histogram.tolist(),
        **_audited(scan),
        "pools": _pool_counts(scan, count_values(pools) if pools is not None else Counter()),
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["rounds"])


def metrics_record(scan: LaneScan) -> dict[str, Any]:
    """The line of a scan in metrics.jsonl: its counts, and its seconds by stage."""
    totals = scan.totals
    return {
        "kind": "outer_step",
        "update": scan.step.update,
        "outer_step": scan.step.number,
        "lane": scan.lane,
        "scanned": totals.scanned,
        "kept": totals.kept,
        "kept_ratio": totals.kept / max(totals.scanned, 1),
        "threshold": _threshold(scan),
        "kept_for": dict(sorted(totals.kept_of_reason.items())),
        "read_seconds": totals.read_seconds,
        "embed_seconds": totals.embed_seconds,
        "search_seconds": totals.search_seconds,
        **_audited(scan),
    }


def _threshold(scan: LaneScan) -> float:
    """The similarity above which captions were kept: the configured one, or what a share made."""
    return scan.totals.lowest_kept if scan.config.keep_ratio else scan.config.threshold


def _audited(scan: LaneScan) -> dict[str, Any]:
    """The captions that a cascade skipped and audited, and the recall of each reason."""
    audit = scan.totals.audit
    if audit is None:
        return {}
    recalls = [
        {"reason": reason, "kept": rule.kept, "missed": rule.missed} | asdict(audit.recall(reason))
        for reason, rule in sorted(audit.missed.items())
    ]
    return {"skipped": audit.skipped, "audited": audit.audited, "recalls": recalls}


def _pool_counts(scan: LaneScan, selected: Counter[str]) -> list[dict[str, Any]]:
    return [
        {
            "pool": name,
            "scanned": scan.totals.scanned_of_pool[name],
            "kept": scan.totals.kept_of_pool[name],
            "selected": selected[name],
        }
        for name in scan.order.names
    ]
