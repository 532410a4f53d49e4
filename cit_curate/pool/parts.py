"""Writing the parts: tables of pairs become Parquet files cut at image boundaries."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cit_curate.arrow_numpy import arrow_of, numpy_of
from cit_curate.pool.format import PART_ROWS, REJECT_SCHEMA, Part, names_image_file
from cit_curate.records import Int64
from cit_curate.storage.durable import FileEntry, atomic_file, describe_file

REJECT_PART_ROWS = 1_000_000
# Columns whose values hardly repeat: dictionaries take time and make files larger
# (measured on YFCC: 35 bytes a pair with dictionaries, 30 without, and a third more time).
NO_DICTIONARY = {"image_id", "caption", "image_uri", "caption_hash"}
# Columns whose minimum and maximum in a row group exclude no row group from a query.
NO_STATISTICS = {"text_key", "caption", "image_uri", "source", "caption_hash", "text_fixed"}


@dataclass
class PartsWritten:
    """The parts written so far, and their counts.

    Attributes:
        with_image: Pairs that name an image file, by their source.
        respelled: Image paths that were changed to their spelling on disk, by their source.
    """

    parts: list[Part] = field(default_factory=list)
    num_pairs: int = 0
    num_images: int = 0
    with_image: Counter[str] = field(default_factory=Counter)
    text_keys: Counter[str] = field(default_factory=Counter)
    respelled: Counter[str] = field(default_factory=Counter)

    @property
    def num_with_image(self) -> int:
        """Pairs that name an image file."""
        return self.with_image.total()

    def add(self, other: "PartsWritten") -> None:
        """Add the parts that another writer wrote after these."""
        self.parts += other.parts
        self.num_pairs += other.num_pairs
        self.num_images += other.num_images
        self.with_image.update(other.with_image)
        self.text_keys.update(other.text_keys)
        self.respelled.update(other.respelled)


def image_starts(image_ids: pa.ChunkedArray | pa.Array) -> Int64:
    """int64 [images]: the row at which each image's consecutive rows start."""
    if len(image_ids) == 0:
        return np.zeros(0, np.int64)
    changes = pc.not_equal(image_ids.slice(1), image_ids.slice(0, len(image_ids) - 1))
    return np.concatenate([[0], np.flatnonzero(numpy_of(changes)) + 1]).astype(np.int64)


def cut_groups(tables: Iterable[pa.Table], max_rows: int) -> Iterator[pa.Table]:
    """Cut tables of pairs into groups of at most `max_rows` rows, never inside an image.

    An image with more texts than that is a group of its own. Each image's rows are consecutive.
    """
    rest: pa.Table | None = None
    for table in tables:
        rest = table if rest is None else pa.concat_tables([rest, table])
        starts = image_starts(rest["image_id"])
        done = 0
        # The last image may continue in the next table.
        while rest.num_rows - done > max_rows and starts[-1] > done:
            first = int(np.searchsorted(starts, done))
            last = int(np.searchsorted(starts, done + max_rows, side="right")) - 1
            cut = int(starts[max(last, first + 1)])
            yield rest.slice(done, cut - done)
            done = cut
        rest = rest.slice(done)
    if rest is not None and rest.num_rows:
        # What is left may be one long image and the start of the next ones.
        starts = image_starts(rest["image_id"])
        bounds = [*starts.tolist(), rest.num_rows]
        done = 0
        for start, end in pairwise(bounds):
            if end - done > max_rows and start > done:
                yield rest.slice(done, start - done)
                done = start
        yield rest.slice(done)


def part_ends(counts: Iterable[Int64], max_rows: int) -> Iterator[int]:
    """The number of pairs before the end of each part, with row groups cut by `cut_groups`.

    Args:
        counts: int64, the pairs of each image, in arrays of any length.
        max_rows: Largest number of rows in a row group.
    """
    done = rows = 0
    for group in _group_sizes(counts, max_rows):
        if rows and rows + group > PART_ROWS:
            yield done
            rows = 0
        done, rows = done + group, rows + group
    if rows:
        yield done


def _group_sizes(counts: Iterable[Int64], max_rows: int) -> Iterator[int]:
    """The rows of each group that `cut_groups` makes of images with these numbers of pairs."""
    rest = np.zeros(0, np.int64)
    for more in counts:
        rest = np.concatenate([rest, more])
        sums = np.cumsum(rest)
        taken = done = 0
        # What is left may fit in one group with the next images.
        while taken < len(rest) and sums[-1] - done > max_rows:
            taken = max(int(np.searchsorted(sums, done + max_rows, side="right")), taken + 1)
            yield int(sums[taken - 1]) - done
            done = int(sums[taken - 1])
        rest = rest[taken:]
    if len(rest):
        yield int(rest.sum())


def write_parts(
    groups: Iterable[pa.Table], folder: Path, schema: pa.Schema, *, first_part: int = 0
) -> PartsWritten:
    """Write row groups to `folder/pairs/part-000000.parquet` and on, at most `PART_ROWS` rows each.

    Args:
        groups: Tables of `schema`, one for each row group.
        folder: The pool's folder; entries are relative to it.
        schema: `format.pair_schema`.
        first_part: Number of the first part, for writers that share the folder.
    """
    written = PartsWritten()
    (folder / "pairs").mkdir(exist_ok=True)
    for number, numbered in groupby(_numbered(groups), key=itemgetter(0)):
        path = folder / "pairs" / f"part-{first_part + number:06d}.parquet"
        sizes: list[tuple[int, int]] = []
        with atomic_file(path) as temporary, _open_part(temporary, schema) as writer:
            for _, group in numbered:
                # One chunk: the file's bytes must not depend on how the input was batched.
                table = group.cast(schema).combine_chunks()
                writer.write_table(table, row_group_size=table.num_rows)
                images = len(image_starts(group["image_id"]))
                sizes.append((group.num_rows, images))
                _count(written, group, images)
        rows = sum(rows for rows, _ in sizes)
        written.parts.append(Part(describe_file(path, folder, rows=rows), tuple(sizes)))
    return written


def _numbered(groups: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Groups with the number of their part, from 0."""
    number = rows = 0
    for group in groups:
        if rows and rows + group.num_rows > PART_ROWS:
            number, rows = number + 1, 0
        rows += group.num_rows
        yield number, group


def _open_part(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        version="2.6",
        use_dictionary=[name for name in schema.names if name not in NO_DICTIONARY],
        write_statistics=[name for name in schema.names if name not in NO_STATISTICS],
    )


def write_rejects(tables: Iterable[pa.Table], folder: Path) -> tuple[FileEntry, ...]:
    """Write rejects to `folder/rejects/part-000000.parquet` and on; at least one file."""
    entries: list[FileEntry] = []
    (folder / "rejects").mkdir()
    empty = pa.Table.from_batches([], schema=REJECT_SCHEMA)
    waiting: list[pa.Table] = [empty]
    rows = 0

    def write() -> None:
        path = folder / "rejects" / f"part-{len(entries):06d}.parquet"
        table = pa.concat_tables(waiting)
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", version="2.6")
        entries.append(describe_file(path, folder, rows=table.num_rows))

    for table in tables:
        waiting.append(table.cast(REJECT_SCHEMA))
        rows += table.num_rows
        if rows >= REJECT_PART_ROWS:
            write()
            waiting, rows = [empty], 0
    if rows or not entries:
        write()
    return tuple(entries)


def _count(written: PartsWritten, group: pa.Table, images: int) -> None:
    written.num_pairs += group.num_rows
    written.num_images += images
    with_image = group["source"].filter(arrow_of(names_image_file(group["image_uri"])))
    for counter, values in (
        (written.with_image, with_image),
        (written.text_keys, group["text_key"]),
    ):
        for count in pc.value_counts(values.combine_chunks()):
            counter[count["values"].as_py()] += count["counts"].as_py()
