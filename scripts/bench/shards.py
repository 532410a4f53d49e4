"""Writing and reading shards, beside webdataset's own writer and loader over the same samples.

    python -m scripts.bench.shards [--samples 4000] [--image-bytes 30000] [--json FILE]

Ours also hash every shard, name it in a manifest and sync it to the disk when they write, and hold
it to its manifest before its first sample when they read.
"""

import io
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image

from cit_curate.run.shards import Sample, ShardWriter, read_shard, shard_entry
from scripts.bench.side_by_side import Comparison, bench_parser, compare_ways, show

PAIRS_PER_SHARD = 1_000
PREFIX = "lane00000"


def main() -> None:
    """Print the tables."""
    parser = bench_parser(__doc__)
    parser.add_argument("--samples", type=int, default=4_000)
    parser.add_argument("--image-bytes", type=int, default=30_000, help="about so many an image")
    parser.add_argument("--folder", type=Path, help="where the files go")
    options = parser.parse_args()
    samples = made_up_samples(options.samples, options.image_bytes)
    with tempfile.TemporaryDirectory(prefix="cit-shards-", dir=options.folder) as folder:
        show(compare(samples, Path(folder), repeats=options.repeats), options.json)


def compare(samples: Sequence[Sample], folder: Path, *, repeats: int) -> list[Comparison]:
    """Writing, reading raw members, and reading with decoded images."""
    ours, theirs = folder / "ours", folder / "theirs"
    size = round(sum(len(sample.image) for sample in samples) / len(samples))
    facts = {"samples": len(samples), "bytes an image": size}
    compared: dict[str, dict[str, Callable[[], object]]] = {
        "Writing shards": {
            "webdataset": lambda: write_theirs(samples, theirs),
            "cit": lambda: write_ours(samples, ours),
        },
        "Reading shards": {
            "webdataset": lambda: _exhaust(read_theirs(ours)),
            "cit": lambda: _exhaust(read_ours(ours)),
        },
        "Reading shards and decoding their images": {
            "webdataset": lambda: _exhaust(read_theirs(ours, decoded=True)),
            "cit": lambda: _exhaust(decode(sample.image) for sample in read_ours(ours)),
        },
    }
    return [
        compare_ways(title, "samples", ways, len(samples), repeats=repeats, facts=facts)
        for title, ways in compared.items()
    ]


def made_up_samples(num_samples: int, image_bytes: int) -> list[Sample]:
    """Samples whose images are one JPEG picture of noise of about that size."""
    side = max(int((image_bytes / 0.75) ** 0.5), 8)
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "JPEG", quality=50)
    info = {"similarity": 0.6123, "metadata_text": "cat, true cat", "reason": "threshold"}
    return [
        Sample(
            content.getvalue(),
            "jpg",
            f"a photo of my cat number {number} on the roof of the old town",
            {"pair_key": f"{number:08d}_title", **info},
        )
        for number in range(num_samples)
    ]


def write_ours(samples: Sequence[Sample], folder: Path) -> None:
    """Tars, manifests and all."""
    shutil.rmtree(folder, ignore_errors=True)
    writer = ShardWriter(folder, PREFIX, pairs_per_shard=PAIRS_PER_SHARD)
    for sample in samples:
        writer.add(sample)
    writer.close()


def write_theirs(samples: Sequence[Sample], folder: Path) -> None:
    """`webdataset.ShardWriter` as its documentation uses it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pattern = str(folder / f"{PREFIX}-%06d.tar")
    with wds.ShardWriter(pattern, maxcount=PAIRS_PER_SHARD, verbose=0) as writer:
        for sample in samples:
            writer.write(
                {
                    "__key__": sample.pair_key,
                    sample.suffix: sample.image,
                    "txt": sample.caption,
                    "json": sample.info,
                }
            )


def read_ours(folder: Path) -> Iterator[Sample]:
    """Every sample, once its shard was checked."""
    for path in sorted(folder.glob("*.tar")):
        yield from read_shard(folder, shard_entry(path))


def read_theirs(folder: Path, *, decoded: bool = False) -> Iterator[Any]:
    """Every sample by webdataset: members as bytes, or text, JSON and picture."""
    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = wds.WebDataset(paths, shardshuffle=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves tars to the collector
        yield from samples.decode("pil") if decoded else samples


def decode(image: bytes) -> Image.Image:
    """The picture, RGB."""
    with Image.open(io.BytesIO(image)) as opened:
        return opened.convert("RGB")


def _exhaust(samples: Iterator[Any]) -> None:
    for _ in samples:
        pass


if __name__ == "__main__":
    main()
