"""Images inside other files: zips, tars, and cells of Arrow and Parquet files.

Nothing is ever extracted to disk. What is cached between reads (tables of contents, mapped tables,
decoded row groups) belongs to one process and is dropped when the file changes.
"""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.images.open_file import BoundedCache, OpenFile
from cit_curate.images.rejected import ImageRejected
from cit_curate.images.root import ImageRoot, opened_below
from cit_curate.images.uri import ImageUri
from cit_curate.images.zip_members import read_zip_member

# The system manages the pages of a mapped file. What counts is the table's own bookkeeping
# (measured: 0.8 kB for each column of each batch) and the file that each table holds open.
_TABLE_CACHE_BYTES = 256 << 20
_MAX_TABLES = 256
_BYTES_PER_ARRAY = 1024
_ROW_GROUP_CACHE_BYTES = 256 << 20
_MAX_ROW_GROUP_BYTES = 2 << 30
# The size of the name field in a tar header; a longer name has a header of its own.
_HEADER_NAME_BYTES = 100

_IPC_FILE = b"ARROW1"

T = TypeVar("T")

_tables: BoundedCache[pa.Table] = BoundedCache(_TABLE_CACHE_BYTES)
_footers: BoundedCache[pq.FileMetaData] = BoundedCache(_MAX_TABLES)
_row_groups: BoundedCache[pa.ChunkedArray] = BoundedCache(_ROW_GROUP_CACHE_BYTES)


def read_archived_bytes(root: ImageRoot, uri: ImageUri, *, max_bytes: int) -> bytes:
    """The bytes of an image inside another file, which lies inside `root`.

    Args:
        root: The image root.
        uri: The file, and the location of the image in it.
        max_bytes: The largest image that is accepted; a larger one is not read.

    Raises:
        ImageRejected: The file or the image is missing, damaged, outside the root or too large;
            `unreadable_archive` if no image in the file can be read.
    """
    with _opened(root, uri) as file:
        if uri.scheme == "zip":
            return read_zip_member(file, uri.member, max_bytes=max_bytes)
        if uri.scheme == "tar":
            return _read_tar_member(file, uri, max_bytes)
        try:
            read = _arrow_column if uri.scheme == "arrow" else _parquet_column
            return _cell_bytes(*read(file, uri), file, uri, max_bytes=max_bytes)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ImageRejected("damaged_archive", f"{_where(file, uri)}: {error}") from error


@contextmanager
def _opened(root: ImageRoot, uri: ImageUri) -> Iterator[OpenFile]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(opened_below(root, uri.path))
        except ImageRejected as error:
            if error.reason != "missing_image":
                raise
            detail = f"{error.detail}, asked for {uri.location}"
            raise ImageRejected("unreadable_archive", detail) from error
        yield file


def open_ipc(path: str) -> pa.RecordBatchStreamReader | pa.RecordBatchFileReader:
    """A reader of an Arrow IPC file or stream, mapped into memory; its first bytes tell which.

    Raises:
        ArrowException, OSError: It is damaged.
    """
    mapped = pa.memory_map(path)
    is_file = mapped.read(len(_IPC_FILE)) == _IPC_FILE
    mapped.seek(0)
    return pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)


def _read_tar_member(file: OpenFile, uri: ImageUri, max_bytes: int) -> bytes:
    where = f"{file.path}, member {uri.member!a} at byte {uri.offset:,}"
    if uri.size > max_bytes:
        raise ImageRejected(
            "too_many_bytes", f"{where}: {uri.size:,} bytes, more than {max_bytes:,}"
        )
    start = uri.offset - tarfile.BLOCKSIZE
    if start < 0 or uri.offset + uri.size > file.num_bytes:
        raise ImageRejected(
            "damaged_archive", f"{where}: the tar has only {file.num_bytes:,} bytes; it has changed"
        )
    data = file.read(start, tarfile.BLOCKSIZE + uri.size)
    # The member's header comes right before it, so a rewritten tar is detected at no cost.
    try:
        header = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise ImageRejected(
            "damaged_archive", f"{where}: no member starts there; the tar has changed"
        ) from error
    is_short = uri.member.isascii() and len(uri.member) <= _HEADER_NAME_BYTES
    is_same = not uri.member or not is_short or header.name == uri.member
    if not header.isreg() or header.size != uri.size or not is_same:
        raise ImageRejected(
            "damaged_archive",
            f"{where}: {header.name!a} of {header.size:,} bytes lies there now; the tar has "
            "changed since the pool was built",
        )
    return data[tarfile.BLOCKSIZE :]


def _mapped_table(file: OpenFile, uri: ImageUri) -> tuple[pa.Table, int]:
    def read() -> pa.Table:
        with open_ipc(str(file.local())) as reader:
            return reader.read_all()

    table = _read_whole(read, file, uri)
    num_arrays = sum(column.num_chunks for column in table.columns)
    return table, max(num_arrays * _BYTES_PER_ARRAY, _TABLE_CACHE_BYTES // _MAX_TABLES)


def _arrow_column(file: OpenFile, uri: ImageUri) -> tuple[pa.ChunkedArray, int]:
    """The column, and the index of the row in it."""
    table = _tables.get(file.identity, lambda: _mapped_table(file, uri))
    _check_column(table.column_names, file, uri)
    return table.column(uri.column), uri.row


def _parquet_column(file: OpenFile, uri: ImageUri) -> tuple[pa.ChunkedArray, int]:
    """The column of one row group, and the index of the row in it.

    Row groups are decoded whole, so the last ones are cached.
    """
    footer = _footers.get(
        file.identity,
        lambda: (_read_whole(lambda: pq.read_metadata(file.for_arrow), file, uri), 1),
    )
    _check_column(footer.schema.to_arrow_schema().names, file, uri)
    row = uri.row
    for group in range(footer.num_row_groups):
        entry = footer.row_group(group)
        if row < entry.num_rows:
            break
        row -= entry.num_rows
    else:
        raise ImageRejected("missing_image", f"{_where(file, uri)}: there are fewer rows")
    if entry.total_byte_size > _MAX_ROW_GROUP_BYTES:
        size = f"{entry.total_byte_size:,} bytes, more than {_MAX_ROW_GROUP_BYTES:,}"
        raise ImageRejected("too_many_bytes", f"{_where(file, uri)}: its row group has {size}")

    def decoded() -> tuple[pa.ChunkedArray, int]:
        with pq.ParquetFile(file.for_arrow, metadata=footer, pre_buffer=False) as opened:
            values = opened.read_row_group(group, columns=[uri.column]).column(0)
        return values, values.nbytes

    return _row_groups.get((*file.identity, uri.column, group), decoded), row


def _cell_bytes(
    column: pa.ChunkedArray, row: int, file: OpenFile, uri: ImageUri, *, max_bytes: int
) -> bytes:
    """The bytes of one cell: a binary value, or the field `bytes` of a struct."""
    if row >= len(column):
        raise ImageRejected("missing_image", f"{_where(file, uri)}: there are fewer rows")
    cell = next(chunk for chunk in column.slice(row, 1).chunks if len(chunk))
    # The offsets of a damaged or hostile file could otherwise point outside of its memory. Only the
    # bytes are checked in full: the full check of a struct would go over all rows of its fields.
    cell.validate()
    is_struct = pa.types.is_struct(cell.type) and cell.type.get_field_index("bytes") >= 0
    if is_struct and cell.is_valid()[0].as_py():
        cell = cell.field("bytes")
    cell.validate(full=True)
    value = cell[0]
    if not value.is_valid:
        raise ImageRejected("missing_image", f"{_where(file, uri)}: the cell is empty")
    if not isinstance(value, pa.BinaryScalar) or isinstance(value, pa.StringScalar):
        raise ImageRejected("missing_image", f"{_where(file, uri)}: it holds {cell.type}, no bytes")
    size = len(value.as_buffer())
    if size > max_bytes:
        detail = f"{_where(file, uri)}: {size:,} bytes, more than {max_bytes:,}"
        raise ImageRejected("too_many_bytes", detail)
    return bytes(value.as_py())


def _read_whole(read: Callable[[], T], file: OpenFile, uri: ImageUri) -> T:
    """The result of `read`, on which all rows of the file depend."""
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ImageRejected("unreadable_archive", f"{_where(file, uri)}: {error}") from error


def _check_column(names: list[str], file: OpenFile, uri: ImageUri) -> None:
    if names.count(uri.column) != 1:
        raise ImageRejected(
            "missing_image", f"{_where(file, uri)}: its columns are {', '.join(names)}"
        )


def _where(file: OpenFile, uri: ImageUri) -> str:
    return f"{file.path}, column {uri.column!a}, row {uri.row:,}"
