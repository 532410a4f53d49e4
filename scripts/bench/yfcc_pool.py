"""Lines per second and peak memory of `cit pool build --format yfcc15m|yfcc100m`.

    python scripts/bench/yfcc_pool.py [--lines 10000000] [--workers 0] [--folder DIR] [--json FILE]

Lines in the format of `yfcc100m_dataset.txt` are made up, the same ones every time: 96 % have an id
on disk, 15 % are in the subset, a third has no tag, four in ten no description, one in eight is not
in English. Two measurements:

- the whole file, with rows/s and the peak memory of this process and of its biggest worker;
- a slice of it, side by side with a single-process script that reads it line by line, as one would
  write it with `csv` and `urllib`. Both make the same captions, which is checked.
"""

import argparse
import csv
import json
import multiprocessing
import platform
import random
import re
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, unquote

import numpy as np
import pyarrow.parquet as pq

from cit_curate.config import EngineConfig, YfccFormat
from cit_curate.pool.format import PoolManifest, read_manifest
from cit_curate.pool.workers import available_cpus
from cit_curate.pool.yfcc_build import build_yfcc_pool
from cit_curate.pool.yfcc_source import YfccSource

REPEATS = 3
LINES_PER_CHUNK = 20_000
LICENSES = (
    ("Attribution-NonCommercial-ShareAlike License", "by-nc-sa"),
    ("Attribution-NonCommercial-NoDerivs License", "by-nc-nd"),
    ("Attribution License", "by"),
    ("Attribution-NonCommercial License", "by-nc"),
    ("Attribution-ShareAlike License", "by-sa"),
    ("Attribution-NoDerivs License", "by-nd"),
)
WORDS = re.findall(
    r"\S+",
    "the of and in at on with my our new old red blue sunset beach cat dog bird garden city street "
    "night snow winter summer party wedding family trip holiday river lake mountain church tower "
    "bridge train station market food lunch concert band museum park flower tree house window",
)
FOREIGN_WORDS = re.findall(
    r"\S+", "café été straße niño canción 東京 桜 さくら 上野 москва кошка зима"
)


def main() -> None:
    """Generate, build, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=10_000_000, help="0: only the comparison")
    parser.add_argument("--slice", type=int, default=1_000_000, help="lines of the comparison")
    parser.add_argument("--workers", type=int, default=0, help="0: one per processor")
    parser.add_argument("--folder", type=Path, help="where the files go, about 1.2 KB a line")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cit-yfcc-", dir=asked.folder))
    try:
        _say(
            f"{platform.machine()}, {available_cpus()} processors, Python "
            f"{platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
        )
        numbers = {
            "lines": asked.lines,
            "workers": asked.workers or available_cpus(),
            # First, so that peak memory is not that of the slices.
            "whole": [
                _whole(folder, asked.lines, f, asked.workers) for f in FORMATS if asked.lines
            ],
            "slice": [_side_by_side(folder, asked.slice, name, asked.workers) for name in FORMATS],
        }
    finally:
        shutil.rmtree(folder)
    if asked.json:
        asked.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


FORMATS: tuple[YfccFormat, ...] = ("yfcc15m", "yfcc100m")


def write_files(folder: Path, num_lines: int) -> None:
    """Write `dataset.txt`, `ids.npy` and `subset.tsv`; the same bytes for the same number."""
    rng = np.random.default_rng(0)
    on_disk = np.flatnonzero(rng.random(num_lines) < 0.96)
    np.save(folder / "ids.npy", on_disk, allow_pickle=False)
    chosen = np.flatnonzero(rng.random(num_lines) < 0.15).tolist()
    with (folder / "subset.tsv").open("w") as stream:
        stream.writelines(f"{line}\t{5_000_000_000 + line}\t{line:032x}\n" for line in chosen)
    with (folder / "dataset.txt").open("wb") as stream:
        for start in range(0, num_lines, LINES_PER_CHUNK):
            stop = min(start + LINES_PER_CHUNK, num_lines)
            stream.write("".join(_lines(start, stop)).encode())


def _lines(start: int, stop: int) -> Iterator[str]:
    rng = random.Random(start)  # noqa: S311 - made-up captions
    spoken = []
    for known in (WORDS, FOREIGN_WORDS):
        weights = [1 / (place + 1) ** 0.7 for place in range(len(known))]
        spoken.append([quote_plus(word) for word in rng.choices(known, weights, k=20_000)])
    encoded = spoken[0]

    def some(count: int, between: str) -> str:
        place = rng.randrange(len(encoded) - count)
        return between.join(encoded[place : place + count])

    for line in range(start, stop):
        encoded = spoken[rng.random() < 0.12]
        kind = rng.random()
        title = f"IMG_{rng.randrange(10_000):04d}" if kind < 0.35 else some(1 + int(kind * 7), "+")
        description = ""
        if rng.random() < 0.6:
            description = some(min(int(rng.expovariate(1 / 16)) + 1, 400), "+")
            if rng.random() < 0.25:
                link = "%3Ca+href%3D%22http%3A%2F%2Fwww.example.org%2F%22+rel%3D%22nofollow%22%3E"
                description += f"%0A%0A{link}{some(2, '+')}%3C%2Fa%3E"
        tags = some(1 + int(rng.expovariate(1 / 7)), ",") if rng.random() < 0.67 else ""
        machine = "uploaded:by=flickr_mobile" if rng.random() < 0.05 else ""
        name, url = LICENSES[min(int(rng.expovariate(0.6)), 5)]
        photo, user = 5_000_000_000 + line, f"{rng.randrange(10**8):08d}@N{rng.randrange(10):02d}"
        yield (
            f"{line}\t{photo}\t{photo * 2654435761 % 2**128:032x}\t{user}\t{some(1, '+')}\t"
            f"2012-0{line % 9 + 1}-16 09:56:37.0\t{1331840483 + line}\tCanon+PowerShot+ELPH+310\t"
            f"{title}\t{description}\t{tags}\t{machine}\t-81.804885\t24.550558\t12\t"
            f"http://www.flickr.com/photos/{user}/{photo}/\t"
            f"http://farm8.staticflickr.com/7205/{photo}_df4ef05ab1.jpg\t{name}\t"
            f"http://creativecommons.org/licenses/{url}/2.0/\t7205\t8\tdf4ef05ab1\t9d8ee7b4dd\t"
            f"jpg\t0\n"
        )


def line_by_line(folder: Path, format: YfccFormat, out: Path) -> int:
    """The same captions by a plain script: one process, a line at a time, into a CSV file.

    Returns:
        How many captions it wrote.
    """
    wanted = set(np.load(folder / "ids.npy").tolist())
    if format == "yfcc15m":
        with (folder / "subset.tsv").open() as stream:
            wanted &= {int(line.split("\t", 1)[0]) for line in stream}
    tag = re.compile(r"<a[^>\n]*>|</a>|</?b>|</?i>")
    link = re.compile(r"(?:http|www)\S+")
    count = 0
    with (
        (folder / "dataset.txt").open(encoding="utf-8", newline="") as stream,
        out.open("w", encoding="utf-8", newline="") as written,
    ):
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        writer = csv.writer(written)
        for row in rows:
            image = int(row[0])
            if image not in wanted:
                continue
            texts = {"title": row[8], "desc": row[9], "tag": f"{row[10]},{row[11]}"}
            for key, text in texts.items():
                caption = link.sub("", tag.sub("", unquote(text).replace("+", " "))).strip()
                if caption.strip(", "):
                    path = f"images/{image:08d}"
                    writer.writerow((f"{image:08d}", key, caption, path, row[17], row[18], row[15]))
                    count += 1
    return count


def _build(folder: Path, format: YfccFormat, out: Path, num_workers: int) -> PoolManifest:
    subset = folder / "subset.tsv" if format == "yfcc15m" else None
    source = YfccSource(
        format=format,
        metadata=folder / "dataset.txt",
        image_ids=folder / "ids.npy",
        subset=subset,
    )
    return build_yfcc_pool(source, out, engine=EngineConfig(workers=num_workers))


def _whole(folder: Path, num_lines: int, format: YfccFormat, num_workers: int) -> dict[str, Any]:
    """Build from the whole file, timed, in a fresh process so that its memory is its own."""
    inputs = folder / "whole"
    if not inputs.exists():
        inputs.mkdir()
        started = time.perf_counter()
        write_files(inputs, num_lines)
        size = (inputs / "dataset.txt").stat().st_size
        _say(
            f"made {num_lines:,} lines, {size / 1e9:.2f} GB: {time.perf_counter() - started:.0f} s"
        )
    child = multiprocessing.get_context("spawn").Process(
        target=_timed, args=(inputs, num_lines, format, num_workers)
    )
    child.start()
    child.join()
    if child.exitcode:
        sys.exit("the build failed")
    shutil.rmtree(inputs / "pool")
    found: dict[str, Any] = json.loads((inputs / "found.json").read_text())
    _say(
        f"{format}: {num_lines:,} lines in {found['seconds']} s = "
        f"{found['lines_per_second']:,} lines/s; {found['pairs']:,} pairs, "
        f"{found['pool_bytes'] / 1e9:.2f} GB; peak {found['peak_mb']} MB, biggest worker "
        f"{found['peak_worker_mb']} MB"
    )
    return found


def _timed(inputs: Path, num_lines: int, format: YfccFormat, num_workers: int) -> None:
    """Build, and leave the numbers in `found.json`."""
    started = time.perf_counter()
    manifest = _build(inputs, format, inputs / "pool", num_workers)
    seconds = time.perf_counter() - started
    peaks = [
        round(resource.getrusage(who).ru_maxrss / 1024)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    found = {
        "format": format,
        "seconds": round(seconds, 1),
        "lines_per_second": round(num_lines / seconds),
        "pairs": manifest.num_pairs,
        "peak_mb": peaks[0],
        "peak_worker_mb": peaks[1],
        "pool_bytes": sum(part.file.bytes for part in manifest.parts),
    }
    (inputs / "found.json").write_text(json.dumps(found))


def _side_by_side(
    folder: Path, num_lines: int, format: YfccFormat, num_workers: int
) -> dict[str, Any]:
    """Both ways on the same slice, in turn, so that a drifting machine hits both."""
    inputs = folder / "slice"
    if not inputs.exists():
        inputs.mkdir()
        write_files(inputs, num_lines)
    plain, out = folder / "plain.csv", folder / "pool"
    ways: dict[str, Callable[[], object]] = {
        "line by line": lambda: line_by_line(inputs, format, plain),
        "cit": lambda: _build(inputs, format, out, num_workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            started, cpu_started = time.perf_counter(), _cpu_seconds()
            way()
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(_cpu_seconds() - cpu_started)
    captions = _captions_of(plain, None)
    if captions != _captions_of(out, read_manifest(out)):
        sys.exit(f"{format}: the two ways made different captions")
    shutil.rmtree(out)
    _say(f"{format}, {num_lines:,} lines, {len(captions):,} captions, {REPEATS} times each:")
    for name, times in seconds.items():
        rates = [num_lines / t for t in (statistics.median(times), max(times), min(times))]
        cpu = statistics.median(cpu_seconds[name])
        _say(
            f"  {name:<13}{rates[0]:>9,.0f} lines/s (min {rates[1]:,.0f}, max {rates[2]:,.0f}), "
            f"{1e6 * cpu / num_lines:.1f} us of processor time a line"
        )
    ratio, cpu_ratio = (
        statistics.median(taken["line by line"]) / statistics.median(taken["cit"])
        for taken in (seconds, cpu_seconds)
    )
    _say(f"  ratio {ratio:.1f}, of processor time {cpu_ratio:.1f}")
    return {
        "format": format,
        "lines": num_lines,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ratio": round(ratio, 2),
        "cpu_ratio": round(cpu_ratio, 2),
    }


def _cpu_seconds() -> float:
    """Processor time of this process and of its workers that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def _captions_of(path: Path, manifest: PoolManifest | None) -> list[tuple[str, str, str]]:
    if manifest is None:
        with path.open(encoding="utf-8", newline="") as stream:
            return [(row[0], row[1], row[2]) for row in csv.reader(stream)]
    found: list[tuple[str, str, str]] = []
    for part in manifest.parts:
        table = pq.read_table(path / part.file.path, columns=["image_id", "text_key", "caption"])
        found += zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    return found


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
