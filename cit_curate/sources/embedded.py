"""Images embedded in a table's cells, as bytes or as Hugging Face's struct of bytes and path."""

from typing import Literal

import pyarrow as pa

from cit_curate.images.uri import cell_uri


def is_embedded(kind: pa.DataType) -> bool:
    """True for a column of image bytes: binary, or a struct with a binary field `bytes`."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def embedded_columns(schema: pa.Schema) -> list[str]:
    """The names of the columns of image bytes."""
    return [field.name for field in schema if is_embedded(field.type)]


def several_images(schema: pa.Schema, image: str | None) -> str:
    """A sentence on columns with lists of images, of which a pair cannot have one; "" for none.

    Args:
        schema: The columns of a table.
        image: The image column; None = every column with lists of image bytes is one.
    """
    names = [
        field.name
        for field in schema
        if is_list(field.type)
        and (field.name == image if image else is_embedded(field.type.value_type))
    ]
    if not names:
        return ""
    return (
        f"the column {names[0]!r} holds several images a row, which is not supported: a pair has "
        "one image; write a row for each"
    )


def is_list(kind: pa.DataType) -> bool:
    """True for a column of lists."""
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def embedded_uris(
    cells: pa.Array,
    scheme: Literal["arrow", "parquet"],
    file: str,
    column: str,
    first_row: int,
) -> list[str | None]:
    """The uri of each cell's image: of its bytes, else the struct's `path`; None for neither.

    Args:
        cells: Part of a column of image bytes (`is_embedded`).
        scheme: The kind of file.
        file: The file's path, as in the uri.
        column: The column's name.
        first_row: The row of the first cell in the file, from 0.
    """
    present = cells.is_valid().to_pylist()
    paths: list[str | None] = [None] * len(cells)
    if pa.types.is_struct(cells.type):
        # The validity of a child array does not include that of its parent.
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
