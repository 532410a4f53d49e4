"""A look at the images of a build: a sample of each source's is found, opened and decoded.

Without it, a wrong image root shows only when training starts. The sample is spread over all rows,
since often only some folders of a table are missing. It also decides whether paths are repaired:
the file of each image would be asked for only where the sample shows the need, because that takes
long for millions of paths on a network disk.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from cit_curate.errors import BadInputError
from cit_curate.images.decoders import decoders
from cit_curate.images.presence import hint_for, shown_file
from cit_curate.images.read import ImageRejected, read_image_bytes
from cit_curate.images.root import ImageRoot, image_root
from cit_curate.images.uri import ImageUri, parse_image_uri
from cit_curate.pool.build.blocks import Block
from cit_curate.pool.build.summary import BuildReport
from cit_curate.records import Int64
from cit_curate.sources.image_paths import spelling_on_disk
from cit_curate.sources.source import Source

# Rows whose images are tried: of one source, and of all of a build with very many sources.
MAX_TRIED = 1_000
MAX_TRIED_IN_ALL = 10_000
_MIN_TRIED = 10
_SEED = 0
_MAX_THREADS = 8
_MAX_WARNINGS = 10


@dataclass(frozen=True)
class Tried:
    """What became of one image.

    Attributes:
        image_uri: Its uri as it is written.
        spelled: Its uri as it is there; None if it is not there.
        problem: Why it does not open; "" if it does, or was not tried.
        is_opened: Whether it was opened and decoded. An image in a cell of a table is not: reading
            one takes reading thousands.
    """

    image_uri: str
    spelled: str | None
    problem: str = ""
    is_opened: bool = False


@dataclass(frozen=True)
class ImageLook:
    """What the look at one source found.

    Attributes:
        source: The source.
        root: Where its images lie.
        num_rows: Its rows that name an image file.
        num_tried_rows: Those of them whose images were tried.
        pair_share: The share of their pairs whose image is there.
        tried: Each image that was tried, in the order of the rows.
    """

    source: Source
    root: ImageRoot
    num_rows: int
    num_tried_rows: int
    pair_share: float
    tried: tuple[Tried, ...]

    @property
    def missing(self) -> list[Tried]:
        """The images that are not there."""
        return [tried for tried in self.tried if tried.spelled is None]

    @property
    def broken(self) -> list[Tried]:
        """The images that are there and do not open."""
        return [tried for tried in self.tried if tried.problem]

    @property
    def respelled(self) -> list[Tried]:
        """The images that are there under another spelling of their path."""
        return [tried for tried in self.tried if tried.spelled not in (None, tried.image_uri)]

    @property
    def first_missing(self) -> str:
        """The first image that is not there, in full, and what is there instead."""
        uri = self.missing[0].image_uri
        hint = hint_for(self.root, uri)
        return shown_file(self.root, uri) + (f" ({hint})" if hint else "")


def look_at_images(sources: Sequence[Source], blocks: Sequence[Block]) -> list[ImageLook]:
    """Look at a sample of the images of each source that names image files.

    Args:
        sources: The sources.
        blocks: The blocks of all sources.

    Raises:
        ResourceError: The network failed at every try.
        PeerLostError: A decoder was killed.
    """
    by_source: dict[str, list[Block]] = {source.name: [] for source in sources}
    for block in blocks:
        by_source[block.source].append(block)
    most = max(min(MAX_TRIED, MAX_TRIED_IN_ALL // len(sources)), _MIN_TRIED)
    looks = []
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        for number, source in enumerate(sources):
            of_source = by_source[source.name]
            num_rows = sum(sum(block.batch_images) for block in of_source)
            if not num_rows:
                continue
            uris, num_texts = [], []
            for uri, texts in _sampled(of_source, sampled_rows(num_rows, most, number)):
                uris.append(uri)
                num_texts.append(texts)
            root = image_root(source.root_url or str(source.image_root), pool_url=None)
            distinct = list(dict.fromkeys(uris))
            results = threads.map(partial(_try, source, root), distinct)
            tried = dict(zip(distinct, results, strict=True))
            is_there = [tried[uri].spelled is not None for uri in uris]
            share = float(np.dot(is_there, num_texts) / sum(num_texts))
            looks.append(ImageLook(source, root, num_rows, len(uris), share, tuple(tried.values())))
    return looks


def sampled_rows(num_rows: int, most: int, number: int) -> Int64:
    """int64, ascending: at most `most` of `num_rows` rows, one at random of each equal stretch.

    `number` is the source's, for the seed.
    """
    if num_rows <= most:
        return np.arange(num_rows)
    within = np.random.default_rng((_SEED, number)).random(most)
    return np.floor((np.arange(most) + within) * num_rows / most).astype(np.int64)


def _sampled(blocks: Sequence[Block], rows: Int64) -> Iterator[tuple[str, int]]:
    """The uri and the number of texts of some rows, which count those with an image file."""
    first = 0
    for block in blocks:
        for batch, count in enumerate(block.batch_images):
            low, high = np.searchsorted(rows, [first, first + count])
            if low < high:
                uris, num_texts = block.local_images(batch)
                for row in (rows[low:high] - first).tolist():
                    yield uris[row].as_py(), int(num_texts[row])
            first += count


def _try(source: Source, root: ImageRoot, image_uri: str) -> Tried:
    archived = _archived(image_uri)
    if source.url and archived and Path(archived.path).name == source.path.name:
        return Tried(image_uri, image_uri)  # It lies in the source, which was just read.
    spelled = spelling_on_disk(root, image_uri)
    if spelled is None or (archived and archived.scheme in ("arrow", "parquet")):
        return Tried(image_uri, spelled)
    try:
        decoders().shard_image(read_image_bytes(root, spelled))
    except ImageRejected as error:
        if archived and error.reason in ("missing_image", "unreadable_archive"):
            return Tried(image_uri, None)
        return Tried(image_uri, spelled, problem=str(error))
    return Tried(image_uri, spelled, is_opened=True)


def _archived(image_uri: str) -> ImageUri | None:
    try:
        return parse_image_uri(image_uri)
    except ValueError:
        return None


def check_some_are_there(looks: Sequence[ImageLook]) -> None:
    """Raise if no tried image of a source is there.

    Of YFCC, a list says which images are on some disk; whether it is this one is a warning.

    Raises:
        BadInputError: The message names the first, and what is there instead.
    """
    for look in looks:
        if look.pair_share or look.source.yfcc:
            continue
        what = "none of its images is there"
        if look.num_tried_rows < look.num_rows:
            what = f"none of {_images(len(look.tried))}, spread over all rows, is there"
        raise BadInputError(
            f"{look.source.path}: {what}; the first is {look.first_missing}; say where image paths "
            "start with --image-root, or build the pool all the same with --allow-missing-images"
        )


def shares_there(looks: Sequence[ImageLook]) -> dict[str, float]:
    """The share of the pairs whose image is there, by the source's name; YFCC's lists say that."""
    return {look.source.name: look.pair_share for look in looks if not look.source.yfcc}


def to_respell(looks: Sequence[ImageLook]) -> dict[str, ImageRoot]:
    """The image root of each source whose paths are to be repaired, by the source's name."""
    return {look.source.name: look.root for look in looks if look.respelled}


def with_looks(
    report: BuildReport, looks: Sequence[ImageLook], repaired: Mapping[str, int]
) -> BuildReport:
    """A report with what was found of images.

    Args:
        report: The report of the build.
        looks: The looks.
        repaired: The number of repaired paths of each source.
    """
    num_in_rows = report.counts.get("num_paths_repaired", 0)
    counts = {
        "num_images_tried": sum(len(look.tried) for look in looks),
        "num_images_found": sum(len(look.tried) - len(look.missing) for look in looks),
        "num_images_opened": sum(tried.is_opened for look in looks for tried in look.tried),
        "num_paths_repaired": num_in_rows + sum(repaired.values()),
    }
    notes = [note for look in looks for note in _respelled_note(look, repaired)]
    warnings = [warning for look in looks for warning in _warnings(look)]
    if len(warnings) > _MAX_WARNINGS:
        more = f"and {len(warnings) - _MAX_WARNINGS:,} more warnings of images in other sources"
        warnings = [*warnings[:_MAX_WARNINGS], more]
    return replace(
        report,
        counts={**report.counts, **counts},
        notes=(*report.notes, *([_found_note(looks, counts)] if looks else []), *notes),
        warnings=(*report.warnings, *warnings),
    )


def _found_note(looks: Sequence[ImageLook], counts: Mapping[str, int]) -> str:
    """How many images were tried, and what became of them."""
    found = f"{counts['num_images_found']:,} are there"
    if counts["num_images_opened"] or any(look.broken for look in looks):
        found += f", {counts['num_images_opened']:,} of them were opened"
    tried = _images(counts["num_images_tried"])
    num_rows = sum(look.num_rows for look in looks)
    num_tried_rows = sum(look.num_tried_rows for look in looks)
    if num_tried_rows == num_rows:
        return f"looked for {tried}: {found}"
    return (
        f"looked for {tried} of {num_tried_rows:,} rows, spread over all {num_rows:,}: {found}; "
        "the pairs with an image file are counted in proportion"
    )


def _respelled_note(look: ImageLook, repaired: Mapping[str, int]) -> Iterator[str]:
    if count := repaired.get(look.source.name):
        first = look.respelled[0]
        paths = "1 path is" if count == 1 else f"{count:,} paths are"
        yield (
            f"{look.source.name}: {paths} not there as written and mended, such as "
            f"{first.image_uri!a} to {first.spelled!a}"
        )


def _warnings(look: ImageLook) -> Iterator[str]:
    name, num_tried = look.source.name, len(look.tried)
    of = f"of {_images(num_tried)}" + (
        "" if look.num_tried_rows == look.num_rows else " that were tried"
    )
    if look.missing:
        are = "is" if len(look.missing) == 1 else "are"
        yield f"{name}: {len(look.missing):,} {of} {are} not there; the first: {look.first_missing}"
    if look.broken:
        first = look.broken[0]
        do = "does" if len(look.broken) == 1 else "do"
        yield (
            f"{name}: {len(look.broken):,} {of} {do} not open; the first: "
            f"{shown_file(look.root, first.image_uri)}: {first.problem}"
        )


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"
