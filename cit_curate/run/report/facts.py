"""The facts of the page as values, queried in SQL over the run's views.

Rows are selected inside DuckDB, so that a ledger of many millions of rows costs the page no memory.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cit_curate.errors import DamagedError
from cit_curate.metadata.class_files.plain_names import joined_names
from cit_curate.metadata.class_list import ClassList
from cit_curate.metadata.lines import MetadataEntry
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import HISTOGRAM_BINS
from cit_curate.run.pools import mixture_config
from cit_curate.run.query import RunDatabase
from cit_curate.run.report.values import (
    ClassFacts,
    Evaluation,
    Example,
    ImportedFacts,
    PoolFacts,
    RunFacts,
    Step,
)
from cit_curate.storage.durable import read_json

MAX_CLASSES = 30
EXAMPLES = 6
MAX_CAPTION = 200
MAX_VALUE = 400

_STEPS = """
SELECT outer_step, max("update") AS "update", CAST(sum(scanned) AS BIGINT) AS scanned,
       CAST(sum(kept) AS BIGINT) AS kept, CAST(sum(selected) AS BIGINT) AS selected,
       max(threshold) AS threshold, max(best_similarity) AS best_similarity
FROM rounds GROUP BY outer_step ORDER BY outer_step
"""
_HISTOGRAM = """
SELECT bin, CAST(sum(histogram[bin]) AS BIGINT) AS count
FROM rounds, range(1, $1) AS bins(bin) GROUP BY bin ORDER BY bin
"""
_CASCADE = """
WITH audits AS (SELECT unnest(recalls) AS recall FROM rounds)
SELECT CAST(sum(scanned) AS BIGINT) AS scanned, CAST(sum(skipped) AS BIGINT) AS skipped,
       (SELECT min(recall.estimate) FROM audits) AS estimate,
       (SELECT min(recall.low) FROM audits) AS low
FROM rounds
"""
# In these queries {pool} stands for the pool of a pair, or `''` in a run of one pool (`pool_sql`).
_CLASSES = """
SELECT metadata_id, any_value(metadata_text) AS name, count(DISTINCT ({keys})) AS pairs
FROM selections GROUP BY metadata_id ORDER BY pairs DESC, metadata_id
"""
# The best and the worst kept pairs of each class; a pair is not shown as both.
_KEPT = """
WITH kept AS (
    SELECT metadata_id, {pool} AS pool, pair_key, max(similarity) AS similarity
    FROM selections WHERE metadata_id IN (SELECT unnest($1::INTEGER[]))
    GROUP BY ALL),
ranked AS (
    SELECT *,
        row_number() OVER (PARTITION BY metadata_id ORDER BY similarity DESC, pair_key, pool) best,
        row_number() OVER (PARTITION BY metadata_id ORDER BY similarity, pair_key, pool) worst
    FROM kept)
SELECT metadata_id, pool, pair_key, similarity, best, worst FROM ranked
WHERE best <= $2 OR worst <= $2 ORDER BY metadata_id, best
"""
# A pair that another outer step kept is no near miss.
_MISSED = """
WITH missed AS (
    SELECT metadata_id, {pool} AS pool, pair_key, max(similarity) AS similarity
    FROM near_misses ANTI JOIN selections USING ({keys})
    WHERE metadata_id IN (SELECT unnest($1::INTEGER[]))
    GROUP BY ALL)
SELECT metadata_id, pool, pair_key, similarity FROM missed
QUALIFY row_number() OVER (PARTITION BY metadata_id ORDER BY similarity DESC, pair_key, pool) <= $2
ORDER BY metadata_id, similarity DESC, pair_key, pool
"""
# The most used of the pairs without a similarity, as before `skip_until` or in imported counts.
_UNSCORED = """
SELECT {pool} AS pool, pair_key, count AS uses FROM counts
WHERE ({keys}) IN (SELECT ({keys}) FROM selections WHERE metadata_id IS NULL)
ORDER BY uses DESC, pair_key, pool LIMIT $1
"""
# The numbers of pairs that were used once, 2 to 3 times, 4 to 7 times, and so on.
_USES = """
SELECT CAST(floor(log2(count)) AS INTEGER) AS power, count(*) AS pairs
FROM counts GROUP BY power ORDER BY power
"""
_TEXT_KEYS = """
SELECT text_key, count(*) AS pairs FROM counts GROUP BY text_key ORDER BY pairs DESC, text_key
LIMIT $1
"""
_PAIRS = """
SELECT {pool} AS pool, pair_key, caption, image_uri, source FROM pairs
WHERE image_id IN (SELECT unnest($1::VARCHAR[])) AND pair_key IN (SELECT unnest($2::VARCHAR[]))
"""
# The counts of each pool, in the order of the mixture.
_POOLS = """
WITH each AS (SELECT unnest(pools) AS pool, generate_subscripts(pools, 1) AS place FROM rounds)
SELECT pool.pool AS name, CAST(sum(pool.scanned) AS BIGINT) AS scanned,
       CAST(sum(pool.kept) AS BIGINT) AS kept, CAST(sum(pool.selected) AS BIGINT) AS selected
FROM each GROUP BY ALL ORDER BY min(place)
"""


def collect_facts(run: Run, commits: Sequence[Commit], database: RunDatabase) -> RunFacts:
    """Collect the facts of a run.

    Args:
        run: The run.
        commits: Its committed outer steps.
        database: The views of these outer steps.
    """
    steps = tuple(_step(row) for row in database.rows(_STEPS))
    classes = database.rows(_with_pool(_CLASSES, database))
    last_update = commits[-1].update if commits else -1
    metrics = [record for record in run.metrics() if record.get("update", 0) <= last_update]
    reasons = database.rows(
        "SELECT reason, count(*) AS pairs FROM rejects GROUP BY reason ORDER BY pairs DESC, reason"
    )
    config = run.config
    return RunFacts(
        name=run.path.resolve().name,
        updates=max(last_update, 0),
        notices=(
            *_notices(run, config, len(commits), last_update),
            *_ruled_out(database),
        ),
        config=flattened(config),
        environment=flattened(read_json(run.path / "environment.json")),
        steps=steps,
        num_distinct=database.rows("SELECT count(*) AS pairs FROM counts")[0]["pairs"],
        histogram=_histogram(database),
        num_classes=len(classes),
        classes=_with_examples(database, classes[:MAX_CLASSES]),
        evaluations=tuple(
            Evaluation(
                record["update"], _number(record, "accuracy"), _number(record, "mean_per_class")
            )
            for record in metrics
            if record.get("kind") == "eval"
        ),
        losses=tuple(
            (float(record["update"]), _number(record, "loss"))
            for record in metrics
            if record.get("kind") == "train"
        ),
        rejects=tuple((row["reason"], row["pairs"]) for row in reasons),
        pools=_pools(database, config),
        imported=_imported(database, config),
        class_list=_class_list(run, config),
    )


def flattened(value: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Nested settings as rows of (dotted name, text), in their order."""
    rows: list[tuple[str, str]] = []
    for name, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            rows.extend(flattened(entry, f"{prefix}{name}."))
        else:
            text = entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
            rows.append((f"{prefix}{name}", shortened(text, MAX_VALUE)))
    return tuple(rows)


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters; a cut one ends in an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _notices(run: Run, config: Mapping[str, Any], num_steps: int, update: int) -> tuple[str, ...]:
    notices = []
    if "imported_counts" in config:
        notices.append(
            "This curated dataset was imported from a file of counts. The file says which pairs "
            "were used and how often; similarities, classes and thresholds are not known."
        )
    if not num_steps:
        notices.append("No outer step has been committed yet: there is nothing to show.")
    begun = [
        folder
        for table in ("selections", "rounds", "shards")
        for folder in (run.path / table).glob("step=*")
        if int(folder.name.removeprefix("step=")) >= num_steps
    ]
    if begun:
        notices.append(
            "Another outer step has been begun and is not committed: the run is still going, or "
            "was stopped. This page shows the committed part."
        )
    target = config.get("max_updates")
    if num_steps and update and isinstance(target, int) and update < target:
        notices.append(f"The run is at update {update:,} of {target:,}: it is not finished.")
    return tuple(notices)


def _class_list(run: Run, config: Mapping[str, Any]) -> tuple[str, ...]:
    path = run.path / "metadata.json"
    name = config.get("metadata")
    if not name or not path.is_file():
        return ()
    try:
        entries = tuple(MetadataEntry(str(entry["name"])) for entry in read_json(path))
    except (DamagedError, KeyError, TypeError):  # `cit verify` reports it; the page needs it least
        return ()
    classes = ClassList(name=str(name), entries=entries)
    return (*classes.lines, *joined_names(classes.name, entries)) if entries else ()


def _ruled_out(database: RunDatabase) -> tuple[str, ...]:
    """The notice of a cascade: the captions that it skipped, and the result of its audits."""
    (row,) = database.rows(_CASCADE)
    if row["skipped"] is None:
        return ()
    audits = ""
    if row["estimate"] is not None:
        audits = (
            f"; by its audits, the outer step that missed most kept {row['estimate']:.1%} of what "
            f"exact curation keeps, and at least {row['low']:.1%} with 97.5 % confidence"
        )
    return (
        f"Of {row['scanned']:,} captions, a cascade ruled out {row['skipped']:,} that were not "
        f"scored{audits}. They are missing from the similarities below.",
    )


def _step(row: Mapping[str, Any]) -> Step:
    unknown = {name: math.nan for name in ("threshold", "best_similarity") if row[name] is None}
    return Step(**{**row, **unknown})


def _imported(database: RunDatabase, config: Mapping[str, Any]) -> ImportedFacts | None:
    if "imported_counts" not in config:
        return None
    uses = [(2 ** row["power"], row["pairs"]) for row in database.rows(_USES)]
    (total,) = database.rows("SELECT CAST(coalesce(sum(count), 0) AS VARCHAR) AS uses FROM counts")
    return ImportedFacts(
        file=str(config["imported_counts"]),
        num_uses=int(total["uses"]),
        uses=tuple(
            ("once" if low == 1 else f"{low:,} to {2 * low - 1:,} times", pairs)
            for low, pairs in uses
        ),
        text_keys=tuple(
            (shortened(row["text_key"], MAX_CAPTION), row["pairs"])
            for row in database.rows(_TEXT_KEYS, [MAX_CLASSES])
        ),
    )


def _with_pool(sql: str, database: RunDatabase) -> str:
    pool = database.pool_sql
    return sql.format(pool=pool, keys="pool, pair_key" if pool == "pool" else "pair_key")


def _pools(database: RunDatabase, config: Mapping[str, Any]) -> tuple[PoolFacts, ...]:
    weights = {pool["name"]: float(pool["weight"]) for pool in mixture_config(config)}
    if not weights:
        return ()
    return tuple(
        PoolFacts(weight=weights.get(row["name"], math.nan), **row) for row in database.rows(_POOLS)
    )


def _histogram(database: RunDatabase) -> tuple[int, ...]:
    counts = [0] * HISTOGRAM_BINS
    for row in database.rows(_HISTOGRAM, [HISTOGRAM_BINS + 1]):
        counts[row["bin"] - 1] = row["count"] or 0
    return tuple(counts)


def _with_examples(
    database: RunDatabase, classes: Sequence[Mapping[str, Any]]
) -> tuple[ClassFacts, ...]:
    ids = [row["metadata_id"] for row in classes if row["metadata_id"] is not None]
    kept = database.rows(_with_pool(_KEPT, database), [ids, EXAMPLES])
    missed = database.rows(_with_pool(_MISSED, database), [ids, EXAMPLES])
    unscored = []
    if len(ids) < len(classes):
        unscored = database.rows(_with_pool(_UNSCORED, database), [2 * EXAMPLES])
    pairs = _pairs_of(database, [row["pair_key"] for row in (*kept, *missed, *unscored)])
    most_used = tuple(_example(row, pairs) for row in unscored)

    def examples(rows: Sequence[Mapping[str, Any]], metadata_id: int | None) -> tuple[Example, ...]:
        return tuple(_example(row, pairs) for row in rows if row["metadata_id"] == metadata_id)

    best = [row for row in kept if row["best"] <= EXAMPLES]
    worst = [row for row in kept if row["best"] > EXAMPLES]
    return tuple(
        ClassFacts(
            metadata_id=row["metadata_id"],
            name=shortened(row["name"] or "(no entry)", MAX_CAPTION),
            num_pairs=row["pairs"],
            most_used=most_used if row["metadata_id"] is None else (),
            most_similar=examples(best, row["metadata_id"]),
            borderline=examples(worst, row["metadata_id"])[::-1],
            near_misses=examples(missed, row["metadata_id"]),
        )
        for row in classes
    )


def _pairs_of(database: RunDatabase, keys: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
    if "pairs" not in database.views:
        return {}
    # The image id is a column of the files, so most row groups are skipped by it.
    image_ids = [key.rpartition("_")[0] for key in keys]
    rows = database.rows(_with_pool(_PAIRS, database), [image_ids, list(keys)])
    return {(row["pool"], row["pair_key"]): row for row in rows}


def _example(row: Mapping[str, Any], pairs: Mapping[tuple[str, str], Mapping[str, Any]]) -> Example:
    pair = pairs.get((row["pool"], row["pair_key"]), {})
    return Example(
        pair_key=row["pair_key"],
        similarity=_number(row, "similarity"),
        uses=row.get("uses"),
        caption=shortened(pair.get("caption", ""), MAX_CAPTION),
        image_uri=pair.get("image_uri", ""),
        source=pair.get("source", ""),
        pool=row["pool"],
    )


def _number(record: Mapping[str, Any], name: str) -> float:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else math.nan
