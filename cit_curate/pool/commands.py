"""What `cit pool build|info|verify|repair` do; the pool's only file that writes to a terminal."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cit_curate.captions import Cleaning
from cit_curate.pool.pool import Pool, verify_pool
from cit_curate.sources.columns import Columns
from cit_curate.sources.source import Format


def build(
    sources: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    *,
    format: Format = "auto",
    image_id: str = "image_id",
    image: str = "",
    text: str = "",
    text_key: str = "",
    caption: str = "",
    extra: str = "",
    image_root: Path | None = None,
    clean: Cleaning = "none",
    name: str = "",
    max_reject_ratio: float = 0.01,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Build a pool from tables, JSON lines, WebDataset tars, Hugging Face datasets or images.

    A wide table has a row per image: --text title,desc,tag. A long one has a row per text:
    --text-key KIND --caption TEXT. A WebDataset and a folder of images with .txt files need
    neither. Images stay where they are, also those in tars, zips, Arrow and Parquet files.

        cit pool build captions.csv --image-id id --image path --text title,desc --out POOL
        cit pool build PICTURES --out POOL
        cit pool build lines.jsonl --image-id id --image file --text caption --out POOL
        cit pool build "shards/{00000..00123}.tar" --out POOL
        cit pool build shards --text caption,alt --image-id __key__ --out POOL
        cit pool build saved_dataset --text caption --out POOL

    An image column may name members of zips: zip://photos/01.zip#cat.jpg

    Args:
        sources: Files, folders or {000..123} patterns, in the order that the pool will have.
        out: Folder of the new pool.
        format: How to read the sources; auto goes by the suffix, or by what a folder holds.
        image_id: Column with the image's id.
        image: Column with the image's path or URL; empty: no images, or those that lie inside.
        text: Wide tables: columns with text, separated by commas.
        text_key: Long tables: column with the text key.
        caption: Long tables: column with the text.
        extra: Further columns to carry along, separated by commas.
        image_root: Where image paths start; default the table's own folder.
        clean: Cleaning of the texts: none, or yfcc (URL-decoded, without tags and links).
        name: The pool's name; default the folder's.
        max_reject_ratio: Largest share of malformed rows.
        overwrite: Replace a pool that is there.
        json: Print one JSON document instead of a summary.
    """
    columns = Columns(
        image_id=image_id,
        image=image or None,
        text=_names(text),
        text_key=text_key or None,
        caption=caption or None,
        extra=_names(extra),
    )
    with _shown_progress() as progress:
        pool = Pool.build(
            sources,
            out,
            columns=columns,
            format=format,
            image_root=image_root,
            clean=clean,
            name=name or None,
            max_reject_ratio=max_reject_ratio,
            overwrite=overwrite,
            progress=progress,
        )
    _show(pool, as_json=json)


def info(pool: tyro.conf.Positional[Path], *, json: bool = False) -> None:
    """Show what is in a pool: pairs, images, text keys, sources, rejects.

        cit pool info POOL

    Args:
        pool: The pool's folder.
        json: Print one JSON document.
    """
    _show(Pool.open(pool), as_json=json)


def verify(pool: tyro.conf.Positional[Path], *, json: bool = False) -> None:
    """Check every byte of a pool: hashes, footers, counts.

        cit pool verify POOL

    Args:
        pool: The pool's folder.
        json: Print one JSON document.
    """
    notes = verify_pool(pool)
    if json:
        _print_json({"path": str(pool), "damaged": False, "notes": notes})
        return
    console = Console()
    console.print(f"{escape(str(pool))}: every file is as it was written", highlight=False)
    for note in notes:
        console.print(f"note: {escape(note)}", highlight=False)


def repair(pool: tyro.conf.Positional[Path], *, json: bool = False) -> None:
    """Write a pool's catalog (pool.duckdb) anew from its Parquet files, as after moving it.

        cit pool repair POOL

    Args:
        pool: The pool's folder.
        json: Print one JSON document.
    """
    path = Pool.open(pool).rebuild_catalog()
    if json:
        _print_json({"path": str(pool), "catalog": str(path)})
    else:
        Console().print(f"wrote {escape(str(path))}", highlight=False)


def summary(pool: Pool) -> dict[str, Any]:
    """What `cit pool info --json` prints."""
    manifest = pool.manifest
    return {
        "path": str(pool.path),
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
        "sources": [asdict(source) for source in manifest.sources],
        "subset": asdict(manifest.subset) if manifest.subset else None,
    }


def _show(pool: Pool, *, as_json: bool) -> None:
    if as_json:
        _print_json(summary(pool))
        return
    manifest = pool.manifest
    lines = [
        f"{pool.path}: {manifest.num_pairs:,} pairs of {manifest.num_images:,} images, "
        f"{pool.num_bytes / 1e6:,.1f} MB in {len(manifest.parts):,} parts",
        "text keys: " + ", ".join(f"{key} {n:,}" for key, n in manifest.text_keys.items()),
        f"pairs with an image file: {manifest.num_with_image:,}",
        f"cleaning: {manifest.cleaning}; fingerprint: {manifest.fingerprint[:16]}",
    ]
    if origin := manifest.subset:
        chosen = [f"pairs of the run {origin.run}"] if origin.run else []
        chosen += [f"first {origin.max_images:,} images"] if origin.max_images else []
        lines.append(f"cut out of {origin.pool_name}: {', '.join(chosen)}")
    for source in manifest.sources[:20]:
        lines.append(f"source {source.name}: {source.num_records:,} records ({source.path})")
    if len(manifest.sources) > 20:
        lines.append(f"and {len(manifest.sources) - 20:,} more sources")
    rejected = ", ".join(f"{reason} {n:,}" for reason, n in manifest.rejects.items())
    lines.append(f"rejected: {rejected or 'nothing'} (rows and reasons in rejects/)")
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(escape(_printable(line)), highlight=False)


@contextmanager
def _shown_progress() -> Iterator[Callable[[str, int], None]]:
    """A progress line with rows and rate on stderr, only where a person sees it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, rows: None
        return
    rate = TextColumn("{task.completed:,} rows, {task.fields[rate]:,.0f}/s")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), rate, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        tasks = {
            what: shown.add_task(what, total=None, rate=0.0) for what in ("reading", "writing")
        }

        def tell(what: str, rows: int) -> None:
            task = shown.tasks[tasks[what]]
            rate = rows / max(task.elapsed or 0.0, 1e-3)
            shown.update(tasks[what], completed=rows, rate=rate)

        yield tell


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
