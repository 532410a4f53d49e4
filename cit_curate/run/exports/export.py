"""The curated dataset in the formats of other tools: JSON counts, Parquet, CSV, WebDataset.

Every export can be repeated byte for byte: pairs are in the order of their keys, and no clock time
is written. A file or folder under its final name is whole.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cit_curate.config import COUNT_SUFFIXES, CsvGuard, ImageFormat
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.images.addresses import fetch_selected_advice
from cit_curate.images.decoders import decoders
from cit_curate.images.pictures import any_format
from cit_curate.images.read import ImageRejected, image_suffix
from cit_curate.pool.mixture import PoolMixture
from cit_curate.run.counts import COUNTS_BY_KEY, refuse_same_keys
from cit_curate.run.exports.counts_csv import write_csv
from cit_curate.run.exports.dataset_card import CARD_NAME, dataset_card
from cit_curate.run.ledger import Run
from cit_curate.run.paths import MANIFESTS
from cit_curate.run.query import EXPORT_BATCH_ROWS, ImageSource, PairSource, RunDatabase
from cit_curate.run.shards import Sample, ShardWriter
from cit_curate.storage.durable import (
    atomic_file,
    atomic_folder,
    sums_path,
    sweep_temporary,
    write_sums,
)

# The characters that `json.dumps` escapes.
_ESCAPED_IN_JSON = '["\\\\\\x00-\\x1f]'

# {key}, {order} and {p} stand for a pair's key, and in a run of several pools also its pool.
_COUNTS_PARTS = "SELECT {key}, image_id, text_key, count FROM counts c ORDER BY {order}"
_COUNTS_PAIRS = """
SELECT {key}, c.image_id, c.text_key, c.count, p.caption, p.image_uri
FROM counts c LEFT JOIN pairs p ON p.image_id = c.image_id AND p.text_key = c.text_key{p}
ORDER BY {order}
"""
# Of a pair that was selected in several outer steps, the best similarity counts.
_SAMPLES = """
WITH best AS (
    SELECT {key}, similarity, metadata_text, reason FROM selections c
    QUALIFY 1 = row_number() OVER (
        PARTITION BY {key}
        ORDER BY similarity DESC NULLS LAST, outer_step, lane, scan_position)
)
SELECT {key}, c.image_id, c.text_key, c.count, b.similarity, b.metadata_text, b.reason,
       p.caption, p.image_uri, p.source
FROM counts c
LEFT JOIN best b ON b.pair_key = c.pair_key{b}
LEFT JOIN pairs p ON p.image_id = c.image_id AND p.text_key = c.text_key{p}
ORDER BY {order}
"""

_FILE_IMAGE = """
SELECT 1 FROM pairs WHERE image_uri <> '' AND NOT regexp_matches(image_uri, '^https?://') LIMIT 1
"""
_WEB_IMAGES = """
SELECT count(DISTINCT image_id) AS num_images FROM pairs
WHERE regexp_matches(image_uri, '^https?://')
"""

REJECT_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("pair_key", "image_uri", "source", "reason", "detail")]
)


@dataclass(frozen=True)
class ExportedShards:
    """The result of an export as WebDataset.

    Attributes:
        num_pairs: The samples over all shards.
        num_shards: The shards, `pairs-000000.tar` and on.
        rejects: The pairs in `rejects.parquet`, by reason.
        reencoded: The samples whose image has another format than in the pool: their number by the
            new format, and in that by the original's.
    """

    num_pairs: int
    num_shards: int
    rejects: Mapping[str, int]
    reencoded: Mapping[str, Mapping[str, int]]


def export_counts(
    run: Run,
    path: Path,
    *,
    pool: PairSource | PoolMixture | None = None,
    csv_guard: CsvGuard = "formulas",
) -> int:
    """Write how often each pair was used (or selected, in a run that trained nothing).

    `.json` is `{pair_key: count}`. `.parquet` and `.csv` have pair_key, image_id, text_key, count
    and, with a pool, caption and image_uri; in a run of several pools, pool comes first. The file's
    SHA-256 is written beside it, for `import_counts` to compare.

    Args:
        run: The run whose counts are exported.
        path: The file to write.
        pool: The pool or mixture that it was curated from.
        csv_guard: `formulas`: a text that a spreadsheet would run gets a `'` in front, and a last
            column `guarded` says where (`cit_curate.csv_cells`); `off`: cells as they are.

    Returns:
        The number of pairs.

    Raises:
        ConfigError: The suffix is another one; or it is `.json`, and two pools have pairs with the
            same key.
    """
    suffix = path.suffix.lower()
    if suffix not in COUNT_SUFFIXES:
        raise ConfigError(f"{path} must end in {', '.join(COUNT_SUFFIXES)}")
    sql = _COUNTS_PARTS if pool is None else _COUNTS_PAIRS
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporary(path.parent, below=False, name=path.name)
    with run.database(pool) as database, atomic_file(path) as temporary:
        sql = COUNTS_BY_KEY if suffix == ".json" else _with_keys(sql, run)
        batches = partial(database.batches, sql, EXPORT_BATCH_ROWS)
        if suffix == ".json":
            num_pairs = _write_json(batches(), temporary)
        elif suffix == ".parquet":
            num_pairs = _write_parquet(batches(), temporary)
        else:
            num_pairs = write_csv(batches, temporary, csv_guard)
        # So that the old hash never lies beside the new file.
        sums_path(path).unlink(missing_ok=True)
    write_sums(path)
    return num_pairs


def export_webdataset(
    run: Run,
    pool: ImageSource | PoolMixture,
    folder: Path,
    *,
    pairs_per_shard: int = 1000,
    image_side: int | None = None,
    image_format: ImageFormat = "auto",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportedShards:
    """Write each distinct pair of the run once, with its image, as WebDataset tars.

    A sample is the image in a format that open_clip reads (`export_image`), the pool's caption, and
    `.json` with pair_key, image_id, text_key, count, similarity (the best one), metadata_text,
    reason and original_format (of the image in the pool); in a run of several pools, also pool. A
    pair whose image cannot be opened goes into `rejects.parquet`. That and the shards' manifests
    lie in `MANIFESTS`, and `README.md` is a dataset card, so `datasets.load_dataset` reads the
    folder as it is.

    Args:
        run: The run whose counts are exported.
        pool: The pool or mixture that it was curated from.
        folder: The folder of the shards, absent or empty; it appears whole at the end.
        pairs_per_shard: The samples in each shard but the last.
        image_side: The longest shorter side of an image, see `shard_image`; 0 = any. None = as the
            run was trained (`shard_image_side`).
        image_format: The format of all images; `auto` = each keeps its own if it can.
        on_progress: Called with the pairs done and their total.

    Raises:
        ConfigError: The folder is not empty, or the pool has no images.
        BadInputError: No image could be opened.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty; export to a folder that is absent or empty")
    sweep_temporary(folder.parent, below=False, name=folder.name)
    rejects: Counter[str] = Counter()
    formats: Counter[tuple[str, str]] = Counter()
    side = int(run.config.get("shard_image_side", 0)) if image_side is None else image_side
    with run.database(pool) as database:
        _check_images(database, pool, folder)
        total = database.rows("SELECT count(*) AS total FROM counts")[0]["total"]
        with atomic_folder(folder) as temporary:
            manifests = temporary / MANIFESTS
            shards = ShardWriter(
                temporary, "pairs", pairs_per_shard=pairs_per_shard, manifests=manifests
            )
            schema = _reject_schema(run)
            with pq.ParquetWriter(manifests / "rejects.parquet", schema) as writer:
                done = 0
                for batch in database.batches(_with_keys(_SAMPLES, run)):
                    set_aside = []
                    for row in batch.to_pylist():
                        try:
                            sample = _sample(row, pool, side, image_format)
                            formats[sample.suffix, sample.info["original_format"]] += 1
                            shards.add(sample)
                        except ImageRejected as error:
                            set_aside.append(_reject_row(row, error))
                        done += 1
                        on_progress(done, total)
                    rejects.update(row["reason"] for row in set_aside)
                    writer.write_table(pa.Table.from_pylist(set_aside, schema=schema))
            entries = shards.close()
            num_pairs = sum(entry.rows for entry in entries)
            card = dataset_card(
                [entry.path for entry in entries],
                num_pairs,
                suffixes=sorted({suffix for suffix, _ in formats}),
                has_several_pools=run.has_several_pools,
            )
            (temporary / CARD_NAME).write_text(card, encoding="utf-8")
            if total and not num_pairs:
                raise BadInputError(
                    f"none of the {total:,} images could be opened ({_most_common(rejects)}); "
                    f"check that the sources of {_paths(pool)} are still where pool.json says"
                )
    return ExportedShards(num_pairs, len(entries), dict(rejects), _reencoded(formats))


def _with_keys(sql: str, run: Run) -> str:
    """The SQL by pair key, or in a run of several pools by pool and pair key."""
    if not run.has_several_pools:
        return sql.format(key="c.pair_key", order="c.pair_key", p="", b="")
    return sql.format(
        key="c.pool, c.pair_key",
        order="c.pair_key, c.pool",
        p=" AND p.pool = c.pool",
        b=" AND b.pool = c.pool",
    )


def _reject_schema(run: Run) -> pa.Schema:
    if not run.has_several_pools:
        return REJECT_SCHEMA
    return REJECT_SCHEMA.append(pa.field("pool", pa.string()))


def _paths(pool: PairSource | PoolMixture) -> str:
    if isinstance(pool, PoolMixture):
        return " and ".join(each.pool.location for each in pool)
    return pool.location


def _write_json(batches: Iterator[pa.RecordBatch], path: Path) -> int:
    num_pairs = 0
    last = None
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("{")
        for batch in batches:
            last = refuse_same_keys(batch["pair_key"], last)
            if len(batch):
                stream.write(",\n" if num_pairs else "\n")
                stream.write(json_members(batch["pair_key"], batch["count"]))
            num_pairs += len(batch)
        stream.write("\n}\n")
    return num_pairs


def json_members(keys: pa.Array, counts: pa.Array) -> str:
    """One `"key": count` a line, with commas between; keys as `json.dumps` writes them."""
    if pc.any(pc.match_substring_regex(keys, _ESCAPED_IN_JSON)).as_py():
        dumped = [json.dumps(key, ensure_ascii=False) for key in keys.to_pylist()]
        quoted = pa.array(dumped, pa.string())
    else:
        quoted = pc.binary_join_element_wise('"', keys, '"', "")
    lines = pc.binary_join_element_wise(quoted, counts.cast(pa.string()), ": ")
    # One Arrow list of all lines is joined, so that no pair becomes a Python object.
    whole = pa.ListArray.from_arrays(pa.array([0, len(lines)], pa.int32()), lines)
    return str(pc.binary_join(whole, ",\n")[0].as_py())


def _write_parquet(batches: Iterator[pa.RecordBatch], path: Path) -> int:
    num_pairs = 0
    writer: pq.ParquetWriter | None = None
    try:
        for batch in batches:
            writer = writer or pq.ParquetWriter(path, batch.schema, compression="zstd")
            writer.write_batch(batch)
            num_pairs += len(batch)
    finally:
        if writer is not None:
            writer.close()
    return num_pairs


def _check_images(database: RunDatabase, pool: PairSource | PoolMixture, folder: Path) -> None:
    if not database.rows(_FILE_IMAGE):
        if num_images := database.rows(_WEB_IMAGES)[0]["num_images"]:
            advice = fetch_selected_advice(_paths(pool), num_images)
            raise ConfigError(f"shards need images on disk or in a store; {advice}")
        raise ConfigError(
            f"{_paths(pool)} has no images that can be opened, so there is nothing to put in "
            f"shards; export the pairs themselves: {folder}.json or {folder}.parquet"
        )


def _sample(
    row: Mapping[str, Any],
    pools: ImageSource | PoolMixture,
    side: int,
    image_format: ImageFormat,
) -> Sample:
    pool = pools if not isinstance(pools, PoolMixture) else pools.single or pools[row["pool"]]
    if row["caption"] is None:
        raise ImageRejected("missing_image", f"{pool.location} has no pair {row['pair_key']}")
    # Checked, so that no trainer meets an image that it cannot open.
    image = pool.image_bytes(row["image_uri"], row["source"])
    data = decoders().export_image(image, side=side, format=image_format)
    names = ["pair_key", "image_id", "text_key", "count", "metadata_text", "reason"]
    names += ["pool"] if "pool" in row else []
    info = {name: row[name] for name in names} | {
        "similarity": _rounded(row["similarity"]),
        "original_format": any_format(image),
    }
    return Sample(data, image_suffix(data), row["caption"], info)


def _reencoded(formats: Mapping[tuple[str, str], int]) -> Mapping[str, Mapping[str, int]]:
    reencoded: dict[str, dict[str, int]] = {}
    for (suffix, original), count in sorted(formats.items()):
        if suffix != original:
            reencoded.setdefault(suffix, {})[original] = count
    return reencoded


def _rounded(similarity: float | None) -> float | None:
    """A float32 to seven decimals; JSON has no NaN."""
    if similarity is None or not math.isfinite(similarity):
        return None
    return round(similarity, 7)


def _reject_row(row: Mapping[str, Any], error: ImageRejected) -> dict[str, Any]:
    return {
        "pair_key": row["pair_key"],
        "image_uri": row["image_uri"] or "",
        "source": row["source"] or "",
        "reason": error.reason,
        "detail": error.detail,
        "pool": row.get("pool"),
    }


def _most_common(rejects: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in rejects.most_common(3))
