"""The commands `cit pool build|info|verify|repair`, and what they print."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import tyro
from rich.progress import TaskID

from cit_curate.config import (
    READ_AS_FOUND,
    Cleaning,
    EngineConfig,
    Format,
    ReadConfig,
    YfccFormat,
)
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.printing import print_json
from cit_curate.storage.findings import print_findings
from cit_curate.storage.remote import remote_url
from cit_curate.storage.upload import check_empty, upload_folder
from cit_curate.terminal import count_and_rate, print_line, progress_bar

if TYPE_CHECKING:  # they import Arrow and DuckDB, which `--help` must not wait for
    from cit_curate.pool.pool import Pool
    from cit_curate.sources.columns import Columns
    from cit_curate.sources.source import Source

logger = logging.getLogger(__name__)


def build(
    sources: tyro.conf.Positional[tuple[Path, ...]],
    out: Path | None = None,
    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = EngineConfig(),  # noqa: B008 - frozen
    reading: tyro.conf.OmitArgPrefixes[ReadConfig] = READ_AS_FOUND,
    *,
    format: Format | YfccFormat = "auto",
    image_id: str = "image_id",
    image: str = "",
    text: str = "",
    text_key: str = "",
    caption: str = "",
    extra: str = "",
    image_root: Path | None = None,
    clean: Cleaning = "none",
    name: str = "",
    metadata: Path | None = None,
    image_ids: Path | None = None,
    subset: Path | None = None,
    reference_empty_tags: bool = False,
    max_reject_ratio: float | None = None,
    allow_missing_images: bool = False,
    overwrite: bool = False,
    peek: bool = False,
    json: bool = False,
) -> None:
    """Build a pool from tables, JSON lines, WebDataset tars, Hugging Face datasets or images.

    A wide table has a row per image: --text title,desc,tag. A long one has a row per text:
    --text-key KIND --caption TEXT. A WebDataset and a folder of images with .txt files need
    neither. Images stay where they are, also those in tars, zips, Arrow and Parquet files.
    YFCC100M has flags of its own. After a kill, the same command resumes. What a file is, and how
    it would be read, --peek tells.

        cit pool build UNKNOWN-FILE --peek
        cit pool build captions.csv --image-id id --image path --text title,desc --out POOL
        cit pool build PICTURES --out POOL
        cit pool build lines.jsonl --image-id id --image file --text caption --out POOL
        cit pool build "shards/{00000..00123}.tar" --out POOL
        cit pool build shards --text caption,alt --image-id __key__ --out POOL
        cit pool build saved_dataset --text caption --out POOL
        cit pool build --format yfcc15m --metadata yfcc100m_dataset.txt --image-ids IDS.npy
            --subset yfcc100m_subset_data.tsv --image-root DIR --out POOL

    An image column may name members of zips: zip://photos/01.zip#cat.jpg

    Args:
        sources: Files, folders or {000..123} patterns, in the order of the pool; none for
            YFCC100M.
        out: Folder of the new pool; not for --peek.
        engine: The workers that read the sources.
        reading: How the sources are read.
        format: How to read the sources; auto goes by the suffix, or by what a folder holds.
        image_id: Column with the image's id.
        image: Column with the image's path or URL; empty: no images, or those that lie inside.
        text: Wide tables: columns with text or lists of texts, separated by commas.
        text_key: Long tables: column with the text key.
        caption: Long tables: column with the text, or a list of texts.
        extra: Further columns to carry along, separated by commas; COLUMN=NAME stores one as NAME.
        image_root: Where image paths start, and what links may not leave; default the folder of
            images, or the table's own folder.
        clean: Cleaning of the texts: none, or yfcc (URL-decoded, without tags and links).
        name: The pool's name; default the folder's.
        metadata: YFCC: yfcc100m_dataset.txt, unpacked.
        image_ids: YFCC: NumPy file with the ids of the images on disk.
        subset: YFCC15M: yfcc100m_subset_data.tsv, the list of its images.
        reference_empty_tags: YFCC: keep the tag text "," of images without tags, as CiT did.
        max_reject_ratio: Largest share of malformed rows; default 0.01, and at most 99 in a row.
        allow_missing_images: Build the pool even if none of a source's images is there (yet).
        overwrite: Replace an existing pool.
        peek: Show how the sources would be read, from their beginnings, and build nothing.
        json: Print one JSON document instead of a summary.
    """
    from cit_curate.pool.build.ingest import build_pool
    from cit_curate.pool.build.shown import report_of, show_pool
    from cit_curate.pool.format import CATALOG_NAME, MANIFEST_NAME
    from cit_curate.pool.pool import Pool
    from cit_curate.sources.columns import Columns, parse_extra
    from cit_curate.sources.source import find_sources, yfcc_source
    from cit_curate.sources.yfcc.source import YfccSource

    if out is None and not peek:
        raise ConfigError("--out is missing: the folder of the new pool")
    url = None if out is None else remote_url(out)
    if url is not None:
        if overwrite:
            raise ConfigError(
                f"{url} is in a store, where nothing is overwritten; choose an empty folder, or "
                "remove the old pool with the store's own tools"
            )
        if format == "yfcc15m" or format == "yfcc100m":
            raise ConfigError(
                f"a YFCC pool is built on a disk, where a kill loses nothing; then copy its folder "
                f"to {url} with the store's own tools, pool.json last"
            )
        check_empty(url)
    columns: Columns | None = None
    if format == "yfcc15m" or format == "yfcc100m":
        _refuse_table_flags(sources, image_id, image, text, text_key, caption, extra)
        if metadata is None or image_ids is None:
            raise ConfigError(f"--format {format} needs --metadata FILE and --image-ids FILE")
        files = YfccSource(
            format=format,
            metadata=metadata,
            image_ids=image_ids,
            subset=subset,
            image_root=image_root,
            reference_empty_tags=reference_empty_tags,
        )
        opened_sources, clean = [yfcc_source(files)], "yfcc"
    else:
        if metadata or image_ids or subset or reference_empty_tags:
            raise ConfigError(
                "--metadata, --image-ids, --subset and --reference-empty-tags are for --format "
                "yfcc15m and yfcc100m"
            )
        extra_columns, extra_names = parse_extra(extra)
        columns = Columns(
            image_id=image_id,
            image=image or None,
            text=_names(text),
            text_key=text_key or None,
            caption=caption or None,
            extra=extra_columns,
            extra_names=extra_names,
        )
        if peek and format == "auto":
            format = _format_to_peek(sources)
        opened_sources = find_sources(
            sources, format=format, image_root=image_root, reading=reading
        )
    if peek:
        flags = [] if format == "auto" else ["--format", format]
        flags += [] if image_root is None else ["--image-root", str(image_root)]
        _show_peek(opened_sources, columns, flags, as_json=json)
        return
    assert out is not None
    with _shown_progress() as progress, _for_store(out, url) as folder:
        manifest = build_pool(
            opened_sources,
            folder,
            columns=columns,
            clean=clean,
            engine=engine,
            name=name or None,
            max_reject_ratio=max_reject_ratio,
            allow_missing_images=allow_missing_images,
            overwrite=overwrite,
            progress=progress,
        )
        pool = Pool(folder, manifest)
        if url is not None:
            # It names files on this disk, and can be rebuilt from the others.
            (folder / CATALOG_NAME).unlink()
            upload_folder(
                folder,
                url,
                last=MANIFEST_NAME,
                progress=lambda done, total: progress("uploading MB", done // 10**6, done / total),
            )
            pool = Pool.open(url)
    for warning in report_of(pool).warnings:
        logger.warning("%s", warning)
    show_pool(pool, as_json=json)
    _warn_of_local_images(pool)


def _format_to_peek(sources: Sequence[Path]) -> Format:
    """The format to show one file in, if its suffix tells none."""
    from cit_curate.sources.folders.contents import format_of_name
    from cit_curate.sources.sample import sniffed_format

    if len(sources) != 1 or not sources[0].is_file() or format_of_name(sources[0].name):
        return "auto"
    return sniffed_format(sources[0])


def _show_peek(
    sources: Sequence["Source"],
    columns: "Columns | None",
    flags: Sequence[str],
    *,
    as_json: bool,
) -> None:
    from cit_curate.pool.build.peek import peek

    if columns is None:
        raise ConfigError("--peek is for unknown files; the columns of YFCC100M are known")
    peeks, num_sources = peek(sources, columns, flags)
    if as_json:
        print_json({"num_sources": num_sources, "sources": [each.as_json() for each in peeks]})
        return
    for each in peeks:
        for line in each.lines():
            print_line(line)
    if num_sources > len(peeks):
        print_line(f"and {num_sources - len(peeks):,} more sources")


@contextmanager
def _for_store(out: Path, url: str | None) -> Iterator[Path]:
    """The folder to build in: `out`, or a temporary one when the pool goes to a store.

    Raises:
        BadInputError: The block's error; the list of rejects is then in the current folder.
    """
    if url is None:
        yield out
        return
    from cit_curate.pool.build.place import rejects_path

    with tempfile.TemporaryDirectory(prefix="cit-pool-") as folder:
        rejects = rejects_path(Path(folder) / out.name)
        try:
            yield Path(folder) / out.name
        except BadInputError as error:
            if not rejects.is_file():
                raise
            kept = shutil.move(rejects, Path.cwd() / rejects.name)
            raise BadInputError(str(error).replace(str(rejects), str(kept))) from error


def _warn_of_local_images(pool: "Pool") -> None:
    """Warn if a pool in a store has images that stay on this disk."""
    roots = [source.image_root for source in pool.sources if remote_url(source.image_root) is None]
    if remote_url(pool.location) is not None and pool.has_images and roots:
        logger.warning(
            "%s has the captions, its images stay in %s: to train from the store, put them there "
            "and build with --image-root URL",
            pool.location,
            roots[0],
        )


def _refuse_table_flags(sources: Sequence[Path], image_id: str, *others: str) -> None:
    if sources:
        raise ConfigError(f"{sources[0]}: YFCC100M is named by --metadata, not as a source")
    if image_id != "image_id" or any(others):
        raise ConfigError(
            "YFCC100M has columns of its own; leave out --image-id, --image, --text, --text-key, "
            "--caption and --extra"
        )


def info(pool: tyro.conf.Positional[Path], *, json: bool = False) -> None:
    """Show what is in a pool: pairs, images, text keys, sources, rejects.

        cit pool info POOL

    Args:
        pool: The pool's folder.
        json: Print one JSON document.
    """
    from cit_curate.pool.build.shown import show_pool
    from cit_curate.pool.pool import Pool

    show_pool(Pool.open(pool), as_json=json)


def verify(pool: tyro.conf.Positional[Path], *, json: bool = False) -> None:
    """Check every byte of a pool: hashes, footers, counts. Ends with 4 when a file is damaged.

        cit pool verify POOL

    Args:
        pool: The pool's folder.
        json: Print one JSON document.
    """
    from cit_curate.pool.check import check_pool

    print_findings(remote_url(pool) or str(pool), check_pool(pool), as_json=json)


def repair(pool: tyro.conf.Positional[Path], *, json: bool = False) -> None:
    """Write a pool's catalog (pool.duckdb) again from its Parquet files, for a moved pool.

        cit pool repair POOL

    Args:
        pool: The pool's folder.
        json: Print one JSON document.
    """
    from cit_curate.pool.pool import Pool

    path = Pool.open(pool).rebuild_catalog()
    if json:
        print_json({"path": str(pool), "catalog": str(path)})
    else:
        print_line(f"wrote {path}")


class _Report(Protocol):
    """Reports the progress of a build: rows done, and the share of the whole where known."""

    def __call__(self, what: str, rows: int, share: float | None = None, /) -> None: ...


@contextmanager
def _shown_progress() -> Iterator[_Report]:
    """A progress line with rows, rate and time left on stderr, only where a person sees it."""
    with progress_bar() as shown:
        bars: dict[str, TaskID] = {}

        def report(what: str, rows: int, share: float | None = None, /) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=None, numbers="")
            numbers = count_and_rate(rows, None, shown.tasks[bars[what]].elapsed, "rows")
            total = None if share is None else 1.0
            shown.update(bars[what], completed=share, total=total, numbers=numbers)

        yield report


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())
