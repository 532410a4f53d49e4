"""From shards to batches, each of one lane and update, in training order.

`BatchReader` follows the shard folders of a run from one outer step to the next. It waits for a
shard that is still being written, but never for the one after it. The workers of a DataLoader
share the batches by number, so the order is that of a single process.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cit_curate.captions import augment_tags
from cit_curate.errors import CitError, DamagedError, PeerLostError, ResourceError
from cit_curate.records import UInt8, split_pair_key
from cit_curate.run.ledger_tables import SCHEMAS
from cit_curate.run.paths import lane_prefix, shard_name, step_folder
from cit_curate.run.shards import Sample, open_shard
from cit_curate.storage.durable import read_listing
from cit_train.streaming.view_buffers import ReceivedBuffers, ViewBuffer, WorkerBuffers
from cit_train.streaming.views import ViewMaker, empty_views
from cit_train.streaming.waiting import Waiting

# First words of the random keys of training.
CROP_KEY = 31
TAG_KEY = 32
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class LaneBatch:
    """What one lane contributes to one update.

    Attributes:
        outer_step: The number of the outer step.
        lane: The number of the lane.
        start: The position of the first pair in the lane's training order of this outer step.
        captions: The captions to train on, with tags freshly augmented.
        pair_keys: The keys of the pairs.
        images: The encoded images, for cached features; else empty.
        views: uint8 [batch, 3, side, side], one random crop per image; None with cached features.
        piped: uint8 [batch, side, side, 3], the views while they pass through a pipe; else None.
        buffer: The shared memory of the views while a worker passes them on; else None.
    """

    outer_step: int
    lane: int
    start: int
    captions: list[str]
    pair_keys: list[str]
    images: list[bytes]
    views: Tensor | None
    piped: UInt8 | None = None
    buffer: ViewBuffer | None = None

    def unpacked(self) -> "LaneBatch":
        """The batch with its piped or shared views, if any, as a tensor again."""
        if self.piped is not None:
            views = torch.from_numpy(self.piped).permute(0, 3, 1, 2)
            return replace(self, views=views, piped=None)
        if self.buffer is not None:
            return replace(self, views=self.buffer.views(), buffer=None)
        return self

    def pin_memory(self) -> "LaneBatch":
        """The batch with its views in page-locked memory; a DataLoader calls this."""
        batch = self.unpacked()
        return batch if batch.views is None else replace(batch, views=batch.views.pin_memory())


@dataclass(frozen=True, kw_only=True)
class BatchReaderConfig:
    """The settings that batches depend on.

    Attributes:
        folder: The folder of the shards of all outer steps.
        batch_size: The pairs of one batch.
        pairs_per_shard: The pairs of each shard but the last one of a lane and outer step.
        lanes: The lanes to read.
        seed: The seed of crops and tags.
        augments_tags: Whether the words of tags are drawn anew.
        views: The maker of views.
        with_views: Whether batches have views, or encoded images.
        wait_seconds: The longest wait for a shard.
        shares_memory: Whether workers pass views in shared memory; else through pipes.
        pins: Whether views are copied into page-locked memory, for a GPU.
    """

    folder: Path
    batch_size: int
    pairs_per_shard: int
    lanes: Sequence[int]
    seed: int
    augments_tags: bool
    views: ViewMaker
    with_views: bool
    wait_seconds: float
    shares_memory: bool = True
    pins: bool = False


class BatchReader(IterableDataset[LaneBatch | CitError]):
    """The batches from a position on: lanes in turn, outer steps in order, without end."""

    def __init__(self, config: BatchReaderConfig, outer_step: int, *, first_batch: int = 0) -> None:
        super().__init__()
        self.config = config
        self.outer_step = outer_step
        self.first_batch = first_batch
        self._buffers: WorkerBuffers | None = None

    def __iter__(self) -> Iterator[LaneBatch | CitError]:
        """The batches of this worker: every `num_workers`-th one.

        Yields:
            Batches. A worker process also yields the error that ends it, which torch would
            otherwise wrap in a traceback.
        """
        try:
            yield from self._batches()
        except CitError as error:
            if get_worker_info() is None:
                raise
            yield error

    def _batches(self) -> Iterator[LaneBatch]:
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        self._buffers = WorkerBuffers(number) if worker and self.config.shares_memory else None
        index = 0
        outer_step = self.outer_step
        start = self.first_batch * self.config.batch_size
        while True:
            lanes = [self._samples(outer_step, lane, start) for lane in self.config.lanes]
            while groups := [list(islice(lane, self.config.batch_size)) for lane in lanes]:
                if any(len(group) < self.config.batch_size for group in groups):
                    break
                for lane, group in zip(self.config.lanes, groups, strict=True):
                    if index % num_workers == number:
                        samples = [shard[row] for shard, row in group]
                        yield self._batch(outer_step, lane, start, samples)
                    index += 1
                start += self.config.batch_size
            outer_step += 1
            start = 0

    def _samples(
        self, outer_step: int, lane: int, start: int
    ) -> Iterator[tuple[Sequence[Sample], int]]:
        """The shard and row of a lane's samples in one outer step, from a position on.

        They appear as shards are closed. Samples of other workers' batches are not read.
        """
        folder = self.config.folder / step_folder(outer_step)
        first, skipped = divmod(start, self.config.pairs_per_shard)
        number = first
        while self._wait_for_shard(folder, lane, number, is_begun=number > first):
            path = folder / shard_name(lane_prefix(lane), number)
            shard = open_shard(path)
            for row in range(skipped, len(shard)):
                yield shard, row
            number, skipped = number + 1, 0

    def _wait_for_shard(self, folder: Path, lane: int, number: int, *, is_begun: bool) -> bool:
        """Wait until a shard is closed (true) or the lane is complete without it (false).

        Args:
            folder: The folder of the outer step, which may still be curated.
            lane: The number of the lane.
            number: The number of the shard.
            is_begun: Whether a shard of the folder was read before.

        Raises:
            PeerLostError: The shard does not appear in time, or its writer has failed.
            DamagedError: The shard was removed before it was read.
        """
        prefix = lane_prefix(lane)
        tar = folder / shard_name(prefix, number)
        entry = tar.with_suffix(".json")
        waiting = Waiting(str(tar), self.config.wait_seconds)
        while not entry.exists():
            _exit_with_trainer()
            if (folder / f"{prefix}.json").exists():
                return entry.exists() or _was_closed(folder / f"{prefix}.json", tar)
            if (folder / f"{prefix}.failed").exists():
                raise PeerLostError(f"writing the shards of {folder} failed")
            if folder.exists():
                is_begun = True
            elif is_begun or any(path.name > folder.name for path in folder.parent.glob("step=*")):
                raise DamagedError(f"{folder} was removed before it was read", file=str(folder))
            else:
                waiting.restart()  # the outer step is still being curated
            waiting.check()
            time.sleep(_POLL_SECONDS)
        return True

    def _batch(self, outer_step: int, lane: int, start: int, samples: list[Sample]) -> LaneBatch:
        keys = [(outer_step, lane, start + row) for row in range(len(samples))]
        batch = LaneBatch(
            outer_step,
            lane,
            start,
            [self._caption(sample, key) for sample, key in zip(samples, keys, strict=True)],
            [sample.pair_key for sample in samples],
            [sample.image for sample in samples],
            None,
        )
        return self._with_views(batch, keys) if self.config.with_views else batch

    def _with_views(self, batch: LaneBatch, keys: Sequence[tuple[int, int, int]]) -> LaneBatch:
        """The batch with a view of each image instead of the image."""
        num_views, side = len(keys), self.config.views.side
        viewed = replace(batch, images=[])
        if self._buffers is None:
            views = empty_views(num_views, side)
            self._make_views(batch.images, keys, views)
            if get_worker_info() is None:
                return replace(viewed, views=views)
            # [batch, side, side, 3], the memory layout of the views
            return replace(viewed, piped=views.permute(0, 2, 3, 1).numpy())
        buffer, is_new = self._buffers.take(num_views, side)
        views = torch.from_numpy(buffer.pixels()).permute(0, 3, 1, 2)
        self._make_views(batch.images, keys, views)
        # Whoever copies into page-locked memory is a thread of the loader, which remembers nothing.
        has_memory = is_new or self.config.pins
        return replace(viewed, buffer=buffer if has_memory else replace(buffer, memory=None))

    def _make_views(
        self, images: Sequence[bytes], keys: Sequence[tuple[int, int, int]], views: Tensor
    ) -> None:
        for image, key, view in zip(images, keys, views, strict=True):
            rng = np.random.default_rng((self.config.seed, CROP_KEY, *key))
            self.config.views(image, [rng], view[None])

    def _caption(self, sample: Sample, key: tuple[int, ...]) -> str:
        is_tag = split_pair_key(sample.pair_key)[1] == "tag"
        if not (is_tag and self.config.augments_tags):
            return sample.caption
        return augment_tags(
            sample.caption, np.random.default_rng((self.config.seed, TAG_KEY, *key))
        )


@contextlib.contextmanager
def open_batches(reader: BatchReader, *, num_workers: int) -> Iterator[Iterator[LaneBatch]]:
    """The reader's batches, from worker processes if there are any; spawned, never forked.

    Args:
        reader: The reader.
        num_workers: The worker processes; 0 = read in this process.

    Raises:
        ResourceError: A worker was killed, which torch reports by a signal anywhere in the block.
    """
    loader: DataLoader[Any] = DataLoader(
        reader,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,
        persistent_workers=bool(num_workers),
        pin_memory=reader.config.pins,
        worker_init_fn=_start_worker if num_workers else None,
    )
    batches: Any = iter(loader)
    last_keys: dict[int, str] = {}
    try:
        yield _recording_last_keys(batches, last_keys, num_workers)
    except RuntimeError as error:
        workers = enumerate(batches._workers if num_workers else ())
        codes = {number: worker.exitcode for number, worker in workers}
        deaths = [
            f"loader worker {number} was killed by {signal.Signals(-code).name} after its batch "
            f"that ends with pair {last_keys.get(number, '(none)')}"
            for number, code in codes.items()
            if code is not None and code < 0
        ]
        if not deaths:
            raise
        raise ResourceError(
            f"{'; '.join(deaths)}; perhaps memory ran out: lower --num-workers or --batch-size, "
            "and continue with --resume"
        ) from error


def _recording_last_keys(
    batches: Iterator[LaneBatch | CitError], last_keys: dict[int, str], num_workers: int
) -> Iterator[LaneBatch]:
    """The batches; the key of each worker's last pair is kept in `last_keys`, by its number.

    Raises:
        CitError: The error that ended a worker.
    """
    received = ReceivedBuffers()
    for number, batch in enumerate(batches):
        if isinstance(batch, CitError):
            raise batch
        last_keys[number % max(num_workers, 1)] = batch.pair_keys[-1]
        if batch.buffer is not None:
            batch = replace(batch, buffer=received.known(batch.buffer))
        yield batch.unpacked()


def _start_worker(worker: int) -> None:
    """Leave the trainer's process group, which terminals and launchers signal as a whole.

    The trainer still needs batches until it has saved, and ends its workers itself.
    """
    os.setpgrp()
    # Once a block of this size was freed, malloc returns no memory of pictures to the kernel, of
    # which each picture would need fresh pages.
    bytes(16 << 20)


def _was_closed(listing: Path, tar: Path) -> bool:
    """False when the listing of a complete lane has no such shard.

    Raises:
        DamagedError: The listing has the shard, which is missing.
    """
    if tar.name in {entry.path for entry in read_listing(listing)}:
        raise DamagedError(f"{tar} was removed before it was read", file=str(tar))
    return False


def _exit_with_trainer() -> None:
    """Exit a worker whose trainer is gone, which the loader notices only between batches."""
    trainer = multiprocessing.parent_process()
    if trainer is not None and not trainer.is_alive():
        os._exit(PeerLostError.exit_code)


def count_uses(
    rows: pa.Table,
    *,
    outer_step: int,
    lane: int,
    first_update: int,
    pairs_per_update: int,
) -> pa.Table:
    """The `used` rows of a lane: how often and when each pair was used, in order of first use.

    Args:
        rows: The pairs that the lane was trained on, in order, with `pair_key` and `pool`.
        outer_step: The number of the outer step.
        lane: The number of the lane.
        first_update: The update that used the first pairs.
        pairs_per_update: The lane's pairs in one update.
    """
    index = pa.array(np.arange(len(rows), dtype=np.int64))
    pairs = pa.table([rows["pool"], rows["pair_key"], index], names=["pool", "pair_key", "index"])
    counted = (
        pairs.group_by(["pool", "pair_key"])
        .aggregate([("index", "count"), ("index", "min"), ("index", "max")])
        .sort_by("index_min")
    )
    first, last = (
        first_update + counted[name].to_numpy() // pairs_per_update
        for name in ("index_min", "index_max")
    )
    columns = {
        "outer_step": pa.repeat(outer_step, len(counted)),
        "lane": pa.repeat(lane, len(counted)),
        "pair_key": counted["pair_key"],
        "times_used": counted["index_count"],
        "first_update": first,
        "last_update": last,
        "pool": counted["pool"],
    }
    return pa.table(columns).cast(SCHEMAS["used"])
