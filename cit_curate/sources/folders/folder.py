"""Reader of a folder of images, each with a `.txt` of the same name beside it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from unicodedata import normalize

from cit_curate.captions import MAX_RAW_CHARS
from cit_curate.config import READ_AS_FOUND, ReadConfig
from cit_curate.encodings import HEAD_BYTES, checked_encoding, decoded, encoding_of
from cit_curate.errors import ConfigError
from cit_curate.images.suffixes import (
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    not_allowed,
    suffix_of,
)
from cit_curate.sources.columns import Columns
from cit_curate.sources.folders.imagefolder import open_imagefolder
from cit_curate.sources.folders.metadata import metadata_files
from cit_curate.sources.folders.walk import Listing, walk
from cit_curate.sources.rows import Note, Problem, ReadLog, SourceReader, SourceRows, batches_of

FOLDER_COLUMNS = Columns(image_id="image_id", image="image", text=("caption",))
_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".token")
# A letter of a text has at most 4 bytes.
_MAX_RAW_BYTES = 4 * MAX_RAW_CHARS

_Record = tuple[int, Sequence[str | None] | Problem]


def open_folder(
    path: Path,
    columns: Columns = FOLDER_COLUMNS,
    *,
    root: Path | None = None,
    reading: ReadConfig = READ_AS_FOUND,
) -> SourceReader:
    """Open a folder of images.

    The caption is the whole `.txt` beside an image, stripped, with text key `caption`. Where there
    is a metadata file that names images, that is read instead (`imagefolder`). The image id is the
    path below the folder, without its suffix; where several images have one name before the suffix,
    all but the first keep theirs. Folders are read in order of name; hidden ones are left out,
    links to folders followed (`walk`).

    Args:
        path: The folder, links resolved.
        columns: The columns of metadata files; without those, none is needed.
        root: The folder that images must lie in, and that their paths start from; default the
            folder itself.
        reading: How to read the texts.

    Raises:
        ConfigError: The folder lies outside of `root`; or see `open_imagefolder`.
    """
    root = root or path
    if not path.is_relative_to(root):
        raise ConfigError(
            f"{path} lies outside of --image-root {root}; the image root of a folder of images is "
            "that folder or one above it"
        )
    encoding = checked_encoding(reading.encoding) if reading.encoding else ""
    if files := metadata_files(path, root, columns, reading):
        return open_imagefolder(path, files, columns, root=root, reading=reading)
    if columns.extra:
        raise ConfigError(f"{path} is a folder of images; it has no columns for --extra")
    below_root = path.relative_to(root).as_posix()
    prefix = "" if below_root == "." else f"{below_root}/"
    return SourceReader(
        columns=FOLDER_COLUMNS,
        extra_types={},
        read=lambda: _read(path, root, prefix, encoding),
        notes=(f"texts are read as {encoding}",) if encoding else (),
    )


def no_captions(path: Path) -> str:
    """The end of a message about a folder whose images have no caption at all."""
    shown = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in shown if entry.is_dir())
    tables = sorted(entry.name for entry in shown if suffix_of(entry.name) in _TABLE_SUFFIXES)
    advice = (
        "; its images have no captions: put NAME.txt beside each NAME.jpg, or a metadata.jsonl, "
        ".csv or .parquet with the columns file_name and text into the folder"
    )
    if classes:
        named = ", ".join(map(ascii, classes[:3])) + (", …" if len(classes) > 3 else "")
        advice += (
            f"; if its folders ({named}) are classes, it is a data set to evaluate on (cit eval "
            f"MODEL --data {path}), not a pool"
        )
    if tables:
        advice += (
            f"; if {tables[0]!a} names them with their captions, build the pool from it: cit pool "
            f"build {path / tables[0]} --image COLUMN --text COLUMN --image-root {path}"
        )
    return advice


def _read(path: Path, root: Path, prefix: str, encoding: str) -> Iterator[SourceRows]:
    log = ReadLog()
    records = _records(path, root, prefix, encoding, log)
    return batches_of(records, FOLDER_COLUMNS, log, has_names=True)


def _records(path: Path, root: Path, prefix: str, encoding: str, log: ReadLog) -> Iterator[_Record]:
    number = 0
    for listing in walk(path, root):
        log_others(listing, (".txt",), log)
        taken: set[str] = set()
        for relative, found in _images(listing, encoding):
            number += 1
            if isinstance(found, Problem):
                yield number, found
                continue
            caption, mark = found
            if mark:
                log.notes.append(Note(number, "marked_encoding", mark))
            stem = os.path.splitext(relative)[0]  # noqa: PTH122
            # A whole name is taken by no earlier image: a name sorts before all it begins.
            image_id = relative if stem in taken else stem
            taken.add(image_id)
            yield number, (None, prefix + relative, caption, image_id)


def log_others(listing: Listing, texts: Sequence[str], log: ReadLog) -> None:
    """Count the files of a folder that are neither images nor have a suffix in `texts`."""
    for repeat in listing.repeats:
        log.notes.append(Note(1, "link_not_followed", repeat))
    known = IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES | {*texts}
    others = [name for name in listing.names if suffix_of(name) not in known]
    log.notes += [Note(1, "other_file", listing.prefix + name) for name in others]


def _images(listing: Listing, encoding: str) -> Iterator[tuple[str, tuple[str, str] | Problem]]:
    """The path of each image or lonely text, and its caption and the mark of its encoding."""
    for reason, detail in listing.problems:
        yield listing.prefix, Problem(reason, detail, is_tolerated=True)
    texts = {name.rpartition(".")[0]: name for name in listing.names if suffix_of(name) == ".txt"}
    # The two names of a pair may be in different Unicode forms, which look the same.
    by_form = {normalize("NFC", stem): name for stem, name in texts.items()}
    used: set[str] = set()
    for name in listing.names:
        suffix, stem, relative = suffix_of(name), name.rpartition(".")[0], listing.prefix + name
        if suffix not in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES:
            continue
        text = texts.get(stem) or by_form.get(normalize("NFC", stem))
        if text is not None:
            used.add(text)
        if suffix in OTHER_IMAGE_SUFFIXES:
            yield relative, Problem("format_not_allowed", not_allowed(relative))
        elif text is None:
            detail = f"{relative!a} has no text: there is no {stem + '.txt'!a} beside it"
            yield relative, Problem("image_without_text", detail)
        else:
            yield relative, _caption(listing.path / text, relative, encoding)
    for name in texts.values():
        if name not in used:
            detail = f"{listing.prefix + name!a} has no image: none of its name is beside it"
            yield listing.prefix + name, Problem("text_without_image", detail)


def _caption(path: Path, image: str, encoding: str) -> tuple[str, str] | Problem:
    """The text of a file, and the encoding that its mark told; the images's problem otherwise.

    Raises:
        ConfigError: It looks like UTF-16 or UTF-32 without a mark.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_RAW_BYTES)
    except FileNotFoundError:
        detail = f"{image!a} has no text: {path.name!a} is a link that leads nowhere"
        return Problem("image_without_text", detail)
    mark = "" if encoding else encoding_of(content[:HEAD_BYTES], path)
    text = decoded(content, encoding or mark, path)[:MAX_RAW_CHARS]
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    return text, "" if mark.startswith("utf-8") else mark
