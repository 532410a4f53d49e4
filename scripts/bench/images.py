"""Images/s of the loader and of the shard writer, against the decoder's own rate.

    python -m scripts.bench.images [--images FOLDER] [--size 500x375] [--workers 2] [--json FILE]

The decoder's own rate is that of PIL on bytes in memory, in as many processes as the loader has
workers. Without --images, montages of the demo's evaluation pictures (`cit demo --fetch-only`) are
made into JPEGs of --size: YFCC's images have about 500 x 375 pixels.

All processes stay from turn to turn, so that turns are short. The processor's time beside the rate
is that of all of a way's processes together; it says more than the rate on a machine that is busy
with something else.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from io import BytesIO
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cit_curate.images.read import ImageRejected, check_image, read_image
from cit_curate.images.shard_image import shard_image
from cit_curate.run.paths import lane_prefix, step_folder
from cit_curate.run.shards import Sample, ShardWriter
from cit_train.streaming.batches import BatchReader, BatchReaderConfig, LaneBatch, open_batches
from cit_train.streaming.views import ViewMaker, empty_views
from cit_train.transforms import train_view
from scripts.bench.own_process import processor_seconds
from scripts.bench.side_by_side import (
    Comparison,
    Facts,
    Timing,
    bench_parser,
    compare_ways,
    in_turn,
    seconds_of,
    show,
)

BATCH_SIZE = 64
SIDE = 224
QUALITY = 90
# Of the loader: two for each worker are made ahead while nobody waits, in at most this time.
WARM_BATCHES = 8
SETTLE_SECONDS = 1.0
# Outer steps of the loader with shards of their own.
OWN_STEPS = 8
MAX_PIXELS = 64_000_000

UInt8 = npt.NDArray[np.uint8]
T = TypeVar("T")
Way = Callable[[Sequence[bytes]], object]


class Turn(NamedTuple):
    """What one turn of a way took: seconds, and seconds of the processors."""

    seconds: float
    processor: float


def main() -> None:
    """Print the tables."""
    parser = bench_parser(__doc__)
    parser.add_argument("--images", type=Path, help="folder of images to use as they are")
    parser.add_argument("--size", default="500x375", help="width x height of the JPEGs made")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--num-batches", type=int, default=24, help="timed batches of the loader")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.images is not None:
        images = images_of(options.images, options.num_images)
    else:
        width, height = map(int, options.size.split("x"))
        images = montages(evaluation_pictures(), (width, height), options.num_images)
    comparisons = [
        loading(images, options.workers, options.num_batches, options.repeats),
        writing(images, options.workers, options.repeats),
        differences(images[:64]),
    ]
    facts = _facts(images)
    show([replace(each, facts=facts) for each in comparisons], options.json)


def images_of(folder: Path, num_images: int) -> list[bytes]:
    """The first images of a folder, by name, that can be read."""
    found: list[bytes] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and len(found) < num_images:
            data = path.read_bytes()
            try:
                check_image(data)
            except ImageRejected:
                continue
            found.append(data)
    return found


def evaluation_pictures() -> list[Image.Image]:
    """The demo's pictures of at least 200 pixels, from the cache of fetched packages."""
    from cit_curate.storage.cache_folder import cache_folder
    from cit_train.demo.assets import fetch_deb

    folder = fetch_deb("tuxpaint-stamps-default", cache_folder(), print)
    paths = sorted(folder.rglob("*.png"))
    pictures = (read_image(path.read_bytes()) for path in paths)
    return [picture for picture in pictures if min(picture.size) >= 200]


def montages(
    pictures: Sequence[Image.Image], size: tuple[int, int], num_images: int
) -> list[bytes]:
    """JPEGs of a size, each of pictures beside each other: no area that compresses to nothing."""
    width, height = size
    columns = max(width // 250, 1)
    cell = (width // columns, height // columns)
    made = []
    for number in range(num_images):
        image = Image.new("RGB", size)
        for place in range(columns * columns):
            picture = pictures[(number * 7 + place * 13) % len(pictures)].resize(cell)
            row, column = divmod(place, columns)
            image.paste(picture, (column * cell[0], row * cell[1]))
        stream = BytesIO()
        image.save(stream, "JPEG", quality=QUALITY)
        made.append(stream.getvalue())
    return made


def loading(images: Sequence[bytes], workers: int, num_batches: int, repeats: int) -> Comparison:
    """The loader in worker processes, against the decoder in as many."""
    counted = num_batches * BATCH_SIZE
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        write_steps(Path(folder), images, (repeats + 1) * (num_batches + WARM_BATCHES) * BATCH_SIZE)
        pool, decoders = _with_processes(lambda: stack.enter_context(_open_pool(images, workers)))

        def decoding(way: Way) -> Callable[[], Turn]:
            share = partial(_of_worker, way, counted // workers, workers)
            return partial(timed, lambda: list(pool.map(share, range(workers))), decoders)

        def reading(*, fast: bool) -> Callable[[], Turn]:
            stream = stream_of(Path(folder), fast=fast)
            batches, pids = _with_processes(
                lambda: _begun(stack.enter_context(open_batches(stream, num_workers=workers)))
            )
            return partial(loader_turn, batches, num_batches, pids)

        ways = {
            "PIL, decode alone": decoding(_decode),
            "PIL, decode + view": decoding(_decode_and_view),
            "fast views, no loader": decoding(_fast_views),
            "loader": reading(fast=False),
            "loader, --fast-views": reading(fast=True),
        }
        # The first turn warms up.
        turns = {name: found[1:] for name, found in in_turn(ways, repeats=repeats + 1).items()}
    timings = tuple(_timing(name, found, counted) for name, found in turns.items())
    title = f"Loader, {workers} workers, batches of {BATCH_SIZE}, views of {SIDE}"
    return Comparison(title, "images", timings)


def writing(images: Sequence[bytes], threads: int, repeats: int) -> Comparison:
    """What the shard writer does to each image, before it is written."""
    smaller = partial(shard_image, side=256)
    shrunk = f"--shard-image-side 256, {threads} threads"
    with ThreadPoolExecutor(threads) as pool:
        ways: dict[str, Callable[[], object]] = {
            "read in full, one thread": lambda: [read_image(image) for image in images],
            f"read in full, {threads} threads": lambda: list(pool.map(read_image, images)),
            f"check, {threads} threads (cit)": lambda: list(pool.map(check_image, images)),
            shrunk: lambda: list(pool.map(smaller, images)),
        }

        def written(way: str) -> dict[str, str]:
            sizes = [len(smaller(image) if way == shrunk else image) for image in images]
            return {"kB/image written": f"{sum(sizes) / len(images) / 1e3:.0f}"}

        title = "Shard writer, per image"
        return compare_ways(title, "images", ways, len(images), repeats=repeats, notes=written)


def differences(images: Sequence[bytes]) -> Comparison:
    """How far fast views are from plain ones; the rates are those of one thread."""
    plain = ViewMaker(side=SIDE, max_pixels=MAX_PIXELS)
    fast = replace(plain, fast=True)
    gap = abs(_views(plain, images).astype(int) - _views(fast, images))
    notes = {
        "mean difference": f"{gap.mean():.2f} of 255",
        "99th percentile": f"{np.percentile(gap, 99):.0f}",
    }
    return compare_ways(
        "Views, one thread",
        "images",
        {"views": partial(_views, plain, images), "--fast-views": partial(_views, fast, images)},
        len(images),
        repeats=3,
        notes=lambda way: notes if way == "--fast-views" else {},
    )


def write_steps(folder: Path, images: Sequence[bytes], num_pairs: int) -> None:
    """Shards of outer steps that a stream of batches reads: enough pairs, and one step more.

    Steps after the first `OWN_STEPS` are links to those.
    """
    numbers = itertools.count()
    used = images[: len(images) // BATCH_SIZE * BATCH_SIZE]
    for step in range(-(-num_pairs // len(used)) + 1):
        path = folder / step_folder(step)
        if step >= OWN_STEPS:
            path.symlink_to(step_folder(step % OWN_STEPS))
            continue
        writer = ShardWriter(path, lane_prefix(0), pairs_per_shard=512)
        for image in used:
            key = f"{next(numbers)}_title"
            writer.add(Sample(image, "jpg", "a picture", {"pair_key": key}))
        writer.close()


def stream_of(folder: Path, *, fast: bool) -> BatchReader:
    """The batches of the shards that `write_steps` made."""
    config = BatchReaderConfig(
        folder=folder,
        batch_size=BATCH_SIZE,
        pairs_per_shard=512,
        lanes=[0],
        seed=0,
        augments_tags=False,
        views=ViewMaker(side=SIDE, max_pixels=MAX_PIXELS, fast=fast),
        with_views=True,
        wait_seconds=60,
    )
    return BatchReader(config, 0)


def loader_turn(batches: Iterator[LaneBatch], num_batches: int, pids: Sequence[int]) -> Turn:
    """One turn of a loader whose workers have made batches ahead."""
    for _ in itertools.islice(batches, WARM_BATCHES):
        pass
    turn = timed(lambda: [None for _ in itertools.islice(batches, num_batches)], pids)
    time.sleep(SETTLE_SECONDS)
    return turn


def timed(way: Callable[[], object], pids: Sequence[int]) -> Turn:
    """One turn of a way that these processes work for."""
    before = processor_seconds(pids)
    seconds = seconds_of(way)
    return Turn(seconds, processor_seconds(pids) - before)


def _timing(name: str, turns: Sequence[Turn], num_images: int) -> Timing:
    processor = statistics.median(turn.processor for turn in turns) / num_images
    notes = {"processor ms": f"{processor * 1e3:.3f}"}
    return Timing(name, tuple(turn.seconds for turn in turns), num_images, notes)


def _with_processes(opening: Callable[[], T]) -> tuple[T, list[int]]:
    """What a call opens, and the ids of the processes that it starts."""
    before = set(active_children())
    opened = opening()
    return opened, [process.pid or 0 for process in set(active_children()) - before]


def _open_pool(images: Sequence[bytes], workers: int) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_keep, initargs=(images,)
    )
    # Starts them all, since none is idle yet when the next one is wanted.
    list(pool.map(time.sleep, [0.5] * workers))
    return pool


def _begun(batches: Iterator[LaneBatch]) -> Iterator[LaneBatch]:
    next(batches)  # starts the workers
    return batches


# The images of one process of the pool: timed ways find their bytes in its memory.
_kept: list[bytes] = []


def _keep(images: Sequence[bytes]) -> None:
    _kept[:] = images
    # Once a block of this size was freed, malloc returns no memory of pictures to the kernel: as in
    # the loader's workers, whose batches of views are larger.
    bytes(16 << 20)


def _of_worker(way: Way, number: int, workers: int, worker: int) -> None:
    """Do that to so many images of a worker's share, over and over."""
    way(list(itertools.islice(itertools.cycle(_kept[worker::workers]), number)))


def _decode(images: Sequence[bytes]) -> None:
    """What the decoder itself takes: `Image.open` and `load`."""
    for image in images:
        Image.open(BytesIO(image)).load()


def _decode_and_view(images: Sequence[bytes]) -> None:
    for image, rng in zip(images, _generators(), strict=False):
        train_view(Image.open(BytesIO(image)).convert("RGB"), rng, side=SIDE)


def _fast_views(images: Sequence[bytes]) -> None:
    torch.set_num_threads(1)
    maker, room = ViewMaker(side=SIDE, max_pixels=MAX_PIXELS, fast=True), empty_views(1, SIDE)
    for image, rng in zip(images, _generators(), strict=False):
        maker(image, [rng], room)


def _views(maker: ViewMaker, images: Sequence[bytes]) -> UInt8:
    room = empty_views(len(images), SIDE)
    for image, rng, view in zip(images, _generators(), room, strict=False):
        maker(image, [rng], view[None])
    return room.numpy()


def _generators() -> Iterator[np.random.Generator]:
    return (np.random.default_rng((5, number)) for number in itertools.count())


def _facts(images: Sequence[bytes]) -> Facts:
    width, height = read_image(images[0]).size
    return {
        "images": len(images),
        "first": f"{width} x {height}",
        "kB each": sum(map(len, images)) / len(images) / 1e3,
    }


if __name__ == "__main__":
    main()
