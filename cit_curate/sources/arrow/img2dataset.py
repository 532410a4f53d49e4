"""What img2dataset writes: tables of downloads, in which those that failed have a row too.

Every such table has the columns `key`, `status` and `error_message`
(https://github.com/rom1504/img2dataset, "Output format"). With `--output_format parquet` it has the
images and texts as well; with `files` these lie in folders beside it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from cit_curate.sources.columns import Columns

STATUS_COLUMNS = ("status", "error_message")
_COLUMNS = {"key", *STATUS_COLUMNS}
_TEXTS = ("txt", "caption")
_IMAGES = ("jpg", "jpeg", "png", "webp")
_SUCCESS = "success"
_REASON = re.compile(r"[a-z_]{1,40}")


def is_img2dataset(names: Sequence[str]) -> bool:
    """Whether a table with these columns is of img2dataset."""
    return set(names) >= _COLUMNS


def with_defaults(columns: Columns, names: Sequence[str]) -> Columns:
    """The columns; those that were not chosen are `key`, the text and the image of img2dataset."""
    if columns.image_id == Columns.image_id and Columns.image_id not in names:
        columns = replace(columns, image_id="key")
    if not columns.text and not columns.caption:
        columns = replace(columns, caption=next((name for name in _TEXTS if name in names), None))
    if not columns.image:
        columns = replace(columns, image=next((name for name in _IMAGES if name in names), None))
    return columns


def failed_downloads(batch: pa.RecordBatch) -> dict[int, tuple[str, str]]:
    """The reason and the detail of each row of a batch that is no successful download."""
    statuses = batch.column("status").to_pylist()
    rows = [row for row, status in enumerate(statuses) if status != _SUCCESS]
    messages = batch.column("error_message")
    return {row: failure(statuses[row], messages[row].as_py()) for row in rows}


def failure(status: object, message: object) -> tuple[str, str]:
    """The reason and the detail of a download that failed, as img2dataset says them."""
    reason = str(status)
    detail = f"img2dataset says {reason}: {message}" if message else f"img2dataset says {reason}"
    return reason if _REASON.fullmatch(reason) else "failed_to_download", detail
