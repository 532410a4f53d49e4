"""Reader of WebDataset tars: adjacent members with the same key are one sample.

`tarfile` lists the members, but stops silently where a tar was cut (measured: at 152 of 320 cut
positions). The end is therefore checked as well: a tar is read whole, or reported as damaged.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from cit_curate.captions import MAX_RAW_CHARS, shown_text
from cit_curate.encodings import checked_encoding, decoded
from cit_curate.errors import ConfigError, DamagedError
from cit_curate.images.suffixes import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, not_allowed
from cit_curate.images.uri import tar_uri
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import Cell, Problem, SourceReader, batches_of
from cit_curate.sources.text.jsonl import FieldError, extra_texts, field_cell, parse_object

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4")
KEY_COLUMN = "__key__"
_IMAGE_COLUMN = "__image__"
MAX_JSON_BYTES = 1 << 20
# A letter of a text has at most 4 bytes.
_MAX_RAW_BYTES = 4 * MAX_RAW_CHARS
# The limit of one read of a header (names and the like), whatever size the tar claims.
MAX_HEADER_BYTES = 1 << 20

_BLOCK = tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20
# Like webdataset, this splits a name at the first dot after the last slash.
_KEY_AND_SUFFIX = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


@dataclass
class _Sample:
    """The members of one key; `problem` says why the sample is unusable, "" for a usable one."""

    key: str
    images: list[str] = field(default_factory=list)
    caption: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    suffixes: list[str] = field(default_factory=list)
    problem: str = ""


def open_webdataset(path: Path, columns: Columns, encoding: str = "") -> SourceReader:
    """Open an uncompressed tar of samples; image bytes are not copied.

    The column `caption` is the `.txt` member, or else the `.json`'s field `caption`. The column
    `__key__` is the sample's key. Every other column is a field of the `.json`. By default,
    `caption` is the text, the image id is the `.json`'s `image_id` or else the key, and the text
    key is the `.json`'s `text_key` or else `caption`. Other members are not opened. A text is in
    the given encoding, or in that of its byte order mark, else in UTF-8.

    Raises:
        ConfigError: The tar is compressed, an image column is chosen, or the encoding is unknown.
    """
    if path.name.lower().endswith(COMPRESSED_SUFFIXES):
        raise ConfigError(
            f"{path} is compressed, and an image in the middle of it cannot be read by itself; "
            "images hardly shrink: unpack it (gunzip, unzstd) and name the .tar"
        )
    if columns.image:
        raise ConfigError(f"{path}: the images of a WebDataset are its members; leave out --image")
    has_text_columns = bool(columns.text or columns.caption)
    if not has_text_columns:
        columns = replace(columns, text_key="text_key", caption="caption")
    columns = replace(columns, image=_IMAGE_COLUMN).with_list_key()
    encoding = checked_encoding(encoding) if encoding else ""
    return SourceReader(
        columns=columns,
        extra_types={name: pa.string() for name in columns.extra},
        read=lambda: batches_of(
            _records(path, columns, encoding, with_default_key=not has_text_columns),
            columns,
            has_names=True,
        ),
        notes=(f"texts are read as {encoding}",) if encoding else (),
    )


def _records(
    path: Path, columns: Columns, encoding: str, *, with_default_key: bool
) -> Iterator[tuple[int, Sequence[Cell] | Problem]]:
    for number, sample in enumerate(_samples(path, encoding), 1):
        try:
            texts = _texts(sample, columns)
        except FieldError as error:
            yield number, _problem(sample, str(error))
            continue
        if sample.problem or not sample.images:
            yield number, _problem(sample, sample.problem)
            continue
        if with_default_key and not texts["text_key"]:
            texts["text_key"] = "caption"
        own_id = columns.image_id != KEY_COLUMN and texts.get(columns.image_id or "")
        name = sample.key if not own_id and columns.image_id in ("image_id", KEY_COLUMN) else None
        yield number, [*texts.values(), *extra_texts(sample.fields, columns), name]


def _texts(sample: _Sample, columns: Columns) -> dict[str, Cell]:
    """The text of each column, or its list of texts."""
    texts: dict[str, Cell] = {}
    for name in columns.names:
        if name == columns.image:
            texts[name] = sample.images[0] if sample.images else None
        elif name == KEY_COLUMN:
            texts[name] = sample.key
        elif name == "caption" and sample.caption is not None:
            texts[name] = sample.caption
        else:
            texts[name] = field_cell(sample.fields, name, columns)
    return texts


def _problem(sample: _Sample, problem: str) -> Problem:
    if problem:
        return Problem("bad_row", f"sample {shown_text(sample.key)}: {problem}")
    others = [suffix for suffix in sample.suffixes if f".{suffix}" in OTHER_IMAGE_SUFFIXES]
    if others:
        return Problem("format_not_allowed", not_allowed(f"{sample.key}.{others[0]}"))
    has = ", ".join(sample.suffixes)
    return Problem("text_without_image", f"sample {shown_text(sample.key)} has only {has[:200]!a}")


def _samples(path: Path, encoding: str) -> Iterator[_Sample]:
    """Runs of members with one key; a key that occurs again is a problem of the later run."""
    sample: _Sample | None = None
    seen: set[str] = set()
    with path.open("rb") as stream:
        for info in _members(path, stream):
            key, suffix = _key_and_suffix(info.name)
            if not key or info.isdir():
                continue
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
                if key in seen:
                    sample.problem = (
                        "it came before; the members of a sample must lie together (make the tar "
                        "with --sort=name)"
                    )
                seen.add(key)
            _add(sample, suffix, info, stream, path, encoding)
    if sample is not None:
        yield sample


def _key_and_suffix(name: str) -> tuple[str, str]:
    match = _KEY_AND_SUFFIX.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else ("", "")


def _add(
    sample: _Sample,
    suffix: str,
    info: tarfile.TarInfo,
    stream: BinaryIO,
    path: Path,
    encoding: str,
) -> None:
    """Add one member to its sample; only `.txt` and `.json` are read."""
    repeated = suffix in sample.suffixes
    sample.suffixes.append(suffix)
    if f".{suffix}" not in IMAGE_SUFFIXES | {".txt", ".json"} or sample.problem:
        return
    if repeated:
        sample.problem = f"it has two .{suffix} members"
    elif not info.isreg() or info.issparse():
        sample.problem = f"its .{suffix} is a link, a device or sparse; only plain files are read"
    elif suffix == "txt":
        stream.seek(info.offset_data)
        raw = stream.read(min(info.size, _MAX_RAW_BYTES))
        text = decoded(raw, encoding, f"{path}, member {info.name!a},")
        sample.caption = text[:MAX_RAW_CHARS].strip()
    elif suffix == "json":
        stream.seek(info.offset_data)
        try:
            if info.size > MAX_JSON_BYTES:
                raise FieldError(f"{info.size:,} bytes, more than {MAX_JSON_BYTES:,}")
            sample.fields = parse_object(
                decoded(stream.read(info.size), encoding, f"{path}, member {info.name!a},")
            )
        except FieldError as error:
            sample.problem = f"its .json is {error}"
    elif sample.images:
        sample.problem = f"it has two images, {', '.join(sample.suffixes)}"
    else:
        # A name from a pax header can differ from that of the member, so it cannot be compared.
        own = "" if "path" in info.pax_headers else info.name
        sample.images.append(tar_uri(path.name, info.offset_data, info.size, own))


class _Headers:
    """The file that `tarfile` reads, with a limit for headers that claim too many bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.tell = stream.tell
        self.seek = stream.seek

    def read(self, size: int) -> bytes:
        """At most `MAX_HEADER_BYTES` at once."""
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._stream.read(size)


def _members(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Every member of a tar, its data skipped.

    Raises:
        DamagedError: The tar is cut or damaged, or has data after its end.
    """
    size = path.stat().st_size
    offset = 0
    try:
        with tarfile.open(
            fileobj=cast(BinaryIO, _Headers(stream)),
            mode="r:",
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            while (info := tar.next()) is not None:
                offset = info.offset
                if info.offset_data + (info.size if info.isreg() else 0) > size:
                    raise tarfile.ReadError(f"{info.name!a} extends past the end of the file")
                yield info
                # `tarfile` keeps every member otherwise; webdataset empties the list too.
                tar.members = []  # type: ignore[attr-defined]
            offset = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise DamagedError(
            f"{path} ({size:,} bytes) is damaged, or cut, near byte {offset:,}: {error}"
        ) from error
    _check_end(path, stream, offset, size)


def _check_end(path: Path, stream: BinaryIO, offset: int, size: int) -> None:
    """Raise unless a tar has only zeros where `tarfile` stopped, as at its proper end."""
    stream.seek(offset)
    if len(block := stream.read(_BLOCK)) < _BLOCK or any(block):
        what = "a damaged header" if len(block) == _BLOCK else "no end-of-archive block"
        raise DamagedError(
            f"{path} ({size:,} bytes) is damaged, cut or still being written: {what} at byte "
            f"{offset:,}"
        )
    while chunk := stream.read(_CHUNK_BYTES):
        if chunk.strip(b"\0"):
            raise DamagedError(
                f"{path} has data after its end at byte {offset:,}, as when tars are joined with "
                "cat; join them with tar --concatenate"
            )
