"""The staging database: the keys of all pairs, out of core, and queries over them."""

import shutil
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import arrow_of, numpy_of, repeated, strings_of
from cit_curate.pool.build.blocks import Block
from cit_curate.records import Int64
from cit_curate.sources.rows import ROW, num_texts
from cit_curate.storage.sql import open_database

STAGING_ROWS = 65_536


class Staging:
    """The keys of all blocks, in reading order.

    A key is the pair key of a pair. Where all pairs of an image must come from one row, it is the
    image id of a row with an empty text key, or with none for a row without a text.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._connection = open_database(folder / "staging.duckdb", spill=folder / "spill")
        self._num_keys = 0
        self._connection.execute(
            "CREATE TABLE keys "
            '(source VARCHAR, "row" BIGINT, image_id VARCHAR, text_key VARCHAR, seq BIGINT)'
        )

    def add(self, block: Block) -> None:
        """Add the keys of a block."""
        tables = []
        for rows in block.rows((ROW, "image_id", "text_key")):
            counts = num_texts(rows)
            if block.row_is_image:
                no_text = pa.nulls(1, pa.string())[0]
                keys = pc.if_else(arrow_of(counts > 0), strings_of([""])[0], no_text)
            else:
                keys = rows["text_key"].flatten()
                rows = rows.take(arrow_of(np.repeat(np.arange(rows.num_rows), counts)))
            columns = {
                "source": repeated(block.source, len(keys)),
                "row": arrow_of(numpy_of(rows[ROW]) + block.first_row),
                "image_id": rows["image_id"],
                "text_key": keys,
                "seq": arrow_of(np.arange(self._num_keys, self._num_keys + len(keys))),
            }
            tables.append(pa.table(columns))
            self._num_keys += len(keys)
        if tables:
            self._insert("INSERT INTO keys", pa.concat_tables(tables))

    def find_repeats(self) -> int:
        """Find the keys that repeat an earlier one, and return their number."""
        sql = self._connection
        sql.execute(
            "CREATE TABLE several AS SELECT image_id, text_key, min(seq) AS first FROM keys "
            "WHERE text_key IS NOT NULL GROUP BY image_id, text_key HAVING count(*) > 1"
        )
        sql.execute(
            'CREATE TABLE repeats AS SELECT keys.seq, keys.source, keys."row", '
            "'duplicate_key' AS reason, CASE WHEN keys.text_key = '' "
            "THEN 'image ' || keys.image_id || ' has pairs of an earlier line' "
            "ELSE 'pair key ' || keys.image_id || '_' || keys.text_key || "
            "' came first in ' || kept.source || ' row ' || kept.\"row\" END AS detail "
            "FROM keys JOIN several USING (image_id, text_key) "
            "JOIN keys AS kept ON kept.seq = several.first WHERE keys.seq > several.first "
            "ORDER BY keys.seq"
        )
        return self._count("SELECT count(*) FROM repeats")

    def num_images(self, *, with_text: bool) -> int:
        """The number of distinct images: all, or those with a text."""
        where = "WHERE text_key IS NOT NULL" if with_text else ""
        return self._count(f"SELECT count(DISTINCT image_id) FROM keys {where}")  # noqa: S608

    def repeats(self, start: int, stop: int) -> Int64:
        """int64: the repeats among the keys `start` to `stop` - 1, counted from `start`."""
        query = f"SELECT seq FROM repeats WHERE seq >= {start} AND seq < {stop} ORDER BY seq"  # noqa: S608
        repeats = [numpy_of(table["seq"]) - start for table in self._tables(query)]
        return np.concatenate([np.zeros(0, np.int64), *repeats])

    def rejects(self) -> Generator[pa.Table]:
        """A reject for each repeated key, in reading order."""
        query = 'SELECT source, "row", reason, detail FROM repeats ORDER BY seq'
        yield from self._tables(query)

    def grouped(self, pairs: Iterable[pa.Table], schema: pa.Schema) -> Generator[pa.Table]:
        """The pairs to keep, those of an image together, images in order of their first pair.

        Close the generator before the staging database.

        Args:
            pairs: All the pairs, in the order of the keys.
            schema: The pool's schema.
        """
        # By number: DuckDB ignores the case of names, and users choose some of them.
        names = [f"c{number}" for number in range(len(schema))]
        done = 0
        for table in pairs:
            numbers = arrow_of(np.arange(done, done + table.num_rows))
            table = table.rename_columns(names).append_column("seq", numbers)
            self._insert("INSERT INTO raw" if done else "CREATE TABLE raw AS", table)
            done += table.num_rows
        self._connection.execute(
            "CREATE TABLE firsts AS SELECT image_id, min(seq) AS first FROM keys GROUP BY image_id"
        )
        id_name = names[schema.get_field_index("image_id")]
        query = (
            f"SELECT {', '.join(names)} FROM raw ANTI JOIN repeats USING (seq) "  # noqa: S608
            f"JOIN firsts ON raw.{id_name} = firsts.image_id ORDER BY firsts.first, raw.seq"
        )
        for table in self._tables(query):
            yield table.rename_columns(schema.names).cast(schema)

    def close(self) -> None:
        """Remove the staging folder; with a result half read, DuckDB would wait forever."""
        self._connection.close()
        shutil.rmtree(self._folder)

    def _tables(self, query: str) -> Generator[pa.Table]:
        with self._connection.sql(query).to_arrow_reader(STAGING_ROWS) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def _insert(self, verb: str, table: pa.Table) -> None:
        self._connection.register("batch", table)
        self._connection.execute(f"{verb} SELECT * FROM batch")  # noqa: S608
        self._connection.unregister("batch")

    def _count(self, query: str) -> int:
        ((count,),) = self._connection.execute(query).fetchall()
        return int(count)
