"""The downloads of img2dataset that failed, of a folder that it wrote images and texts into."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from cit_curate.sources.arrow.img2dataset import STATUS_COLUMNS, failed_downloads, is_img2dataset
from cit_curate.sources.parquet import parquet_schema
from cit_curate.sources.rows import Problem, SourceReader, SourceRows, batches_of, moved_reject


def with_failed_downloads(reader: SourceReader, folder: Path) -> SourceReader:
    """The reader of an image folder; img2dataset's lists in it tell which images failed.

    Each of them is rejected behind the images, which do not need the lists.

    Raises:
        DamagedError: A list is damaged.
    """
    lists = [
        file
        for file in sorted(folder.glob("*.parquet"))
        if is_img2dataset(parquet_schema(file).names)
    ]
    if not lists or reader.read is None:
        return reader
    read = reader.read

    def rows() -> Iterator[SourceRows]:
        num_records = 0
        for batch in read():
            yield batch
            num_records += batch.num_records
        assert reader.columns is not None
        for batch in batches_of(_failures(lists), reader.columns):
            yield replace(
                batch,
                records=batch.records + num_records,
                rejects=[
                    moved_reject(reject, num_records, num_records) for reject in batch.rejects
                ],
            )

    said = f"lists of img2dataset tell which downloads failed ({lists[0].name} and so on)"
    return replace(reader, read=rows, notes=(*reader.notes, said))


def _failures(lists: Sequence[Path]) -> Iterator[tuple[int, Problem]]:
    number = 0
    for file in lists:
        with pq.ParquetFile(file, pre_buffer=False) as table:
            for batch in table.iter_batches(columns=["key", *STATUS_COLUMNS]):
                keys = batch.column("key").to_pylist()
                for row, (reason, detail) in failed_downloads(batch).items():
                    number += 1
                    yield number, Problem(reason, f"{file.name}, key {keys[row]}: {detail}")
