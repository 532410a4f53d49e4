"""What `cit pool build` and `cit pool info` print of a pool."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cit_curate.pool.build.summary import BuildReport, read_build_report
from cit_curate.pool.pool import Pool
from cit_curate.pool.token_files import token_folders
from cit_curate.printing import print_json
from cit_curate.terminal import print_line

# Sources and text keys that are listed.
_MOST_SHOWN = 20


def summary(pool: Pool) -> dict[str, Any]:
    """The values of `cit pool info --json`."""
    manifest, report = pool.manifest, report_of(pool)
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


def show_pool(pool: Pool, *, as_json: bool) -> None:
    """Print what `cit pool build|info` print."""
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
    report = report_of(pool)
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


def report_of(pool: Pool) -> BuildReport:
    """The report of a pool's build, which a pool in a store does not show."""
    return BuildReport() if pool.is_remote else read_build_report(pool.path)
