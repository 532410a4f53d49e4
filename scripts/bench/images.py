"""Images/s of the loader and of the shard writer, against the decoder's own rate.

    python -m scripts.bench.images [--images FOLDER] [--size 500x375] [--workers 2] [--json FILE]

The decoder's own rate is that of PIL on bytes in memory, in as many processes as the loader has
workers. Without --images, montages of the demo's evaluation pictures (`cit demo --fetch-only`) are
made into JPEGs of --size: YFCC's images have about 500 x 375 pixels.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cit_curate.images.read import ImageRejected, check_image, read_image
from cit_curate.images.shard_image import shard_image
from cit_curate.run.paths import lane_prefix, step_folder
from cit_curate.run.shards import Sample, ShardWriter
from cit_train.streaming.batches import BatchReader, BatchReaderConfig, open_batches
from cit_train.streaming.views import ViewMaker, empty_views
from cit_train.transforms import train_view
from scripts.bench.side_by_side import Comparison, Timing, add_output, show, take_turns

BATCH_SIZE = 64
SIDE = 224
QUALITY = 90
# Of the loader: two for each worker are made ahead while nobody waits.
WARM_BATCHES = 8
MAX_PIXELS = 64_000_000

UInt8 = npt.NDArray[np.uint8]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of images to use as they are")
    parser.add_argument("--size", default="500x375", help="width x height of the JPEGs made")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--num-batches", type=int, default=40, help="timed batches of the loader")
    parser.add_argument("--workers", type=int, default=2)
    add_output(parser)
    asked = parser.parse_args()
    if asked.images is not None:
        images = images_of(asked.images, asked.num_images)
    else:
        width, height = map(int, asked.size.split("x"))
        images = montages(evaluation_pictures(), (width, height), asked.num_images)
    show(
        [
            loading(images, asked.workers, asked.num_batches, asked.repeats),
            writing(images, asked.workers, asked.repeats),
            differences(images[:64]),
        ],
        asked.json,
    )


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
    ways = {
        "PIL, decode alone": _decode,
        "PIL, decode + view": _decode_and_view,
        "fast views, no loader": _fast_views,
    }
    counted = num_batches * BATCH_SIZE
    shares = [_Share(worker, workers, counted // workers) for worker in range(workers)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_keep, initargs=(images,)
        ) as pool,
    ):
        write_steps(Path(folder), images, (num_batches + WARM_BATCHES) * BATCH_SIZE)
        timers: dict[str, Callable[[], float]] = {
            name: partial(_seconds, partial(_together, pool, way, shares))
            for name, way in ways.items()
        }
        for name, fast in (("loader", False), ("loader, --fast-views", True)):
            stream = stream_of(Path(folder), fast=fast)
            timers[name] = partial(loader_seconds, stream, workers, num_batches)
        # In turns, for the machine's own rate drifts; the first turn warms up.
        turns = [{name: timer() for name, timer in timers.items()} for _ in range(repeats + 1)][1:]
    timings = [Timing(name, tuple(turn[name] for turn in turns), counted) for name in timers]
    title = f"Loader, {workers} workers, batches of {BATCH_SIZE}, views of {SIDE}"
    return Comparison(title, "images", "PIL, decode alone", tuple(timings), _facts(images))


def writing(images: Sequence[bytes], threads: int, repeats: int) -> Comparison:
    """What the shard writer does to each image, before it is written."""
    with ThreadPoolExecutor(threads) as pool:

        def each(make: Callable[[bytes], object]) -> Callable[[], object]:
            return lambda: list(pool.map(make, images))

        ways = {
            "read in full, one thread": lambda: [read_image(image) for image in images],
            f"read in full, {threads} threads": each(read_image),
            f"check, {threads} threads (cit)": each(check_image),
            f"--shard-image-side 256, {threads} threads": each(
                lambda image: shard_image(image, side=256)
            ),
        }
        seconds = take_turns(ways, repeats=repeats)
    small = sum(len(shard_image(image, side=256)) for image in images)
    notes = dict.fromkeys(ways, f"{sum(map(len, images)) / len(images) / 1e3:.0f}")
    notes[f"--shard-image-side 256, {threads} threads"] = f"{small / len(images) / 1e3:.0f}"
    timings = [
        Timing(name, times, len(images), {"kB/image written": notes[name]})
        for name, times in seconds.items()
    ]
    return Comparison(
        "Shard writer, per image", "images", next(iter(ways)), tuple(timings), _facts(images)
    )


def differences(images: Sequence[bytes]) -> Comparison:
    """How far fast views are from plain ones; the rates are those of one thread."""
    ways = {
        "views": ViewMaker(side=SIDE, max_pixels=MAX_PIXELS),
        "--fast-views": ViewMaker(side=SIDE, max_pixels=MAX_PIXELS, fast=True),
    }
    views = {name: _views(maker, images) for name, maker in ways.items()}
    gap = (views["views"].astype(int) - views["--fast-views"]).__abs__()
    notes = {
        "--fast-views": {
            "mean difference": f"{gap.mean():.2f} of 255",
            "99th percentile": f"{np.percentile(gap, 99):.0f}",
        }
    }
    runs = {name: lambda maker=maker: _views(maker, images) for name, maker in ways.items()}
    seconds = take_turns(runs, repeats=3)
    timings = [
        Timing(name, times, len(images), notes.get(name, {})) for name, times in seconds.items()
    ]
    return Comparison("Views, one thread", "images", "views", tuple(timings), _facts(images))


def write_steps(folder: Path, images: Sequence[bytes], num_pairs: int) -> None:
    """Shards of outer steps that a stream of batches reads: enough pairs, and one step more."""
    writer_of_step = (
        ShardWriter(folder / step_folder(step), lane_prefix(0), pairs_per_shard=512)
        for step in itertools.count()
    )
    numbers = itertools.count()
    for _ in range(-(-num_pairs // len(images)) + 1):
        writer = next(writer_of_step)
        for image in images[: len(images) // BATCH_SIZE * BATCH_SIZE]:
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


def loader_seconds(
    stream: BatchReader, workers: int, num_batches: int, *, warm: int = WARM_BATCHES
) -> float:
    """Seconds for some batches of a loader that is running already."""
    with open_batches(stream, num_workers=workers) as batches:
        for _ in itertools.islice(batches, warm):
            pass
        started = time.perf_counter()
        for _ in itertools.islice(batches, num_batches):
            pass
        return time.perf_counter() - started


class _Share(NamedTuple):
    """What one process decodes: its part of the images, over and over."""

    worker: int
    workers: int
    number: int


# Of a process of the pool: timed ways find the bytes in its memory.
_kept: list[bytes] = []


def _keep(images: Sequence[bytes]) -> None:
    _kept[:] = images
    # Once a block of this size was freed, malloc returns no memory of pictures to the kernel: as in
    # the loader's workers, whose batches of views are larger.
    bytes(16 << 20)


def _together(
    pool: ProcessPoolExecutor, way: Callable[[list[bytes]], int], shares: list[_Share]
) -> int:
    return sum(pool.map(partial(_of_share, way), shares))


def _of_share(way: Callable[[list[bytes]], int], share: _Share) -> int:
    own = itertools.cycle(_kept[share.worker :: share.workers])
    return way(list(itertools.islice(own, share.number)))


def _seconds(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def _decode(images: Sequence[bytes]) -> int:
    """What the decoder itself takes: `Image.open` and `load`."""
    for image in images:
        Image.open(BytesIO(image)).load()
    return len(images)


def _decode_and_view(images: Sequence[bytes]) -> int:
    for image, rng in zip(images, _generators(), strict=False):
        train_view(Image.open(BytesIO(image)).convert("RGB"), rng, side=SIDE)
    return len(images)


def _fast_views(images: Sequence[bytes]) -> int:
    import torch

    torch.set_num_threads(1)
    maker = ViewMaker(side=SIDE, max_pixels=MAX_PIXELS, fast=True)
    room = empty_views(1, SIDE)
    for image, rng in zip(images, _generators(), strict=False):
        maker(image, [rng], room)
    return len(images)


def _views(maker: ViewMaker, images: Sequence[bytes]) -> UInt8:
    room = empty_views(len(images), SIDE)
    for image, rng, view in zip(images, _generators(), room, strict=False):
        maker(image, [rng], view[None])
    return room.numpy()


def _generators() -> Iterator[np.random.Generator]:
    return (np.random.default_rng((5, number)) for number in itertools.count())


def _facts(images: Sequence[bytes]) -> dict[str, str | int | float]:
    width, height = read_image(images[0]).size
    return {
        "images": len(images),
        "first": f"{width} x {height}",
        "kB each": sum(map(len, images)) / len(images) / 1e3,
    }


if __name__ == "__main__":
    main()
