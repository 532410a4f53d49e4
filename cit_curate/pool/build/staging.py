"""The staging database: what was read, on disk, until its order and its repeats are known."""

import shutil
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.pool.format import pair_schema
from cit_curate.sources.rows import RAW_FIELDS, RawPairs, Reject
from cit_curate.storage.sql import identifier, open_database

STAGING_ROWS = 65_536


class Staging:
    """The staging database: what was read, in reading order."""

    def __init__(self, folder: Path, extra_types: Mapping[str, pa.DataType]) -> None:
        folder.mkdir()
        self._folder = folder
        self._connection = open_database(folder / "staging.duckdb", spill=folder / "spill")
        self.schema = pair_schema(extra_types)
        extra_fields = (pa.field(name, kind) for name, kind in extra_types.items())
        self._raw_schema = pa.schema([*RAW_FIELDS, *extra_fields])
        self._waiting: list[pa.Table] = []
        self._rejects: list[tuple[str, int, str, str]] = []
        self._last_image: str | None = None
        self._tables: set[str] = set()
        self.num_pairs = 0
        self.num_runs = 0
        self.reasons: Counter[str] = Counter()

    def add(self, source: str, pairs: RawPairs) -> None:
        """Take over pairs and rejects."""
        for reject in pairs.rejects:
            self.reasons[reject.reason] += 1
            self._rejects.append(_reject_row(source, reject))
        if pairs.pairs.num_rows:
            self._waiting.append(pairs.pairs.cast(self._raw_schema))
        if len(self._rejects) + sum(table.num_rows for table in self._waiting) >= STAGING_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            table = pa.concat_tables(self._waiting).combine_chunks()
            numbers = np.arange(self.num_pairs, self.num_pairs + table.num_rows)
            table = table.append_column("seq", pa.array(numbers, pa.int64()))
            self._insert("raw", table)
            self._count_runs(table["image_id"])
            self.num_pairs += table.num_rows
            self._waiting = []
        if self._rejects:
            columns = list(zip(*self._rejects, strict=True))
            names = ["source", "row", "reason", "detail"]
            table = pa.table([pa.array(column) for column in columns], names=names)
            self._insert("rejects", table)
            self._rejects = []

    def ordered(self) -> Generator[pa.Table]:
        """The pairs to keep: the first of each key, an image's together, in reading order.

        Close the generator before the staging database.
        """
        sql = self._connection
        repeats = self._keep_repeats()
        images = self._count("SELECT count(DISTINCT image_id) FROM raw")
        names = ", ".join(f"raw.{identifier(name)}" for name in self.schema.names)
        query = f"SELECT raw.seq AS seq, {names} FROM raw"  # noqa: S608
        if repeats:
            query += " ANTI JOIN repeats USING (seq)"
        grouped = images == self.num_runs
        if not grouped:
            sql.execute(
                "CREATE TABLE firsts AS "
                "SELECT image_id, min(seq) AS first FROM raw GROUP BY image_id"
            )
            query += " JOIN firsts USING (image_id) ORDER BY firsts.first, raw.seq"
        elif repeats:
            query += " ORDER BY raw.seq"
        last = -1
        with sql.sql(query).to_arrow_reader(STAGING_ROWS) as reader:
            for batch in reader:
                table = pa.Table.from_batches([batch])
                if grouped and table.num_rows:
                    # DuckDB keeps the order of insertion in a plain scan; hold it to that.
                    numbers = table["seq"].to_numpy()
                    assert numbers[0] > last
                    assert (np.diff(numbers) > 0).all()
                    last = int(numbers[-1])
                yield table.drop_columns(["seq"]).cast(self.schema)

    def rejects(self) -> Generator[pa.Table]:
        """Every reject, in reading order, those of repeated pair keys last."""
        for name in ("rejects", "repeats"):
            if name in self._tables:
                query = f'SELECT source, "row", reason, detail FROM {name} ORDER BY rowid'  # noqa: S608
                with self._connection.sql(query).to_arrow_reader(STAGING_ROWS) as reader:
                    for batch in reader:
                        yield pa.Table.from_batches([batch])

    def top_reasons(self) -> str:
        """`; most often: …` with the three most frequent reasons and an example of each."""
        if not self.reasons:
            return ""
        self.flush()
        shown = []
        for reason, count in self.reasons.most_common(3):
            ((source, row, detail),) = self._connection.execute(
                'SELECT source, "row", detail FROM rejects WHERE reason = ? ORDER BY rowid LIMIT 1',
                [reason],
            ).fetchall()
            shown.append(f"{reason} {count:,} (first: {source} row {row}, {detail})")
        return f"; most often: {'; '.join(shown)}"

    def close(self) -> None:
        """Remove the staging folder; with a result half read, DuckDB would wait for ever."""
        self._connection.close()
        shutil.rmtree(self._folder)

    def _insert(self, name: str, table: pa.Table) -> None:
        self._connection.register("batch", table)
        verb = f"INSERT INTO {name}" if name in self._tables else f"CREATE TABLE {name} AS"
        self._connection.execute(f"{verb} SELECT * FROM batch")  # noqa: S608
        self._connection.unregister("batch")
        self._tables.add(name)

    def _count_runs(self, image_ids: pa.ChunkedArray) -> None:
        changes = pc.not_equal(image_ids.slice(1), image_ids.slice(0, len(image_ids) - 1))
        self.num_runs += int(pc.sum(changes).as_py() or 0)
        self.num_runs += image_ids[0].as_py() != self._last_image
        self._last_image = image_ids[-1].as_py()

    def _keep_repeats(self) -> int:
        """Make the table `repeats`: rows whose pair key came before; gives how many."""
        sql = self._connection
        sql.execute(
            "CREATE TABLE keys AS SELECT image_id, text_key, min(seq) AS first FROM raw "
            "GROUP BY image_id, text_key HAVING count(*) > 1"
        )
        sql.execute(
            'CREATE TABLE repeats AS SELECT raw.seq, raw.source, raw."row", '
            "'duplicate_key' AS reason, 'pair key ' || raw.image_id || '_' || raw.text_key || "
            "' came first in ' || kept.source || ' row ' || kept.\"row\" AS detail "
            "FROM raw JOIN keys USING (image_id, text_key) "
            "JOIN raw AS kept ON kept.seq = keys.first WHERE raw.seq > keys.first ORDER BY raw.seq"
        )
        count = self._count("SELECT count(*) FROM repeats")
        if count:
            self.reasons["duplicate_key"] += count
            self._tables.add("repeats")
        return count

    def _count(self, query: str) -> int:
        ((count,),) = self._connection.execute(query).fetchall()
        return int(count)


def _reject_row(source: str, reject: Reject) -> tuple[str, int, str, str]:
    return source, reject.row, reject.reason, reject.detail
