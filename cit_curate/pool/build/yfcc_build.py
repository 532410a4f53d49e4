"""Building a pool from YFCC100M: out of core, in parallel, and again from where it was killed.

The metadata is read in ranges of bytes. Each becomes a segment in `.staging-POOL` beside the pool,
whole or absent, so that the same command goes on after a kill. From the segments' small indexes
follow which images repeat and where parts are cut; then the parts are written. Neither the number
of workers nor a kill shows in the pool's bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from cit_curate.arrow_numpy import repeated, strings_of
from cit_curate.config import EngineConfig
from cit_curate.engines.engine import open_engine
from cit_curate.engines.workers import Mapper
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.pool.build.malformed import Counted, check_limit, count_malformed, keeping_rejects
from cit_curate.pool.build.place import (
    builder_lock,
    check_free,
    finish_pool,
    keep_in_staging,
    rejects_path,
    staging_folder,
)
from cit_curate.pool.build.source_entries import Asked, check_unchanged, settings_of, source_entry
from cit_curate.pool.build.yfcc_plan import PlannedImages, part_pieces, plan_images
from cit_curate.pool.build.yfcc_segments import (
    PartTask,
    Segment,
    SegmentTask,
    moved_reject,
    read_segment,
    rejects_table,
    save_array,
    write_part,
)
from cit_curate.pool.build.yfcc_source import YfccSource
from cit_curate.pool.format import (
    PoolManifest,
    SourceEntry,
    group_rows,
    parts_fingerprint,
    write_manifest,
)
from cit_curate.pool.parts import PartsWritten, write_rejects
from cit_curate.sources.rows import Reject
from cit_curate.sources.yfcc import (
    IdList,
    UInt8,
    image_ids_of,
    read_image_ids,
    read_subset,
)
from cit_curate.storage.durable import atomic_file, sync
from cit_curate.storage.replace_folder import replacing

RANGE_BYTES = 64 << 20
# Of what segments hold; a newer one does not go on from an older one's.
STAGING_VERSION = 2

YfccProgress = Callable[[str, int, float], None]
"""Called with what is being done, how many lines or pairs are done, and which share that is."""


def build_yfcc_pool(
    source: YfccSource,
    out: Path,
    *,
    name: str | None = None,
    engine: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    max_reject_ratio: float = 0.01,
    overwrite: bool = False,
    progress: YfccProgress = lambda what, rows, share: None,
    range_bytes: int = RANGE_BYTES,
) -> PoolManifest:
    """Build a pool from YFCC100M; as `build_pool` it is there whole, or not at all, or finished.

    Args:
        source: The files.
        out: The pool's folder. `.staging-OUT` beside it holds what was read until it is there.
        name: The pool's name; default the folder's.
        engine: Where the metadata is read and the parts are written.
        max_reject_ratio: Largest share of malformed lines.
        overwrite: Replace a pool that is there.
        progress: Told how far it is.
        range_bytes: Metadata per segment.

    Raises:
        ConfigError: A list holds no image ids, or `out` is in use.
        BadInputError: Too many malformed lines, or no pair at all.
        DamagedError: A list or segment is damaged, or the metadata changed while it was read.
        ResourceError: Disk full, a worker killed, or another build of the same pool is running.
    """
    if not 0 <= max_reject_ratio <= 1:
        raise ConfigError(f"max_reject_ratio is {max_reject_ratio}; it is a share from 0 to 1")
    out = out.absolute()
    table = source.as_source()
    entry = source_entry(table)
    with builder_lock(out, [entry]):
        progress("reading ids", 0, 0.0)
        lists, bits = _read_lists(source)
        progress("reading ids", sum(found.num_ids for found in lists.values()), 1.0)
        asked = Asked(name or out.name, (entry,), settings_of("yfcc", {}, _told(lists, source)))
        manifest = check_free(out, asked, overwrite=overwrite)
        if manifest is None:
            folder = _open_staging(out, _staging_key(source, entry, lists, range_bytes))
            tasks = _segment_tasks(folder, source, bits, range_bytes)
            with open_engine(engine, most_useful=-(-entry.bytes // range_bytes)) as workers:
                mapped = workers.mapped
                images = plan_images(
                    _read(mapped, tasks, out, max_reject_ratio=max_reject_ratio, progress=progress)
                )
                check_unchanged(table, entry)
                if images.num_pairs == 0:
                    with _keeping_rejects(out, images.segments, table.name):
                        raise BadInputError(_nothing_found(table.path, images.segments))
                with replacing(out) as pool_folder:
                    manifest = _write(mapped, images, pool_folder, table.name, progress)
                    manifest = replace(
                        manifest,
                        name=asked.name,
                        sources=(replace(entry, num_records=manifest.num_records),),
                        id_lists=_described(lists, bits, images, source),
                    )
                    write_manifest(pool_folder, manifest)
        finish_pool(out, manifest)
    return manifest


def _read_lists(source: YfccSource) -> tuple[dict[str, IdList], UInt8]:
    image_ids, bits = read_image_ids(source.image_ids)
    if source.subset is None:
        return {"image_ids": image_ids}, bits
    subset, subset_bits = read_subset(source.subset)
    return {"image_ids": image_ids, "subset": subset}, bits & subset_bits


def _staging_key(
    source: YfccSource, entry: SourceEntry, lists: dict[str, IdList], range_bytes: int
) -> dict[str, object]:
    """All that segments depend on."""
    return {
        "staging version": STAGING_VERSION,
        "range bytes": range_bytes,
        "--format": source.format,
        "--reference-empty-tags": source.reference_empty_tags,
        "--metadata": [entry.path, entry.bytes, entry.mtime_ns, entry.head_sha256],
        **{f"--{name.replace('_', '-')}": found.sha256 for name, found in lists.items()},
    }


def _open_staging(out: Path, key: dict[str, object]) -> Path:
    """The folder of segments for this key; those of another key are removed, and it is said."""
    # A worker of a killed build may live on for a moment; it knows only its own key's folder.
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = staging_folder(out) / digest[:16]
    keep_in_staging(folder.parent, [folder], key)
    folder.mkdir(exist_ok=True)
    return folder


def _segment_tasks(
    folder: Path, source: YfccSource, bits: UInt8, range_bytes: int
) -> list[SegmentTask]:
    ids = folder / "ids.npy"
    with atomic_file(ids) as temporary:
        save_array(temporary, bits)
    metadata = source.metadata.resolve()
    return [
        SegmentTask(
            folder=folder / f"{number:06d}",
            metadata=metadata,
            ids=ids,
            start=start,
            stop=stop,
            reference_empty_tags=source.reference_empty_tags,
        )
        for number, (start, stop) in enumerate(_ranges(metadata.stat().st_size, range_bytes))
    ]


def _ranges(size: int, range_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover a file; the last ones are smaller, so that workers end about together."""
    start = 0
    while start < size:
        length = range_bytes if size - start > 2 * range_bytes else -(-range_bytes // 4)
        yield start, min(start + length, size)
        start += length


def _read(
    mapped: Mapper,
    tasks: Sequence[SegmentTask],
    out: Path,
    *,
    max_reject_ratio: float,
    progress: YfccProgress,
) -> Iterator[Segment]:
    """Read all ranges; ends early after too many malformed lines in a row."""
    if not tasks:
        return
    counted, num_lines = Counted(), 0
    reasons: Counter[str] = Counter()
    firsts: dict[str, Reject] = {}
    segments: list[Segment] = []
    top_reasons = partial(_top_reasons, reasons, firsts)
    progress("reading", 0, 0.0)
    with _keeping_rejects(out, segments, tasks[0].metadata.name):
        for task, segment in zip(tasks, mapped(read_segment, tasks), strict=True):
            segments.append(replace(segment, malformed=()))
            moved = [
                moved_reject(reject, num_lines + 1, counted.num_records)
                for reject in segment.malformed
            ]
            for reject in moved:
                reasons[reject.reason] += 1
                firsts.setdefault(reject.reason, reject)
            counted = count_malformed(
                counted, moved, segment.num_records, task.metadata, top_reasons
            )
            num_lines += segment.num_lines
            progress("reading", num_lines, task.stop / tasks[-1].stop)
            yield segments[-1]
        check_limit(counted.num_malformed, counted.num_records, max_reject_ratio, top_reasons)


def _write(
    mapped: Mapper, images: PlannedImages, folder: Path, source: str, progress: YfccProgress
) -> PoolManifest:
    (folder / "pairs").mkdir()
    num_pairs = images.num_pairs
    max_rows = group_rows(num_pairs)
    tasks = [
        PartTask(folder, number, pieces, source, max_rows)
        for number, pieces in enumerate(part_pieces(images, max_rows))
    ]
    written = PartsWritten()
    progress("writing", 0, 0.0)
    parts = mapped(write_part, tasks)
    reject_parts = write_rejects(_rejects(images, source), folder)
    for part in parts:
        written.add(part)
        # While others are written, instead of all at the end.
        sync(folder / part.parts[0].file.path)
        progress("writing", written.num_pairs, written.num_pairs / num_pairs)
    reasons: Counter[str] = Counter()
    for segment in images.segments:
        reasons.update(segment.reasons)
    if num_repeats := sum(map(len, images.repeated)):
        reasons["duplicate_key"] = num_repeats
    return PoolManifest(
        name="",
        fingerprint=parts_fingerprint(written.parts),
        cleaning="yfcc",
        columns={},
        num_pairs=written.num_pairs,
        num_images=written.num_images,
        num_with_image=written.num_with_image,
        num_records=sum(segment.num_records for segment in images.segments),
        text_keys=dict(sorted(written.text_keys.items())),
        rejects=dict(sorted(reasons.items())),
        sources=(),
        parts=tuple(written.parts),
        reject_parts=reject_parts,
    )


def _keeping_rejects(
    out: Path, segments: Sequence[Segment], source: str
) -> AbstractContextManager[None]:
    """`keeping_rejects` of segments, those that come to them in the block included."""
    return keeping_rejects(rejects_path(out), partial(_line_rejects, segments, source))


def _line_rejects(segments: Sequence[Segment], source: str) -> Generator[pa.Table]:
    """Every rejected line, in their order."""
    first_line = 0
    for segment in segments:
        yield segment.rejects(source, first_line)
        first_line += segment.num_lines


def _rejects(images: PlannedImages, source: str) -> Iterator[pa.Table]:
    """Every reject, in the order of the lines, those of repeated images last."""
    yield from _line_rejects(images.segments, source)
    for ids, lines in images.repeats:
        details = [
            f"image {image} has pairs of an earlier line" for image in image_ids_of(ids).to_pylist()
        ]
        reasons = repeated("duplicate_key", len(lines))
        yield rejects_table(source, lines + 1, reasons, strings_of(details))


def _described(
    lists: dict[str, IdList], bits: UInt8, images: PlannedImages, source: YfccSource
) -> dict[str, object]:
    """What `pool.json` says of the lists."""
    num_ids = int(np.bitwise_count(bits).sum(dtype=np.int64))
    return {
        **_told(lists, source),
        "num_ids": num_ids,
        "num_ids_without_line": num_ids - images.num_found,
        "num_lines_listed": images.num_listed,
    }


def _told(lists: dict[str, IdList], source: YfccSource) -> dict[str, object]:
    """What `pool.json` says of the lists before anything is read."""
    found = {name: asdict(found) for name, found in lists.items()}
    return {**found, "reference_empty_tags": source.reference_empty_tags}


def _nothing_found(path: Path, segments: list[Segment]) -> str:
    records = sum(segment.num_records for segment in segments)
    if records == 0:
        return f"{path}: there is no line in it"
    reasons: Counter[str] = Counter()
    for segment in segments:
        reasons.update(segment.reasons)
    shown = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(3))
    return (
        f"{path}: {records:,} lines were read and no pair came of them; "
        f"{f'rejected: {shown}' if shown else 'none has an id that the lists name'}"
    )


def _top_reasons(reasons: Counter[str], firsts: dict[str, Reject]) -> str:
    """As `Staging.top_reasons`."""
    shown = [
        f"{reason} {count:,} (first: line {firsts[reason].row}, {firsts[reason].detail})"
        for reason, count in reasons.most_common(3)
    ]
    return f"; most often: {'; '.join(shown)}"
