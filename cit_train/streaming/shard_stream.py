"""From a selection of captions to shards of images, in training order, while training reads them.

A selection is permuted by (seed, outer step, lane). Its images are then opened, checked and
written in that order, so reading needs no shuffle and a place in an outer step is one integer. A
pair whose image cannot be opened is set aside, and the scan's next kept pair takes its place.
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cit_curate.config import CurateConfig
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.errors import BadInputError, DamagedError, ShortfallError
from cit_curate.images.decoders import decoders
from cit_curate.images.read import ImageRejected, image_suffix
from cit_curate.pool.mixture import PoolMixture
from cit_curate.records import each_row
from cit_curate.run.ledger import Run
from cit_curate.run.ledger_tables import SCHEMAS
from cit_curate.run.paths import lane_prefix, shard_folder
from cit_curate.run.shards import Sample, ShardWriter, closed_shards, remove_shards
from cit_curate.storage.durable import read_json, write_sealed
from cit_train.streaming.image_limit import ImageLimit
from cit_train.streaming.waiting import Waiting

# First word of the random key of the training order.
ORDER_KEY = 21
# Threads that have images opened and checked for all lanes of a process, each by a process of its
# own; more than this would mostly take cores from the training loop.
MAX_THREADS = 8
# Images of a lane that are opened ahead of the one that is written.
_IMAGES_AHEAD = 2 * MAX_THREADS
_POLL_SECONDS = 0.005

logger = logging.getLogger(__name__)


def image_threads() -> ThreadPoolExecutor:
    """The threads that open and check images, for the streams of a process."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS), thread_name_prefix="images")


def rejects_path(folder: Path, lane: int) -> Path:
    """Where the shards of a lane have what they leave out."""
    return folder / f"{lane_prefix(lane)}.rejects.json"


def read_rejects(path: Path) -> dict[int, ImageRejected]:
    """Why each scan position is left out; empty when there is no such file.

    Raises:
        DamagedError: The file is damaged.
    """
    if not path.exists():
        return {}
    value = read_json(path)
    try:
        rows = value.pop("rejects") if isinstance(value, dict) else value
        if isinstance(value, dict) and value:
            raise ValueError(f"it has {', '.join(value)}")
        return {position: ImageRejected(reason, detail) for position, reason, detail in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


class PairScan(Protocol):
    """Where pairs come from that take the place of others: `LaneScan` is one.

    Attributes:
        config: The rules.
        step: The outer step.
        lane: The lane.
    """

    config: CurateConfig
    step: OuterStep
    lane: int

    def take(self, num_pairs: int | None, /) -> pa.Table:
        """The next kept pairs, in arrival order; fewer when there are no more."""

    def reject_rows(self) -> list[dict[str, Any]]:
        """The `rejects` rows of captions that it set aside."""


class ShardWriterThread(threading.Thread):
    """Writes the shards of one lane's selection; a thread beside the training loop.

    Attributes:
        rows: The pairs that were written, in training order: the selection's pairs, with those
            replaced whose image could not be opened.
        num_written: Pairs that are written so far.
        error: What ended the stream, if not its end.
        first_shard_at: When the first shard was closed, in `time.monotonic`; None before.
        last_shard_at: When the last one was.
    """

    def __init__(
        self,
        run: Run,
        pools: PoolMixture,
        scan: PairScan,
        selection: pa.Table,
        *,
        num_pairs: int,
        pairs_per_shard: int,
        max_pixels: int,
        threads: ThreadPoolExecutor,
        image_side: int = 0,
        is_decoded: Callable[[bytes], bool] = lambda image: False,
        make_room: Callable[[], bool] = lambda: False,
        known_rejects: Mapping[int, ImageRejected] | None = None,
    ) -> None:
        """Prepare to write; `start` begins.

        Args:
            run: Whose shards they are.
            pools: Where the images are.
            scan: The lane's scan, which gives replacements.
            selection: Its pairs, in arrival order.
            num_pairs: That are written, at most.
            pairs_per_shard: Of each tar but the last.
            max_pixels: Images with more are rejected.
            threads: Open and check images, for all streams of this process.
            image_side: See `shard_image`.
            is_decoded: Whether an image is known to decode.
            make_room: Asked on a full disk whether to try again.
            known_rejects: All that is left out, by scan position, where it is known: shards are
                written once more, and any other image that cannot be opened ends it.
        """
        super().__init__(name=f"shards-lane{scan.lane}", daemon=True)
        self.num_written = 0
        self.error: BaseException | None = None
        self.first_shard_at: float | None = None
        self.last_shard_at: float | None = None
        self.rows = selection.slice(0, 0)
        self.folder = shard_folder(run.path, scan.step.number)
        self._pools = pools
        self.scan = scan
        self._max_pixels = max_pixels
        self._image_side = image_side
        self._is_decoded = is_decoded
        self._make_room = make_room
        self._threads = threads
        self._ahead: deque[Future[bytes]] = deque()
        self._later: Iterator[dict[str, Any]] | None = None
        self._rejects: list[dict[str, Any]] = []
        self._image_limit = ImageLimit(pools, outer_step=scan.step.number, num_pairs=num_pairs)
        key = (scan.config.seed, ORDER_KEY, scan.step.number, scan.lane)
        order = np.random.default_rng(key).permutation(len(selection))
        self._planned = selection.take(order)
        self._num_pairs = num_pairs
        self._unused = self._planned.slice(num_pairs)
        self._pairs_per_shard = pairs_per_shard
        self._stopping = threading.Event()
        # What a run that was stopped in this outer step had written: so many pairs need not be
        # opened again, and these scan positions were rejected.
        self._num_written = 0
        self._knows_all = known_rejects is not None
        self._known_rejects = dict(known_rejects or {})

    def run(self) -> None:
        """Write everything; a failure becomes `error` and a marker that readers see."""
        try:
            self._write()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread by `finish`
            self.error = error
            # Empty: a disk without room for data usually still takes a name.
            with contextlib.suppress(OSError):
                (self.folder / f"{lane_prefix(self.scan.lane)}.failed").touch()
        finally:
            for future in self._ahead:
                future.cancel()

    def stop(self) -> None:
        """Ask the thread to end after the pair it is at."""
        self._stopping.set()

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            BaseException: What the thread raised.
        """
        self.join()
        if self.error is not None:
            raise self.error

    def has_written(self, num_pairs: int, *, wait_seconds: float) -> bool:
        """Wait until so many pairs are written; False when the stream ends with fewer.

        Args:
            num_pairs: That are wanted.
            wait_seconds: Longest wait for the next one.

        Raises:
            PeerLostError: It does not come.
            BaseException: What the thread raised.
        """
        waiting, before = Waiting(f"images of {self.folder}", wait_seconds), self.num_written
        while self.num_written < num_pairs and self.is_alive():
            self.join(_POLL_SECONDS)
            if self.num_written > before:
                before = self.num_written
                waiting.again()
            waiting.check()
        if self.num_written < num_pairs:
            self.finish()
        return self.num_written >= num_pairs

    def selected_rows(self) -> pa.Table:
        """The selection as it came out, in arrival order: replaced pairs are not in it."""
        rows = pa.concat_tables([self.rows, self._unused])
        return rows.sort_by("scan_position")

    def reject_rows(self) -> pa.Table:
        """The `rejects` rows of this outer step."""
        rejects = [*self.scan.reject_rows(), *self._rejects]
        return pa.Table.from_pylist(rejects, schema=SCHEMAS["rejects"])

    def _write(self) -> None:
        writer = self._open_writer()
        written: list[int] = []  # rows of the planned pairs with the replacements behind them
        replacements: list[pa.Table] = []
        num_tried = 0
        for place, fields in enumerate(each_row(self._planned)):
            if len(written) == self._num_pairs:
                break
            if self._stopping.is_set():
                raise BadInputError("the stream was asked to stop")
            num_tried = place + 1
            is_new = len(written) >= self._num_written
            opened = self._opened(place) if is_new else None
            image, row = self._image_or_none(fields, opened), place
            while image is None:
                replacement = self._replacement()
                if not len(replacement):
                    break
                fields = next(each_row(replacement))
                image = self._image_or_none(fields, self._open(fields) if is_new else None)
                row = len(self._planned) + len(replacements)
                replacements.append(replacement)
            if image is None:  # the passes are over, and the policy is to train on what there is
                continue
            if is_new:
                self._add(writer, self._sample(fields, image))
            written.append(row)
            self.num_written = len(written)
        self._write_rejects()
        writer.close()
        self.last_shard_at = time.monotonic()
        self.first_shard_at = self.first_shard_at or self.last_shard_at
        self._unused = self._planned.slice(num_tried)
        everything = pa.concat_tables([self._planned, *replacements]).combine_chunks()
        self.rows = everything.take(pa.array(written, pa.int64()))

    def _open_writer(self) -> ShardWriter:
        """A writer that goes on after the shards that are there."""
        prefix = lane_prefix(self.scan.lane)
        try:
            if not self._knows_all:
                self._known_rejects = read_rejects(self._rejects_path)
        except DamagedError as error:
            # Without it nobody knows which pairs the closed shards left out.
            logger.warning("%s; the shards of its lane are written again", error)
            remove_shards(self.folder, prefix)
        entries = closed_shards(self.folder, prefix)
        self._num_written = sum(entry.rows for entry in entries)
        return ShardWriter(
            self.folder,
            prefix,
            pairs_per_shard=self._pairs_per_shard,
            entries=entries,
            make_room=lambda: not self._stopping.is_set() and self._make_room(),
        )

    def _add(self, writer: ShardWriter, sample: Sample) -> None:
        # Before the shard is closed: whoever goes on after it must know what was left out.
        if self._rejects and writer.is_almost_full:
            self._write_rejects()
        writer.add(sample)
        if writer.entries and self.first_shard_at is None:
            self.first_shard_at = time.monotonic()

    def _write_rejects(self) -> None:
        rejects = [(row["scan_position"], row["reason"], row["detail"]) for row in self._rejects]
        if rejects:
            write_sealed(self._rejects_path, {"rejects": rejects})

    @property
    def _rejects_path(self) -> Path:
        return rejects_path(self.folder, self.scan.lane)

    def _sample(self, fields: Mapping[str, Any], image: bytes) -> Sample:
        names = ["pair_key", "image_id", "text_key", "similarity", "metadata_text", "reason"]
        if len(self._pools) > 1:
            names.append("pool")
        info = {name: fields[name] for name in names}
        return Sample(image, image_suffix(image), fields["caption"], info)

    def _image_or_none(
        self, fields: Mapping[str, Any], opened: "Future[bytes] | None"
    ) -> bytes | None:
        """The image's bytes, once it is known to decode; a rejected image is written down.

        Args:
            fields: The pair.
            opened: Its image; None for a pair in a closed shard, whose image is not opened again:
                b"", or what it was rejected for.

        Raises:
            DamagedError: All that is left out is known, and this is not.
        """
        known = self._known_rejects.get(fields["scan_position"])
        try:
            if known is not None and (opened is None or self._knows_all):
                raise known
            image = b"" if opened is None else opened.result()
        except ImageRejected as error:
            if self._knows_all and known is None:
                raise DamagedError(
                    f"the image {fields['image_uri']} of {fields['pair_key']} could be opened "
                    f"before: {error.reason}, {error.detail}"
                ) from error
            self._reject(fields, error)
            return None
        self._image_limit.opened()
        return image

    def _opened(self, place: int) -> "Future[bytes]":
        """The image of a planned pair, while those of the next ones are being opened."""
        if self._later is None:  # the first pair that is in no closed shard
            self._later = each_row(self._planned.slice(place))
        while len(self._ahead) < _IMAGES_AHEAD and (fields := next(self._later, None)):
            self._ahead.append(self._open(fields))
        return self._ahead.popleft()

    def _open(self, fields: Mapping[str, Any]) -> "Future[bytes]":
        return self._threads.submit(
            self._image, fields["pool"], fields["image_uri"], fields["source"]
        )

    def _image(self, pool: str, image_uri: str, source: str) -> bytes:
        """What goes into the shard for an image; raises ImageRejected."""
        image: bytes = self._pools[pool].image_bytes(image_uri, source)
        if not self._image_side and self._is_decoded(image):
            return image
        return decoders().shard_image(image, side=self._image_side, max_pixels=self._max_pixels)

    def _replacement(self) -> pa.Table:
        try:
            return self.scan.take(1)
        except ShortfallError as error:
            raise ShortfallError(
                f"{error}. It is short because {self._image_limit.message}",
                best_similarity=error.best_similarity,
                suggested_threshold=error.suggested_threshold,
            ) from error

    def _reject(self, fields: Mapping[str, Any], error: ImageRejected) -> None:
        names = ("scan_position", "pair_key", "image_uri")
        self._rejects.append(
            {
                "outer_step": self.scan.step.number,
                "lane": self.scan.lane,
                **{name: fields[name] for name in names},
                "reason": error.reason,
                "detail": error.detail,
                "pool": fields["pool"],
                "source": fields["source"],
            }
        )
        if error.reason == "no_image":  # the pool says so itself: nothing is wrong with it
            return
        try:
            self._image_limit.rejected(fields, error)
        except BadInputError as over:
            self._write_rejects()
            raise BadInputError(f"{over}; all are in {self._rejects_path}") from over
