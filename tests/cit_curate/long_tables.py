"""Small tables of pairs, and what a pool has of them."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.sources.columns import Columns

LONG = Columns(text_key="key", caption="caption")
WIDE = Columns(text=("title", "tag"), image="image")


def write_long(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image_id", "key", "caption"), *rows])
    return path


def pairs_in(pool):
    table = pa.concat_tables([pq.read_table(pool.path / p.file.path) for p in pool.parts])
    return [(r["image_id"], r["text_key"], r["caption"]) for r in table.to_pylist()]


def rejects_in(pool):
    return [
        (r["source"], r["row"], r["reason"])
        for entry in pool.manifest.reject_parts
        for r in pq.read_table(pool.path / entry.path).to_pylist()
    ]


def bytes_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.parquet"))
    }
