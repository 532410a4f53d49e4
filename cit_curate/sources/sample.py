"""The beginning of a source: its columns with some values, and a guess at what each of them is."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cit_curate.config import ReadConfig, SourceFormat
from cit_curate.sources.arrow.ipc import first_arrow_rows
from cit_curate.sources.columns import Columns
from cit_curate.sources.embedded import is_embedded
from cit_curate.sources.huggingface import first_rows
from cit_curate.sources.parquet import first_parquet_rows
from cit_curate.sources.source import Source
from cit_curate.sources.text.coco import is_coco, is_karpathy
from cit_curate.sources.text.files import compression_of, opened, text_lines
from cit_curate.sources.text.json_text import array_under, held_by_object, json_shape
from cit_curate.sources.text.jsonl import FieldError, parse_object
from cit_curate.sources.text.table import DELIMITER_NAMES, names_for_data, open_lines

NUM_EXAMPLES = 3
# Where a tar says that it is one.
_TAR_MAGIC = (257, b"ustar")
_NUM_RECORDS = 100

_TEXT_NAMES = ("caption", "captions", "text", "texts", "alt", "title", "description", "sentence")
_IMAGE_NAMES = ("image", "file_name", "filename", "path", "file", "image_path", "url", "image_url")
_ID_NAMES = ("image_id", "id", "key", "uid", "sample_id", "imageid", "hash")
_ADDRESS_OR_FILE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+|\S+\.[A-Za-z]{3,4}")
_CAPTION_WORDS = 3


@dataclass(frozen=True)
class ColumnSample:
    """A column of a source.

    Attributes:
        name: Its name.
        kind: The type of its values, for people.
        examples: Some of its first values.
    """

    name: str
    kind: str
    examples: tuple[Any, ...]


@dataclass(frozen=True)
class SourceSample:
    """The beginning of a source.

    Attributes:
        facts: How it is read, by name: its encoding, its delimiter and the like.
        columns: Its columns; empty for a folder of images.
        has_own_columns: Whether it needs no columns to be named.
        reading: How it is to be read, if not as it was asked for: with names for the columns of a
            table without a header.
    """

    facts: Mapping[str, str]
    columns: tuple[ColumnSample, ...] = ()
    has_own_columns: bool = False
    reading: ReadConfig | None = None


def sniffed_format(path: Path) -> SourceFormat:
    """The format that the beginning of a file suggests, for a file whose suffix tells none.

    Raises:
        ConfigError: See `text.files.text_lines`.
        DamagedError: It is compressed, and cut or damaged.
    """
    with opened(path) as file:
        head = file.read(_TAR_MAGIC[0] + len(_TAR_MAGIC[1]))
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    if head.endswith(_TAR_MAGIC[1]):
        return "webdataset"
    lines = (line for block in text_lines(path).blocks() for line in block)
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith(("{", "[")):
        return "jsonl"
    return "tsv" if "\t" in first else "csv"


def sample_source(source: Source) -> SourceSample:
    """The beginning of a source; nothing else of it is read.

    Raises:
        ConfigError: The source cannot be read so, such as a table in an unknown encoding.
        BadInputError: It is empty.
        DamagedError: It is damaged.
    """
    sample = _SAMPLES.get(source.format)
    return sample(source) if sample else SourceSample({}, has_own_columns=True)


def _table(source: Source) -> SourceSample:
    table = open_lines(source.path, Columns(), source.format, source.reading)
    reading = source.reading
    if table.has_header and (names := names_for_data(table.header)):
        reading = replace(reading, columns=",".join(names))
        table = open_lines(source.path, Columns(), source.format, reading)
    records = table.format.records(table.lines)
    rows = [cells for _, _, cells, _, _ in islice(records, _NUM_RECORDS) if cells]
    rows = [row for row in rows[table.has_header :] if len(row) == len(table.header)]
    facts = {
        **_text_facts(source, table.lines.encoding),
        "delimiter": DELIMITER_NAMES.get(table.format.delimiter, repr(table.format.delimiter)),
        "quoting": table.format.quoting,
        "header": "line 1" if table.has_header else "none",
    }
    columns = [
        ColumnSample(name, "text", _examples([row[number] for row in rows]))
        for number, name in enumerate(table.header)
    ]
    return SourceSample(facts, tuple(columns), reading=reading)


def _json(source: Source) -> SourceSample:
    lines = text_lines(source.path, source.reading.encoding)
    facts = _text_facts(source, lines.encoding)
    shape = json_shape(lines)
    if shape == "object":
        held = held_by_object(lines, lambda held: is_coco(held) or is_karpathy(held))
        if is_coco(held) or is_karpathy(held):
            return SourceSample({**facts, "holds": "captions of COCO's kind"}, has_own_columns=True)
        lists = [key for key, what in held.items() if what.kind == "objects"]
        elements = array_under(lines, lists[0]) if lists else iter(())
    elif shape == "array":
        elements = array_under(lines, None)
    else:
        elements = _objects(line for block in lines.blocks() for line in block)
    objects = [each for each in islice(elements, _NUM_RECORDS) if isinstance(each, dict)]
    holds = {"lines": "an object a line", "array": "an array", "object": "an object"}[shape]
    return SourceSample({**facts, "holds": holds}, _columns_of(objects))


def _objects(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(FieldError):
            yield parse_object(line)


def _columns_of(objects: Sequence[Mapping[str, Any]]) -> tuple[ColumnSample, ...]:
    values: dict[str, list[Any]] = {}
    for fields in objects:
        for name, value in fields.items():
            values.setdefault(name, []).append(value)
    return tuple(
        ColumnSample(
            name, ", ".join(sorted({type(value).__name__ for value in of_name})), _examples(of_name)
        )
        for name, of_name in values.items()
    )


def _arrow(source: Source) -> SourceSample:
    if source.path.is_dir():
        batch = first_rows(source.path, _NUM_RECORDS)
    elif source.format == "arrow":
        batch = first_arrow_rows([source.path], _NUM_RECORDS)
    else:
        batch = first_parquet_rows(source.path, _NUM_RECORDS)
    columns = []
    for field, values in zip(batch.schema, batch.columns, strict=True):
        if is_embedded(field.type):
            columns.append(ColumnSample(field.name, "image bytes", ()))
        else:
            columns.append(ColumnSample(field.name, str(field.type), _examples(values.to_pylist())))
    return SourceSample({}, tuple(columns))


_SAMPLES: Mapping[str, Callable[[Source], SourceSample]] = {
    "csv": _table,
    "tsv": _table,
    "json": _json,
    "jsonl": _json,
    "parquet": _arrow,
    "arrow": _arrow,
    "huggingface": _arrow,
}


def _text_facts(source: Source, encoding: str) -> dict[str, str]:
    compression = compression_of(source.path)
    return {"encoding": encoding} | ({"compression": compression} if compression else {})


def _examples(values: Sequence[Any]) -> tuple[Any, ...]:
    """The first distinct values that are not empty."""
    distinct = {repr(value): value for value in values if value not in (None, "", [])}
    return tuple(islice(distinct.values(), NUM_EXAMPLES))


def guessed_columns(columns: Columns, samples: Sequence[ColumnSample]) -> Columns:
    """The columns that were asked for; where no text was, those that names and values suggest."""
    if columns.text or columns.caption:
        return columns
    names = {sample.name.lower(): sample for sample in reversed(samples)}
    image = next((names[name].name for name in _IMAGE_NAMES if name in names), None) or next(
        (sample.name for sample in samples if _are_images(sample)), None
    )
    image = columns.image or image
    image_id = columns.image_id
    if image_id == Columns.image_id:
        image_id = next((names[name].name for name in _ID_NAMES if name in names), image_id)
    others = [sample for sample in samples if sample.name not in (image, image_id)]
    named = tuple(sample.name for sample in others if sample.name.lower() in _TEXT_NAMES)
    chosen = named or tuple(sample.name for sample in others if _are_captions(sample))[:1]
    return replace(columns, image=image, image_id=image_id, text=chosen)


def _are_images(sample: ColumnSample) -> bool:
    return sample.kind == "image bytes" or _all(sample, _ADDRESS_OR_FILE.fullmatch)


def _are_captions(sample: ColumnSample) -> bool:
    listed = [value if isinstance(value, list) else [value] for value in sample.examples]
    texts = replace(sample, examples=tuple(chain.from_iterable(listed)))
    return _all(texts, lambda text: len(text.split()) >= _CAPTION_WORDS)


def _all(sample: ColumnSample, test: Callable[[str], Any]) -> bool:
    texts = [value for value in sample.examples if isinstance(value, str)]
    return bool(texts) and all(test(text) for text in texts)
