"""Writing shards again from the ledger and the pool, to the same bytes.

The ledger has the pairs that a lane selected and rejected, in scan order. The first of them, up to
the budget, are the original selection; the later ones replaced rejected pairs. So a
`ShardWriterThread` can repeat its work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cit_curate.config import CurateConfig
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.errors import DamagedError
from cit_curate.images.read import ImageRejected
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.paths import lane_prefix, shard_folder
from cit_curate.run.pools import run_pool
from cit_curate.run.query import RunDatabase
from cit_curate.run.shards import shard_entry
from cit_train.config import RunConfig, flat
from cit_train.streaming.image_opener import ImageOpener, image_threads
from cit_train.streaming.shard_stream import ShardWriterThread

_SELECTED = """
SELECT s.scan_position, s.pair_key, s.image_id, s.text_key, s.similarity, s.metadata_text,
       s.reason, {pool} AS pool, p.caption, p.image_uri, p.source
FROM selections s LEFT JOIN pairs p ON p.image_id = s.image_id AND p.text_key = s.text_key{same}
WHERE s.outer_step = ? AND s.lane = ? ORDER BY s.scan_position
"""
_REJECTED = """
SELECT scan_position, pair_key, image_uri, {pool} AS pool, reason, detail
FROM rejects WHERE outer_step = ? AND lane = ? ORDER BY scan_position
"""
_SCHEMA = pa.schema(
    [
        ("scan_position", pa.int64()),
        *((name, pa.string()) for name in ("pair_key", "image_id", "text_key")),
        ("similarity", pa.float32()),
        *((name, pa.string()) for name in ("metadata_text", "reason", "pool")),
        *((name, pa.string()) for name in ("caption", "image_uri", "source")),
    ]
)


@dataclass
class RecordedScan:
    """A scan whose replacements come from the ledger; a `PairScan`."""

    config: CurateConfig
    step: OuterStep
    lane: int
    later: pa.Table

    def take(self, num_pairs: int | None, /) -> pa.Table:
        """The next replacements."""
        taken = self.later.slice(0, num_pairs)
        self.later = self.later.slice(len(taken))
        return taken

    def reject_rows(self) -> list[dict[str, Any]]:
        """Empty: the ledger has them."""
        return []


@dataclass(frozen=True)
class _Lane:
    """The pairs that a lane selected or rejected in an outer step, in scan order.

    Attributes:
        pairs: All of them.
        rejects: The reasons for the rejected ones, by scan position.
    """

    pairs: pa.Table
    rejects: Mapping[int, ImageRejected]


def remake_shards(run: Run, pools: PoolMixture, commits: Sequence[Commit], outer_step: int) -> None:
    """Write the shards of a committed outer step that are missing or damaged.

    Args:
        run: The run; its ledger is whole.
        pools: The pools that it was made from.
        commits: Its commits.
        outer_step: The outer step of the shards.

    Raises:
        DamagedError: The pool has changed, or an image can no longer be opened.
    """
    settings = {**flat(RunConfig()), **run.config}
    per_update = settings["accumulate"] * settings["batch_size"]
    budget = settings["curate_every"] * per_update
    _check_pools(run, pools)
    with run.database(pools if run.has_several_pools else pools.single) as database:
        lanes = [_lane(database, run, pools, outer_step, lane) for lane in range(settings["lanes"])]
    first_update = commits[outer_step - 1].update if outer_step else 0
    fewest = min(min(len(lane.pairs), budget) for lane in lanes)
    left = settings["max_updates"] - first_update
    num_updates = min(fewest // per_update, settings["curate_every"], left)
    folder = shard_folder(run.path, outer_step)
    for number, lane in enumerate(lanes):
        before = _hashes(folder, number)
        step = OuterStep(outer_step, first_update, encoder="")
        rules = CurateConfig(seed=settings["seed"])
        scan = RecordedScan(rules, step, number, lane.pairs.slice(budget))
        with image_threads() as threads:
            images = ImageOpener(
                pools,
                threads,
                max_pixels=settings["max_pixels"],
                side=settings["shard_image_side"],
            )
            writer = ShardWriterThread(
                run,
                scan,
                lane.pairs.slice(0, budget),
                images,
                num_pairs=num_updates * per_update,
                pairs_per_shard=settings["pairs_per_shard"],
                known_rejects=lane.rejects,
            )
            writer.start()
            writer.finish()
        for name, sha256 in _hashes(folder, number).items():
            if before.get(name, sha256) != sha256:
                raise DamagedError(
                    f"{folder / name} was written again, but with other bytes than before: the "
                    "pool's images have changed"
                )


def pools_of(run: Run, paths: Sequence[str] = ()) -> PoolMixture | None:
    """The pools that a run was made from, under the names in its ledger.

    Args:
        run: The run.
        paths: Their folders now; left out, those in its config.json.

    Returns:
        None when they do not exist.

    Raises:
        ConfigError: The paths are not those of the run's pools.
    """
    own = run.path / "pool"
    opened = Pool.open(own) if own.is_dir() and not paths else run_pool(run, paths)
    return None if opened is None else PoolMixture.of(opened)


def _lane(database: RunDatabase, run: Run, pools: PoolMixture, outer_step: int, lane: int) -> _Lane:
    several = run.has_several_pools
    # A run of a single pool may have named it differently.
    pool = "s.pool" if several else "'" + pools.pools[0].name.replace("'", "''") + "'"
    same = " AND p.pool = s.pool" if several else ""
    values = [outer_step, lane]
    selected = database.rows(_SELECTED.format(pool=pool, same=same), values)
    rejected = database.rows(_REJECTED.format(pool=pool.removeprefix("s.")), values)
    missing = next((row["pair_key"] for row in selected if row["caption"] is None), None)
    if missing is not None:
        raise DamagedError(f"the pool has no pair {missing}, which {run.path} selected")
    rejects = {
        row["scan_position"]: ImageRejected(row["reason"], row["detail"]) for row in rejected
    }
    empty: dict[str, Any] = dict.fromkeys(_SCHEMA.names)
    rows = [*selected, *({**empty, **row, "reason": ""} for row in rejected)]
    known = [{name: row[name] for name in _SCHEMA.names} for row in rows]
    table = pa.Table.from_pylist(known, schema=_SCHEMA).sort_by("scan_position")
    return _Lane(table, rejects)


def _check_pools(run: Run, pools: PoolMixture) -> None:
    named = run.config.get("pools") or [{"fingerprint": run.config.get("pool_fingerprint")}]
    wanted = {pool["fingerprint"] for pool in named}
    for each in pools:
        origin = each.pool.manifest.subset
        if {each.pool.fingerprint, origin.pool_fingerprint if origin else ""}.isdisjoint(wanted):
            raise DamagedError(
                f"{each.pool.location} is not the pool that {run.path} was made from: it has "
                "another fingerprint"
            )


def _hashes(folder: Path, lane: int) -> dict[str, str]:
    """The recorded SHA-256 of each shard of a lane; one without a readable record is left out."""
    hashes = {}
    for path in folder.glob(f"{lane_prefix(lane)}-*.json"):
        try:
            entry = shard_entry(path)
        except DamagedError:
            continue
        hashes[entry.path] = entry.sha256
    return hashes
