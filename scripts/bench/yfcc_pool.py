"""Building a pool from YFCC100M's metadata, beside a plain script, and its memory as it grows.

    python -m scripts.bench.yfcc_pool [--lines 2000000] [--memory-lines 2000000 4000000 10000000]

Lines in the format of `yfcc100m_dataset.txt` are made up, the same ones every time, about 520 bytes
each: 96 % have an id on disk, 15 % are in the subset, a third has no tag, four in ten no
description, one in eight is not in English. Two measurements:

- side by side with a single-process script that reads the file line by line, as one would write it
  with `csv` and `urllib`; both make the same captions, which is checked;
- peak memory of the build and of its biggest worker, for files of several lengths.
"""

import csv
import random
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote_plus, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.config import EngineConfig, YfccFormat
from cit_curate.engines.workers import available_cpus
from cit_curate.pool.format import PoolManifest, read_manifest
from cit_curate.sources.yfcc.source import YfccSource
from scripts.bench.own_process import in_own_process
from scripts.bench.side_by_side import Comparison, Facts, Timing, bench_parser, compare_ways, show

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
    parser = bench_parser(__doc__)
    parser.add_argument("--lines", type=int, default=2_000_000, help="of the comparison; 0: none")
    parser.add_argument(
        "--memory-lines", type=int, nargs="*", default=[2_000_000, 4_000_000, 10_000_000]
    )
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--workers", type=int, default=0, help="0: one per processor")
    parser.add_argument("--folder", type=Path, help="where the files go, about 1 KB a line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cit-yfcc-", dir=options.folder) as name:
        folder, workers = Path(name), options.workers
        tables = []
        if options.memory_lines:
            tables += [memory(folder, options.memory_lines, each, workers)
                       for each in options.formats]  # fmt: skip
        if options.lines:
            tables += [compare(folder, options.lines, each, workers, repeats=options.repeats)
                       for each in options.formats]  # fmt: skip
        show(tables, options.json)


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
    wanted = set(np.load(folder / "ids.npy", allow_pickle=False).tolist())
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
    # Workers import this file as their main module: like a command's, without what only builds.
    from cit_curate.pool.build.ingest import build_pool
    from cit_curate.sources.source import yfcc_source

    engine = EngineConfig(workers=num_workers)
    return build_pool([yfcc_source(source)], out, columns=None, clean="yfcc", engine=engine)


def memory(
    folder: Path, lengths: Sequence[int], format: YfccFormat, num_workers: int
) -> Comparison:
    """Builds from files of several lengths, each in a process so that its memory is its own."""
    timings = []
    for num_lines in lengths:
        inputs = _inputs(folder, num_lines)
        built = in_own_process(_sizes_of_build, inputs, format, num_workers)
        shutil.rmtree(inputs / "pool")
        pairs, pool_bytes, worker = built.result
        notes = {
            "pairs": f"{pairs:,}",
            "pool MB": f"{pool_bytes / 1e6:,.0f}",
            "peak MB": f"{built.peak:,.0f}",
            "peak MB of a worker": f"{worker:,.0f}",
        }
        timings.append(Timing(f"{num_lines:,} lines", (built.seconds,), num_lines, notes))
    title = f"Memory of building {format}"
    return Comparison(title, "lines", tuple(timings), _workers(num_workers))


def compare(
    folder: Path, num_lines: int, format: YfccFormat, num_workers: int, *, repeats: int
) -> Comparison:
    """Both ways on the same file, in turn."""
    inputs = _inputs(folder, num_lines)
    plain, out = folder / "plain.csv", folder / "pool"
    import cit_curate.pool.build.ingest  # noqa: F401 - before the clock runs

    cpu_seconds: dict[str, list[float]] = {"line by line": [], "cit": []}

    def timed(name: str, way: Callable[[], object]) -> None:
        shutil.rmtree(out, ignore_errors=True)
        started = _cpu_seconds()
        way()
        cpu_seconds[name].append(_cpu_seconds() - started)

    ways: dict[str, Callable[[], object]] = {
        "line by line": lambda: line_by_line(inputs, format, plain),
        "cit": lambda: _build(inputs, format, out, num_workers),
    }
    found = compare_ways(
        f"Building {format}",
        "lines",
        {name: partial(timed, name, way) for name, way in ways.items()},
        num_lines,
        repeats=repeats,
        warm_up=False,
        notes=lambda name: {
            "processor us a line": f"{1e6 * min(cpu_seconds[name]) / num_lines:.1f}"
        },
    )
    captions = _plain_captions(plain)
    if captions != _pool_captions(out):
        sys.exit(f"{format}: the two ways made different captions")
    return replace(found, facts={"captions": len(captions), **_workers(num_workers)})


def _inputs(folder: Path, num_lines: int) -> Path:
    """The files of so many lines, made when they are not there."""
    inputs = folder / f"{num_lines}"
    if not inputs.exists():
        for other in folder.glob("[0-9]*"):
            shutil.rmtree(other)
        inputs.mkdir()
        write_files(inputs, num_lines)
    return inputs


def _workers(num_workers: int) -> Facts:
    return {"workers": num_workers or available_cpus()}


def _sizes_of_build(inputs: Path, format: YfccFormat, num_workers: int) -> tuple[int, int, float]:
    """Pairs and bytes of the pool that is built, and peak MiB of the biggest worker."""
    manifest = _build(inputs, format, inputs / "pool", num_workers)
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return manifest.num_pairs, sum(part.file.bytes for part in manifest.parts), worker


def _cpu_seconds() -> float:
    """Processor time of this process and of its workers that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def _plain_captions(path: Path) -> list[tuple[str, str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [(row[0], row[1], row[2]) for row in csv.reader(stream)]


def _pool_captions(path: Path) -> list[tuple[str, str, str]]:
    columns = ["image_id", "text_key", "caption"]
    parts = [path / part.file.path for part in read_manifest(path).parts]
    rows = pa.concat_tables(pq.read_table(part, columns=columns) for part in parts)
    return list(zip(*(rows[name].to_pylist() for name in columns), strict=True))


if __name__ == "__main__":
    main()
