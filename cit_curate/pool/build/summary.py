"""The report of a build (`build.json`): every line accounted for, what was mended or guessed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from cit_curate.captions import replace_bad_text, shown_text
from cit_curate.carried import carried_note
from cit_curate.encodings import likely_encoding
from cit_curate.errors import DamagedError
from cit_curate.images.suffixes import ALLOWED_FORMATS
from cit_curate.pool.build.blocks import Noted
from cit_curate.pool.build.numbering import Numbered
from cit_curate.sources.rows import SourceReader
from cit_curate.sources.source import Source
from cit_curate.storage.durable import read_json, write_sealed

BUILD_REPORT_NAME = "build.json"


@dataclass(frozen=True)
class BuildReport:
    """What a build found beside pairs and rejects.

    Attributes:
        counts: Numbers by name, such as `num_lines`, `num_rows_mended` and `num_text_fixed`.
        notes: What was guessed or mended, a sentence each, with the option that says otherwise.
        warnings: What to look at before the pool is used, a sentence each.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def write_build_report(folder: Path, report: BuildReport) -> None:
    """Write the report into a pool's folder."""
    write_sealed(folder / BUILD_REPORT_NAME, asdict(report))


def read_build_report(folder: Path) -> BuildReport:
    """The report of a pool; an empty one for pools of older versions and for subsets.

    Raises:
        DamagedError: It is damaged.
    """
    path = folder / BUILD_REPORT_NAME
    if not path.is_file():
        return BuildReport()
    value = read_json(path)
    try:
        return BuildReport(dict(value["counts"]), tuple(value["notes"]), tuple(value["warnings"]))
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {error!r}; remove it") from error


# A reason that takes a larger share of the records is no accident.
LARGE_SHARE = 0.1
# Reasons that lose a text which somebody wrote, and what to do about each.
_ADVICE = {
    "duplicate_key": "the lines repeat ids of images",
    "text_without_image": "texts whose image was not found beside them; are they of one name?",
    "column_count": "the rows have another number of cells than the header; see --delimiter and "
    "--quoting",
    "bad_row": "the rows could not be read; the rejects say why",
    "missing_image": "there is no such file; the rejects name each",
    "path_escapes": "the images lie outside of the image root; see --image-root",
    "format_not_allowed": f"allowed are {ALLOWED_FORMATS}; convert the others, such as to PNG",
}
# A record of more lines has probably swallowed others.
_LONG_RECORD_LINES = 20
_SHOWN_CAPTIONS = 2
# Of more captions of one image and text key, the id is probably that of something else.
_MANY_CAPTIONS = 1000
_SHOWN_FILES = 3
_SHOWN_DAMAGES = 5


class SourceFound(NamedTuple):
    """What was found in one source.

    Attributes:
        num_records: Its records.
        num_texts: Its texts.
        reject_lines: The lines of rejected records beyond the first of each.
        counts: See `ReadLog.counts`.
        notes: Its notes.
        damage: Why it was left out, "" unless it was.
    """

    num_records: int
    num_texts: int
    reject_lines: int
    counts: Mapping[str, int]
    notes: Mapping[str, Noted]
    damage: str = ""


def guesses_of(readers: Sequence[SourceReader]) -> Iterator[tuple[str, ...]]:
    """For each source, a sentence for each guess; a cast only for the first source that has it."""
    told: set[tuple[str, pa.DataType]] = set()
    for reader in readers:
        notes = [*reader.notes]
        if reader.columns is not None and reader.columns.image_id is None:
            notes.append(
                "there is no column image_id: ids are SOURCE/ROW (--image-id names another column)"
            )
        for name, kind in reader.extra_types.items():
            if (name, kind) not in told and (note := carried_note(kind)):
                notes.append(f"--extra {name} is {kind}, {note}")
            told.add((name, kind))
        yield tuple(notes)


def summarised(
    sources: Sequence[Source],
    found: Sequence[SourceFound],
    guesses: Sequence[Sequence[str]],
    reasons: Mapping[str, int],
    firsts: Mapping[str, str],
    numbered: Numbered,
) -> BuildReport:
    """The report of a build.

    Args:
        sources: The sources.
        found: What was found in each of them.
        guesses: The guesses about each of them, `SourceReader.notes`.
        reasons: The number of rejects of each reason.
        firsts: The position and the detail of the first reject of each reason.
        numbered: What became of the captions that repeat a text key of their image.

    Raises:
        AssertionError: A text file has lines that nobody accounts for; a bug.
    """
    counts: Counter[str] = Counter(num_rows_mended=0, num_text_fixed=0)
    notes: list[str] = []
    warnings: list[str] = []
    for source, of_source, guessed in zip(sources, found, guesses, strict=True):
        notes += [f"{source.name}: {guess}" for guess in guessed]
        counts.update(_line_counts(source, of_source))
        notes += _noted(source, of_source)
        warnings += _warned(source, of_source)
        for kind, name in _COUNTED.items():
            if kind in of_source.notes:
                counts[name] += of_source.notes[kind].count
    damages = [of_source.damage for of_source in found if of_source.damage]
    warnings += [
        f"a source is damaged and left out: {damage}" for damage in damages[:_SHOWN_DAMAGES]
    ]
    if len(damages) > _SHOWN_DAMAGES:
        warnings.append(f"{len(damages):,} sources are damaged and left out; the rejects name all")
    counts["num_sources_damaged"] = len(damages)
    num_records = sum(of_source.num_records for of_source in found)
    for reason, advice in _ADVICE.items():
        if reasons.get(reason, 0) > LARGE_SHARE * num_records:
            share = reasons[reason] / num_records
            warnings.append(
                f"{reasons[reason]:,} of {num_records:,} records ({share:.0%}) are rejected as "
                f"{reason}: {advice} (first: {firsts.get(reason, '')})"
            )
    counts.update(_numbered_counts(numbered))
    notes += _numbered_notes(numbered)
    warnings += _numbered_warnings(numbered)
    kept = {name: count for name, count in counts.items() if count or name in _ALWAYS}
    return BuildReport(kept, tuple(notes), tuple(warnings))


_COUNTED = {
    "mended_quotes": "num_rows_mended",
    "mended_text": "num_text_fixed",
    "cut_text": "num_texts_cut",
    "spanning_lines": "num_records_spanning_lines",
    "link_not_followed": "num_links_not_followed",
    "other_file": "num_other_files",
    "respelled_path": "num_paths_repaired",
}
_ALWAYS = ("num_rows_mended", "num_text_fixed")


def _line_counts(source: Source, found: SourceFound) -> Counter[str]:
    """The lines of a text file, of which each is a record's, a header's or blank."""
    lines = found.counts.get("lines", 0)
    if not lines:
        return Counter()
    spanning = found.notes.get("spanning_lines")
    further = (spanning.num_lines - spanning.count if spanning else 0) + found.reject_lines
    header, blank = found.counts.get("header_lines", 0), found.counts.get("blank_lines", 0)
    accounted = found.num_records + further + header + blank
    assert lines == accounted, f"{source.path}: {accounted:,} of {lines:,} lines are accounted for"
    return Counter(num_lines=lines, num_header_lines=header, num_blank_lines=blank)


def _noted(source: Source, found: SourceFound) -> Iterator[str]:
    notes = found.notes
    if mended := notes.get("mended_quotes"):
        yield (
            f"{source.name}: {_number(mended.count, 'row')} mended, the first in line "
            f"{mended.examples[0].row}: a quote that nothing closes is read as a letter (--quoting "
            "csv reads quotes strictly)"
        )
    if spanning := notes.get("spanning_lines"):
        yield (
            f"{source.name}: {_number(spanning.count, 'record')} "
            f"{'spans' if spanning.count == 1 else 'span'} lines, the longest "
            f"{spanning.longest.num_lines} (from line {spanning.longest.row})"
        )
    if cut := notes.get("cut_text"):
        yield (
            f"{source.name}: {_number(cut.count, 'caption')} cut at the longest length, the first "
            f"in row {cut.examples[0].row}"
        )
    yield from _noted_in_folder(source, notes)


def _noted_in_folder(source: Source, notes: Mapping[str, Noted]) -> Iterator[str]:
    if marked := notes.get("marked_encoding"):
        names = ", ".join(dict.fromkeys(note.detail for note in marked.examples))
        yield f"{source.name}: {_number(marked.count, 'text')} read as {names} by the mark in it"
    if respelled := notes.get("respelled_path"):
        yield (
            f"{source.name}: {_number(respelled.count, 'path')} not there as written and mended, "
            f"the first {respelled.examples[0].detail!a}"
        )
    if links := notes.get("link_not_followed"):
        yield (
            f"{source.name}: {_number(links.count, 'link')} not followed, since the folder is read "
            f"under another path; the first: {links.examples[0].detail}"
        )
    if others := notes.get("other_file"):
        shown = ", ".join(f"{note.detail!a}" for note in others.examples[:_SHOWN_FILES])
        yield f"{source.name}: {_number(others.count, 'other file')} not read, such as {shown}"


def _warned(source: Source, found: SourceFound) -> Iterator[str]:
    spanning = found.notes.get("spanning_lines")
    if spanning and spanning.longest.num_lines > _LONG_RECORD_LINES:
        yield (
            f"{source.name}: a record of {spanning.longest.num_lines} lines begins in line "
            f"{spanning.longest.row}; if its quote is a stray one, leave out --quoting"
        )
    mended = found.notes.get("mended_text")
    if mended:
        raw = "\n".join(note.detail for note in mended.examples)
        likely = likely_encoding(raw.encode("utf-8", "surrogateescape"))
        shown = ", ".join(
            shown_text(replace_bad_text(note.detail)[0])
            for note in mended.examples[:_SHOWN_CAPTIONS]
        )
        yield (
            f"{source.name}: {mended.count:,} of {found.num_texts:,} captions have bytes that are "
            f"no {source.reading.encoding or 'UTF-8'}, and were mended with U+FFFD; the first in "
            f"row {mended.examples[0].row}: {shown}; they look like --encoding {likely}"
        )


def _numbered_counts(numbered: Numbered) -> Counter[str]:
    renamed = numbered.renamed.num_images if numbered.renamed else 0
    return Counter(num_captions_numbered=numbered.num_captions, num_images_renamed=renamed)


def _numbered_notes(numbered: Numbered) -> Iterator[str]:
    if numbered.num_captions:
        yield (
            f"{_number(numbered.num_captions, 'caption')} numbered, since images have several of "
            f"one text key; the most: {numbered.most:,}, of {numbered.most_key}"
        )
    if renamed := numbered.renamed:
        yield (
            f"{_number(renamed.num_images, 'image')} in {_number(renamed.num_sources, 'source')} "
            "with the name of an image in an earlier source: the source's name now begins the id, "
            f"as in {renamed.first}"
        )


def _numbered_warnings(numbered: Numbered) -> Iterator[str]:
    if numbered.most > _MANY_CAPTIONS:
        yield (
            f"{numbered.most_key} stands for {numbered.most:,} captions of one image; does "
            "--image-id name the column of image ids?"
        )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
