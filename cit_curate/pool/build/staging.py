"""The staging database: the keys of all pairs, out of core, and queries over them."""

import shutil
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import arrow_of, numpy_of, repeated, strings_of
from cit_curate.pool.build.blocks import IS_NAMED, Block
from cit_curate.pool.build.changes import Changes
from cit_curate.pool.build.numbering import (
    Numbered,
    find_repeated_rows,
    number_captions,
    rename_images,
)
from cit_curate.sources.rows import ROW, num_texts
from cit_curate.storage.sql import open_database

STAGING_ROWS = 65_536


class Staging:
    """The keys of all blocks, in reading order.

    A key is the image id and the text key of a pair, as they were read. Where all pairs of an image
    must come from one row, it is the image id of a row with an empty text key, or with none for a
    row without a text.
    """

    def __init__(self, folder: Path, places: Mapping[str, str]) -> None:
        """Make an empty database.

        Args:
            folder: A new folder for it.
            places: The path of each source, by its name. Names of images of one path are the same.
        """
        folder.mkdir()
        self._folder = folder
        self._connection = open_database(folder / "staging.duckdb", spill=folder / "spill")
        self._num_keys = 0
        self._row_is_image = self._has_names = False
        firsts: dict[str, str] = {}
        for source, place in places.items():
            firsts.setdefault(place, source)
        numbers = {place: number for number, place in enumerate(firsts)}
        self._places = {source: numbers[place] for source, place in places.items()}
        self._prefixes = list(firsts.values())
        place_columns = {
            "place": arrow_of(np.arange(len(firsts), dtype=np.int32)),
            "prefix": strings_of(self._prefixes),
        }
        self._insert("CREATE TABLE places AS", pa.table(place_columns))
        self._connection.execute(
            'CREATE TABLE keys (source VARCHAR, "row" BIGINT, place INTEGER, image_id VARCHAR, '
            "text_key VARCHAR, caption_hash UBIGINT, is_named BOOLEAN, seq BIGINT)"
        )

    def prefix(self, block: Block) -> str:
        """What comes before the image ids of a block that other sources have too."""
        return self._prefixes[self._places[block.source]]

    def add(self, block: Block) -> None:
        """Add the keys of a block."""
        self._row_is_image |= block.row_is_image
        self._has_names |= block.has_names
        tables = []
        for rows in block.rows((ROW, "image_id", "text_key", "caption_hash", IS_NAMED)):
            counts = num_texts(rows)
            if block.row_is_image:
                no_text = pa.nulls(1, pa.string())[0]
                keys = pc.if_else(arrow_of(counts > 0), strings_of([""])[0], no_text)
                hashes = pa.nulls(len(keys), pa.uint64())
            else:
                keys, hashes = rows["text_key"].flatten(), rows["caption_hash"].flatten()
                rows = rows.take(arrow_of(np.repeat(np.arange(rows.num_rows), counts)))
            place = self._places[block.source]
            columns = {
                "source": repeated(block.source, len(keys)),
                "row": arrow_of(numpy_of(rows[ROW]) + block.first_row),
                "place": arrow_of(np.full(len(keys), place, np.int32)),
                "image_id": rows["image_id"],
                "text_key": keys,
                "caption_hash": hashes,
                "is_named": rows[IS_NAMED],
                "seq": arrow_of(np.arange(self._num_keys, self._num_keys + len(keys))),
            }
            tables.append(pa.table(columns))
            self._num_keys += len(keys)
        if tables:
            self._insert("INSERT INTO keys", pa.concat_tables(tables))

    def find_changes(self) -> Numbered:
        """Find the keys that repeat an earlier one, and what becomes of them."""
        if self._row_is_image:
            return find_repeated_rows(self._connection)
        renamed = None
        if self._has_names and len(self._prefixes) > 1:
            renamed = rename_images(self._connection)
        return number_captions(self._connection, renamed)

    def num_images(self, *, with_text: bool) -> int:
        """The number of distinct images: all, or those with a text."""
        where = "WHERE text_key IS NOT NULL" if with_text else ""
        query = f"SELECT count(DISTINCT image_id) FROM final_keys {where}"  # noqa: S608
        ((count,),) = self._connection.execute(query).fetchall()
        return int(count)

    def changes(self, start: int, stop: int) -> Changes:
        """What becomes of the keys `start` to `stop` - 1, counted from `start`."""
        query = (
            "SELECT seq, number, num_prefixes FROM changes "  # noqa: S608
            f"WHERE seq >= {start} AND seq < {stop} ORDER BY seq"
        )
        schema = pa.schema([(name, pa.int64()) for name in ("seq", "number", "num_prefixes")])
        empty = pa.Table.from_batches([], schema=schema)
        found = pa.concat_tables([empty, *self._tables(query)])
        seq, number, num_prefixes = map(numpy_of, found.columns)
        return Changes(seq - start, number, num_prefixes)

    def rejects(self) -> Generator[pa.Table]:
        """A reject for each key that is left out, in reading order."""
        query = 'SELECT source, "row", reason, detail FROM repeats ORDER BY seq'
        yield from self._tables(query)

    def grouped(self, pairs: Iterable[pa.Table], schema: pa.Schema) -> Generator[pa.Table]:
        """The pairs, those of an image together, images in order of their first pair.

        Close the generator before the staging database.

        Args:
            pairs: All the pairs of the pool, in reading order.
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
        id_name = names[schema.get_field_index("image_id")]
        self._connection.execute(
            f"CREATE TABLE firsts AS SELECT {id_name}, min(seq) AS first FROM raw "  # noqa: S608
            f"GROUP BY {id_name}"
        )
        query = (
            f"SELECT {', '.join(names)} FROM raw JOIN firsts USING ({id_name}) "  # noqa: S608
            "ORDER BY firsts.first, raw.seq"
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
