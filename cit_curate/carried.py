"""Extra columns of a table: the Arrow types in which a pool stores them.

A pool is read with Arrow and DuckDB, and what one of them does not know, or gives back as another
type, is stored as the nearest type that both do. The values stay the same; where the type said more
than that, `carried_note` tells it.
"""

import uuid
from collections.abc import Iterator, Sequence

import pyarrow as pa

# The digits of the longest decimal of DuckDB; a longer one would become a double.
_MAX_DIGITS = 38


class NotCarriedError(ValueError):
    """A type, or a value, that no pool stores; the message says why."""


def carried_type(kind: pa.DataType) -> pa.DataType:
    """The type of an extra column in the pool.

    Integer types are not unified, because the values of one do not always fit in another.

    Raises:
        NotCarriedError: No pool stores the type.
    """
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return carried_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.string() if _is_uuid(kind) else carried_type(kind.storage_type)
    if _is_text(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_decimal(kind):
        return _decimal(kind)
    if pa.types.is_temporal(kind):
        return _temporal(kind)
    if pa.types.is_nested(kind):
        return _nested(kind)
    return kind


def carried(values: pa.Array) -> pa.Array:
    """An extra column as the pool stores it (`carried_type`).

    Raises:
        NotCarriedError: A value does not fit, or a text within lists or structs is not UTF-8.
    """
    kind = carried_type(values.type)
    try:
        return _cast(values, kind)
    except (pa.ArrowException, OverflowError, UnicodeDecodeError) as error:
        raise NotCarriedError(f"a value cannot be stored as {kind}: {error}") from error


def carried_note(kind: pa.DataType) -> str:
    """What the stored type no longer says, in words; "" = nothing."""
    if isinstance(kind, pa.BaseExtensionType):
        return f"stored as {carried_type(kind)}"
    if pa.types.is_duration(kind):
        return f"stored as whole numbers, {kind.unit}"
    if pa.types.is_timestamp(kind) and kind.tz not in (None, "UTC"):
        return "stored as the same instants in UTC"
    if pa.types.is_date64(kind) or pa.types.is_float16(kind):
        return f"stored as {carried_type(kind)}"
    if pa.types.is_decimal(kind) and pa.types.is_string(carried_type(kind)):
        return f"stored as text, since DuckDB's decimals have at most {_MAX_DIGITS} digits"
    return next(filter(None, map(carried_note, _inner(kind))), "")


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ExtensionArray):
        if _is_uuid(values.type):
            texts = (None if raw is None else str(uuid.UUID(bytes=raw)) for raw in _storage(values))
            return pa.array(texts, pa.string())
        values = values.storage
    if pa.types.is_run_end_encoded(values.type):
        values = values.values.take(_run_of_each(values))
    if not pa.types.is_nested(kind):
        # A date64 may have a time of day, which it ought not to have.
        return values.cast(kind, safe=not pa.types.is_date64(values.type))
    if _has_views(values.type):
        # Arrow 26 casts list views to lists of other values, or to broken ones.
        return pa.array(values.to_pylist(), kind)
    try:
        found = values.cast(kind)
    except pa.ArrowNotImplementedError:
        found = pa.array(values.to_pylist(), kind)
    found.validate(full=True)
    return found


def _has_views(kind: pa.DataType) -> bool:
    is_view = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return is_view or any(map(_has_views, _inner(kind)))


def _storage(values: pa.ExtensionArray) -> list[bytes | None]:
    raw: list[bytes | None] = values.storage.to_pylist()
    return raw


def _run_of_each(values: pa.RunEndEncodedArray) -> pa.Array:
    return pa.array(_runs(values), pa.int64())


def _runs(values: pa.RunEndEncodedArray) -> Iterator[int]:
    run, ends = 0, values.run_ends.to_pylist()
    for row in range(values.offset, values.offset + len(values)):
        while ends[run] <= row:
            run += 1
        yield run


def _is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.UuidType)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _decimal(kind: pa.DataType) -> pa.DataType:
    digits = kind.precision - min(kind.scale, 0)
    return pa.decimal128(digits, max(kind.scale, 0)) if digits <= _MAX_DIGITS else pa.string()


def _temporal(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_interval(kind):
        raise NotCarriedError(f"Parquet has no type for {kind}")
    if pa.types.is_duration(kind):
        return pa.int64()
    if pa.types.is_date64(kind):
        return pa.date32()
    if pa.types.is_time32(kind):
        return pa.time32("ms")  # Parquet has no seconds
    if pa.types.is_timestamp(kind):
        return pa.timestamp("ms" if kind.unit == "s" else kind.unit, kind.tz and "UTC")
    return kind


def _nested(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_union(kind):
        raise NotCarriedError(f"Parquet has no type for {kind}")
    if pa.types.is_map(kind):
        return pa.map_(carried_type(kind.key_type), carried_type(kind.item_type))
    if not pa.types.is_struct(kind):
        return pa.list_(carried_type(kind.value_type))
    if not kind.num_fields:
        raise NotCarriedError("Parquet has no struct without fields")
    if clash := same_in_sql([field.name for field in kind]):
        first, second = clash
        raise NotCarriedError(f"its fields {first!r} and {second!r} are one name in SQL")
    return pa.struct([(field.name, carried_type(field.type)) for field in kind])


def _inner(kind: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return [kind.value_type]
    return [kind.field(index).type for index in range(kind.num_fields)]


def sql_name(name: str) -> str:
    """A name as DuckDB compares it: without regard to the case of ASCII letters."""
    return name.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def same_in_sql(names: Sequence[str]) -> tuple[str, str] | None:
    """The first two names that are one in SQL; None if all differ."""
    seen: dict[str, str] = {}
    for name in names:
        if sql_name(name) in seen:
            return seen[sql_name(name)], name
        seen[sql_name(name)] = name
    return None
