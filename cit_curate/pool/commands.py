"""The commands `cit pool build|info|verify|repair`, and what they print."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import tyro
from rich.progress import TaskID

from cit_curate.config import (
    MAX_REJECT_RATIO,
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
    from cit_curate.pool.build.report import BuildReport
    from cit_curate.pool.pool import Pool
    from cit_curate.sources.columns import Columns
    from cit_curate.sources.source import Source

logger = logging.getLogger(__name__)

# Sources and text keys that the summary lists.
_MOST_SHOWN = 20


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
    max_reject_ratio: float = MAX_REJECT_RATIO,
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
        extra: Further columns to carry along, separated by commas.
        image_root: Where image paths start; default the table's own folder.
        clean: Cleaning of the texts: none, or yfcc (URL-decoded, without tags and links).
        name: The pool's name; default the folder's.
        metadata: YFCC: yfcc100m_dataset.txt, unpacked.
        image_ids: YFCC: NumPy file with the ids of the images on disk.
        subset: YFCC15M: yfcc100m_subset_data.tsv, the list of its images.
        reference_empty_tags: YFCC: keep the tag text "," of images without tags, as CiT did.
        max_reject_ratio: Largest share of malformed rows.
        overwrite: Replace an existing pool.
        peek: Show how the sources would be read, from their beginnings, and build nothing.
        json: Print one JSON document instead of a summary.
    """
    from cit_curate.pool.build.ingest import build_pool
    from cit_curate.pool.format import CATALOG_NAME, MANIFEST_NAME
    from cit_curate.pool.pool import Pool
    from cit_curate.sources.columns import Columns
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
        columns = Columns(
            image_id=image_id,
            image=image or None,
            text=_names(text),
            text_key=text_key or None,
            caption=caption or None,
            extra=_names(extra),
        )
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
    for warning in _report(pool).warnings:
        logger.warning("%s", warning)
    _show(pool, as_json=json)
    _warn_of_local_images(pool)


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
    from cit_curate.pool.pool import Pool

    _show(Pool.open(pool), as_json=json)


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


def summary(pool: "Pool") -> dict[str, Any]:
    """The values of `cit pool info --json`."""
    from cit_curate.pool.token_files import token_folders

    manifest, report = pool.manifest, _report(pool)
    return {
        "path": pool.location,
        "name": manifest.name,
        "format_version": manifest.format_version,
        "fingerprint": manifest.fingerprint,
        "cleaning": manifest.cleaning,
        "num_pairs": manifest.num_pairs,
        "num_images": manifest.num_images,
        "num_with_image": manifest.num_with_image,
        "num_records": manifest.num_records,
        "num_parts": len(manifest.parts),
        "num_row_groups": len(pool.row_groups),
        "bytes": pool.num_bytes,
        "text_keys": dict(manifest.text_keys),
        "rejects": dict(manifest.rejects),
        "id_lists": dict(manifest.id_lists),
        "tokens": [] if pool.is_remote else [path.name for path in token_folders(pool.path)],
        "sources": [asdict(source) for source in manifest.sources],
        "subset": asdict(manifest.subset) if manifest.subset else None,
        **report.counts,
        "notes": list(report.notes),
        "warnings": list(report.warnings),
    }


def _show(pool: "Pool", *, as_json: bool) -> None:
    if as_json:
        print_json(summary(pool))
        return
    manifest = pool.manifest
    lines = [
        f"{pool.location}: {manifest.num_pairs:,} pairs of {manifest.num_images:,} images, "
        f"{pool.num_bytes / 1e6:,.1f} MB in {len(manifest.parts):,} parts",
        _text_keys(manifest.text_keys),
        f"pairs with an image file: {manifest.num_with_image:,}",
        f"cleaning: {manifest.cleaning}; fingerprint: {manifest.fingerprint[:16]}",
    ]
    if origin := manifest.subset:
        chosen = [f"pairs of the run {origin.run}"] if origin.run else []
        chosen += [f"first {origin.max_images:,} images"] if origin.max_images else []
        lines.append(f"cut out of {origin.pool_name}: {', '.join(chosen)}")
    for source in manifest.sources[:_MOST_SHOWN]:
        lines.append(f"source {source.name}: {source.num_records:,} records ({source.path})")
    if len(manifest.sources) > _MOST_SHOWN:
        lines.append(f"and {len(manifest.sources) - _MOST_SHOWN:,} more sources")
    if manifest.id_lists:
        lines.append(
            f"ids: {manifest.id_lists['num_ids']:,}, of which "
            f"{manifest.id_lists['num_ids_without_line']:,} have no line"
        )
    if tokens := summary(pool)["tokens"]:
        lines.append(f"tokens of cit pool tokenize: {', '.join(tokens)}")
    rejected = ", ".join(f"{reason} {n:,}" for reason, n in manifest.rejects.items())
    lines.append(f"rejected: {rejected or 'nothing'} (rows and reasons in rejects/)")
    report = _report(pool)
    if num_lines := report.counts.get("num_lines"):
        lines.append(_accounted(report.counts, num_lines))
    for line in (*lines, *report.notes):
        print_line(line)


def _text_keys(counts: Mapping[str, int]) -> str:
    """The text keys with their pairs, the most frequent ones first."""
    keys = sorted(counts, key=lambda key: (-counts[key], len(key), key))
    shown = [f"{key} {counts[key]:,}" for key in keys[:_MOST_SHOWN]]
    more = [f"and {len(keys) - _MOST_SHOWN:,} more"] if len(keys) > _MOST_SHOWN else []
    return f"text keys: {', '.join([*shown, *more])}"


def _accounted(counts: Mapping[str, int], num_lines: int) -> str:
    """The lines of text files, each accounted for."""
    parts = [
        f"{counts[name]:,} {what}"
        for name, what in (("num_header_lines", "of headers"), ("num_blank_lines", "blank"))
        if counts.get(name)
    ]
    others = sum(counts.get(name, 0) for name in ("num_header_lines", "num_blank_lines"))
    mended = f", {counts['num_rows_mended']:,} mended" if counts.get("num_rows_mended") else ""
    return f"lines: {num_lines:,}: " + ", ".join(
        [*parts, f"{num_lines - others:,} of rows{mended}"]
    )


def _report(pool: "Pool") -> "BuildReport":
    """The report of a pool's build, which a pool in a store does not show."""
    from cit_curate.pool.build.report import BuildReport, read_build_report

    return BuildReport() if pool.is_remote else read_build_report(pool.path)


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
