"""Images that lie in the cells of a table: as bytes, or as Hugging Face's struct of bytes, path."""

from typing import Literal

import pyarrow as pa

from cit_curate.images.uri import cell_uri


def is_embedded(kind: pa.DataType) -> bool:
    """True for a column of image bytes: binary, or a struct with a binary field `bytes`."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def embedded_columns(schema: pa.Schema) -> list[str]:
    """The names of the columns of image bytes."""
    return [field.name for field in schema if is_embedded(field.type)]


def embedded_uris(
    cells: pa.Array,
    scheme: Literal["arrow", "parquet"],
    file: str,
    column: str,
    first_row: int,
) -> list[str | None]:
    """Where each cell's image lies: in the cell, else at the struct's `path`; None for neither.

    Args:
        cells: Part of a column that `is_embedded`.
        scheme: Kind of file.
        file: Its path, as the uri will have it.
        column: The column's name.
        first_row: Row of the first cell in the file.
    """
    present = cells.is_valid().to_pylist()
    paths: list[str | None] = [None] * len(cells)
    if pa.types.is_struct(cells.type):
        # A child's own validity does not know that its parent is null.
        inner = cells.field("bytes").is_valid().to_pylist()
        if cells.type.get_field_index("path") >= 0:
            texts = cells.field("path").to_pylist()
            paths = [path if outer else None for path, outer in zip(texts, present, strict=True)]
        present = [outer and own for outer, own in zip(present, inner, strict=True)]
    return [
        cell_uri(scheme, file, column, row) if has_bytes else path
        for row, (has_bytes, path) in enumerate(zip(present, paths, strict=True), first_row)
    ]


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )
