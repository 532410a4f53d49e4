"""The rows of Arrow columns: texts, and ids of every type whose values are exact.

| an id may be | it becomes |
|---|---|
| text, or binary with UTF-8 | itself |
| a whole number | its digits |
| a float or decimal without a fraction | its digits, unless a float is too large to be exact |
| a UUID, as Arrow's type or as 16 bytes | 32 hexadecimal digits |

A text may be text, binary with UTF-8, or a class label of Hugging Face's `datasets`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from cit_curate.arrow_numpy import arrow_of, numpy_of
from cit_curate.errors import ConfigError
from cit_curate.sources.columns import LIST_KEY, Columns, column_kind, is_list, peek_hint
from cit_curate.sources.embedded import embedded_columns, is_embedded, several_images
from cit_curate.sources.rows import Reject, SourceRows, carried_column, cells_of, column_cells

_UUID_BYTES = 16
# Whole numbers up to these are exact, by the bits of a float; beyond, another may have been meant.
_EXACT = {16: 2**11, 32: 2**24, 64: 2**53}

Problems = Mapping[int, tuple[str, str]]
"""The reason and the detail of each row of a batch that cannot be read."""


def check_types(path: Path, columns: Columns, schema: pa.Schema) -> Columns:
    """The columns, if each that a table has holds text, ids or images; for lists, `LIST_KEY` too.

    Raises:
        ConfigError: A column has another type. The message names the column, its type, the types
            that it may have, and a way out.
    """
    as_text = (columns.text_key, columns.caption, *columns.text)
    for name in columns.names:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        what = f"{path}: column {name!r} is {kind}"
        if name == columns.image and (problem := several_images(schema, name)):
            raise ConfigError(f"{path}: {problem}{peek_hint(path)}")
        if name == columns.image and is_embedded(kind):
            continue
        may_be_list = columns.may_be_list(name)
        single = kind.value_type if may_be_list and is_list(kind) else kind
        is_text = name in as_text or name == columns.image
        if is_text and not (_is_text(single) or name in label_names(schema)):
            wanted = "text or lists of text" if may_be_list else "text"
            raise ConfigError(f"{what}, but must hold {wanted}; {_cast_it(kind)}{peek_hint(path)}")
        if name == columns.image_id and not (_is_text(kind) or _is_exact_id(kind)):
            raise ConfigError(
                f"{what}, but ids must be text or whole numbers; {_cast_it(kind)}, or leave ids "
                f"to be made as SOURCE/ROW, with --image-id ''{peek_hint(path)}"
            )
    has_lists = columns.caption and is_list(schema.field(columns.caption).type)
    return columns.with_list_key() if has_lists else columns


def with_image(columns: Columns, schema: pa.Schema, *, is_dataset: bool) -> Columns:
    """The columns; the image, if none is chosen, is the only column of image bytes.

    Args:
        columns: The columns to read.
        schema: The table's schema.
        is_dataset: Whether the column may be of plain bytes, and need not be Hugging Face's struct.
    """
    embedded = [
        name
        for name in embedded_columns(schema)
        if name not in columns.names and (is_dataset or pa.types.is_struct(schema.field(name).type))
    ]
    if columns.image or len(embedded) != 1:
        return columns
    return replace(columns, image=embedded[0])


def rows_of_batch(
    batch: pa.RecordBatch,
    columns: Columns,
    first: int,
    *,
    uris: Sequence[str | None] | None = None,
    failed: Problems | None = None,
) -> SourceRows:
    """The rows of a batch of a table.

    Args:
        batch: The batch. It may lack the image column if `uris` replace it.
        columns: The columns to read.
        first: The number of the batch's first row in the source, from 0.
        uris: The uris of images embedded in the table; None = the image column holds the paths.
        failed: Rows that are rejected anyhow.
    """
    problems: dict[int, tuple[str, str]] = {}
    cells: dict[str, pa.Array] = {}
    labels = label_names(batch.schema)
    for name in columns.names:
        if name == columns.image and uris is not None:
            cells[name] = cells_of(uris)
        elif name == LIST_KEY:
            cells[name] = cells_of([columns.list_key(is_list=True)] * batch.num_rows)
        elif columns.may_be_list(name) and is_list(batch.schema.field(name).type):
            cells[name] = column_cells(batch.column(name))
        elif name in labels and name != columns.image_id:
            cells[name], bad = _label_cells(batch.column(name), labels[name])
            problems |= bad
        elif name == columns.image_id:
            cells[name], bad = _id_cells(batch.column(name))
            problems |= bad
        else:
            cells[name] = column_cells(_as_text(batch.column(name)))
    problems |= failed or {}
    records = np.arange(first, first + batch.num_rows)
    extra = {name: carried_column(batch.column(name), name) for name in columns.extra}
    rejects = [
        Reject(first + row + 1, reason, detail, first + row)
        for row, (reason, detail) in sorted(problems.items())
    ]
    if rejects:
        records = np.delete(records, list(problems))
        kept = arrow_of(records - first)
        cells = {name: values.take(kept) for name, values in cells.items()}
        extra = {name: values.take(kept) for name, values in extra.items()}
    return SourceRows(
        num_records=batch.num_rows,
        records=records,
        lines=records + 1,
        cells=cells,
        extra=extra,
        rejects=rejects,
    )


def label_names(schema: pa.Schema) -> Mapping[str, Sequence[str]]:
    """The names of the classes of each column of class labels, by Hugging Face's metadata."""
    return _label_names((schema.metadata or {}).get(b"huggingface", b""))


@lru_cache(maxsize=16)
def _label_names(metadata: bytes) -> Mapping[str, Sequence[str]]:
    try:
        features = json.loads(metadata)["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # Nothing else depends on it: the columns are then what their types say.


def _label_cells(values: pa.Array, names: Sequence[str]) -> tuple[pa.Array, Problems]:
    """The names of class labels. None and -1, of which `datasets` makes unlabelled rows, are ""."""
    problems: dict[int, tuple[str, str]] = {}
    texts: list[str] = []
    for row, label in enumerate(values.to_pylist()):
        is_known = isinstance(label, int) and 0 <= label < len(names)
        texts.append(names[label] if is_known else "")
        if not is_known and label not in (None, -1):
            problems[row] = "bad_row", f"label {label} has no name; there are {len(names)} names"
    return cells_of(texts), problems


def _id_cells(values: pa.Array) -> tuple[pa.Array, Problems]:
    """The cells of ids, and a problem for each number that is not whole or not exact."""
    values = _stored(values)
    kind = values.type
    if pa.types.is_floating(kind):
        return _float_ids(values)
    if pa.types.is_decimal(kind):
        return _decimal_ids(values)
    if pa.types.is_fixed_size_binary(kind):
        texts = [None if value is None else value.hex() for value in values.to_pylist()]
        return cells_of(texts), {}
    return column_cells(_as_text(values)), {}


def _float_ids(values: pa.Array) -> tuple[pa.Array, Problems]:
    bits = values.type.bit_width
    present = numpy_of(values.is_valid())
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
    is_whole = np.isfinite(numbers) & (np.floor(numbers) == numbers)
    is_exact = is_whole & (np.abs(numbers) <= _EXACT[bits])
    texts = arrow_of(np.where(is_exact, numbers, 0).astype(np.int64)).cast(pa.large_string())
    cells = pa.array(texts.to_pylist(), pa.large_string(), mask=~is_exact).fill_null("")
    limit = f"beyond 2**{_EXACT[bits].bit_length() - 1}, where a float of {bits} bits is not exact"
    problems = {
        row: (
            "bad_image_id",
            f"the image id {numbers[row]} is {limit if is_whole[row] else 'no whole number'}",
        )
        for row in np.flatnonzero(present & ~is_exact).tolist()
    }
    return cells, problems


def _decimal_ids(values: pa.Array) -> tuple[pa.Array, Problems]:
    texts: list[str | None] = []
    problems: dict[int, tuple[str, str]] = {}
    for row, value in enumerate(values.to_pylist()):
        is_whole = value is not None and int(value) == value
        texts.append(str(int(value)) if is_whole else None)
        if value is not None and not is_whole:
            problems[row] = "bad_image_id", f"the image id {value} is no whole number"
    return cells_of(texts), problems


def _as_text(values: pa.Array) -> pa.Array:
    """A column of text; binary is text whose bytes were not checked."""
    values = _stored(values)
    if _is_binary(values.type):
        return values.cast(pa.large_binary()).view(pa.large_string())
    return values


def _stored(values: pa.Array) -> pa.Array:
    """The values as they are stored, without a dictionary or the type of an extension."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _stored_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _stored_type(kind)
    return column_kind(kind) in ("text", "null") or _is_binary(kind)


def _is_exact_id(kind: pa.DataType) -> bool:
    kind = _stored_type(kind)
    if pa.types.is_fixed_size_binary(kind):
        return bool(kind.byte_width == _UUID_BYTES)
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _is_binary(kind: pa.DataType) -> bool:
    is_plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(is_plain or pa.types.is_binary_view(kind))


def _cast_it(kind: pa.DataType) -> str:
    if pa.types.is_nested(kind):
        return "write its text into a column of its own"
    return "cast it to text where the table is made"
