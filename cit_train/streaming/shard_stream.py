"""From a selection of captions to shards of images, in training order, while training reads them.

A selection is permuted by (seed, outer step, lane). Its images are then opened, checked and
written in that order, so reading needs no shuffle and a position in an outer step is one integer. A
pair whose image cannot be opened is rejected, and the scan's next kept pair replaces it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cit_curate.config import CurateConfig
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.errors import BadInputError, DamagedError, ShortfallError
from cit_curate.images.read import ImageRejected, image_suffix
from cit_curate.records import each_row
from cit_curate.run.ledger import Run
from cit_curate.run.ledger_tables import SCHEMAS
from cit_curate.run.paths import lane_prefix, shard_folder
from cit_curate.run.shards import Sample, ShardWriter, closed_shards, remove_shards
from cit_curate.storage.durable import read_json, write_sealed
from cit_train.streaming.image_limit import ImageLimit
from cit_train.streaming.image_opener import ImageOpener
from cit_train.streaming.waiting import Waiting

# First word of the random key of the training order.
ORDER_KEY = 21
_POLL_SECONDS = 0.005

logger = logging.getLogger(__name__)


def rejects_path(folder: Path, lane: int) -> Path:
    """The file of the pairs that the shards of a lane leave out."""
    return folder / f"{lane_prefix(lane)}.rejects.json"


def read_rejects(path: Path) -> dict[int, ImageRejected]:
    """The rejected scan positions with their reasons; empty when there is no such file.

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
    """A source of replacement pairs, such as `LaneScan`.

    Attributes:
        config: The curation config.
        step: The outer step.
        lane: The number of the lane.
    """

    config: CurateConfig
    step: OuterStep
    lane: int

    def take(self, num_pairs: int | None, /) -> pa.Table:
        """The next kept pairs, in arrival order; fewer when the scan is exhausted."""

    def reject_rows(self) -> list[dict[str, Any]]:
        """The `rejects` rows of captions that the scan set aside."""


class ShardWriterThread(threading.Thread):
    """Writes the shards of one lane's selection, in a thread beside the training loop.

    Attributes:
        rows: The pairs written, in training order: the selection's pairs, except that those whose
            image could not be opened are replaced.
        num_written: The pairs written so far.
        error: The error that ended the thread; None if there was none.
        first_shard_at: The time when the first shard was closed, in `time.monotonic`; None before.
        last_shard_at: The time when the last shard was closed.
    """

    def __init__(
        self,
        run: Run,
        scan: PairScan,
        selection: pa.Table,
        images: ImageOpener,
        *,
        num_pairs: int,
        pairs_per_shard: int,
        make_room: Callable[[], bool] = lambda: False,
        known_rejects: Mapping[int, ImageRejected] | None = None,
    ) -> None:
        """Prepare to write; `start` begins.

        Args:
            run: The run that the shards belong to.
            scan: The lane's scan, the source of replacements.
            selection: The selected pairs, in arrival order.
            images: The opener of their images, for this lane alone.
            num_pairs: The most pairs to write.
            pairs_per_shard: The pairs of each tar but the last.
            make_room: Called on a full disk; whether to try again.
            known_rejects: All rejects by scan position, when shards are rewritten; any other image
                that cannot be opened is then an error.
        """
        super().__init__(name=f"shards-lane{scan.lane}", daemon=True)
        self.num_written = 0
        self.error: BaseException | None = None
        self.first_shard_at: float | None = None
        self.last_shard_at: float | None = None
        self.rows = selection.slice(0, 0)
        self.folder = shard_folder(run.path, scan.step.number)
        self.scan = scan
        self._images = images
        self._make_room = make_room
        self._rejects: list[dict[str, Any]] = []
        self._image_limit = ImageLimit(
            images.pools, outer_step=scan.step.number, num_pairs=num_pairs
        )
        key = (scan.config.seed, ORDER_KEY, scan.step.number, scan.lane)
        order = np.random.default_rng(key).permutation(len(selection))
        self._planned = selection.take(order)
        self._num_pairs = num_pairs
        self._unused = self._planned.slice(num_pairs)
        self._pairs_per_shard = pairs_per_shard
        self._stopping = threading.Event()
        self._knows_all = known_rejects is not None
        # Otherwise the rejects that a stopped run recorded in this outer step.
        self._known_rejects = dict(known_rejects or {})

    def run(self) -> None:
        """Write all shards; a failure becomes `error` and a marker that readers see."""
        try:
            self._write()
        except BaseException as error:  # noqa: BLE001 - raised in the main thread by `finish`
            self.error = error
            # Empty: a full disk usually still has room for a name.
            with contextlib.suppress(OSError):
                (self.folder / f"{lane_prefix(self.scan.lane)}.failed").touch()
        finally:
            self._images.cancel()

    def stop(self) -> None:
        """Make the thread end after the current pair."""
        self._stopping.set()

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            BaseException: The error of the thread.
        """
        self.join()
        if self.error is not None:
            raise self.error

    def has_written(self, num_pairs: int, *, wait_seconds: float) -> bool:
        """Wait until enough pairs are written; False when the thread ends with fewer.

        Args:
            num_pairs: The pairs to wait for.
            wait_seconds: The longest wait for the next pair.

        Raises:
            PeerLostError: The next pair takes longer.
            BaseException: The error of the thread.
        """
        waiting, before = Waiting(f"images of {self.folder}", wait_seconds), self.num_written
        while self.num_written < num_pairs and self.is_alive():
            self.join(_POLL_SECONDS)
            if self.num_written > before:
                before = self.num_written
                waiting.restart()
            waiting.check()
        if self.num_written < num_pairs:
            self.finish()
        return self.num_written >= num_pairs

    def selected_rows(self) -> pa.Table:
        """The final selection in arrival order, with replacements instead of rejected pairs."""
        rows = pa.concat_tables([self.rows, self._unused])
        return rows.sort_by("scan_position")

    def reject_rows(self) -> pa.Table:
        """The `rejects` rows of this outer step."""
        rejects = [*self.scan.reject_rows(), *self._rejects]
        return pa.Table.from_pylist(rejects, schema=SCHEMAS["rejects"])

    def _write(self) -> None:
        writer = self._open_writer()
        # Pairs in closed shards of a stopped run, whose images are not opened again.
        num_closed = sum(entry.rows for entry in writer.entries)
        written: list[int] = []  # rows of the planned pairs followed by the replacements
        replacements: list[pa.Table] = []
        num_tried = 0
        for planned_row, fields in enumerate(each_row(self._planned)):
            if len(written) == self._num_pairs:
                break
            if self._stopping.is_set():
                raise BadInputError("the writing of shards was stopped")
            num_tried = planned_row + 1
            is_new = len(written) >= num_closed
            opened = self._images.open_ahead(self._planned, planned_row) if is_new else None
            image, row = self._image_or_none(fields, opened), planned_row
            while image is None:
                replacement = self._replacement()
                if not len(replacement):
                    break
                fields = next(each_row(replacement))
                image = self._image_or_none(fields, self._images.open(fields) if is_new else None)
                row = len(self._planned) + len(replacements)
                replacements.append(replacement)
            if image is None:  # the scan is exhausted, and the policy is to train on fewer pairs
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
        """A writer that appends to the closed shards on disk."""
        prefix = lane_prefix(self.scan.lane)
        try:
            if not self._knows_all:
                self._known_rejects = read_rejects(self._rejects_path)
        except DamagedError as error:
            # Without it there is no record of the pairs that the closed shards left out.
            logger.warning("%s; the shards of its lane are rewritten", error)
            remove_shards(self.folder, prefix)
        return ShardWriter(
            self.folder,
            prefix,
            pairs_per_shard=self._pairs_per_shard,
            entries=closed_shards(self.folder, prefix),
            make_room=lambda: not self._stopping.is_set() and self._make_room(),
        )

    def _add(self, writer: ShardWriter, sample: Sample) -> None:
        # Before the shard is closed: a resumed run must know which pairs it leaves out.
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
        if len(self._images.pools) > 1:
            names.append("pool")
        info = {name: fields[name] for name in names}
        return Sample(image, image_suffix(image), fields["caption"], info)

    def _image_or_none(
        self, fields: Mapping[str, Any], opened: "Future[bytes] | None"
    ) -> bytes | None:
        """The bytes of an image that decodes; None for a rejected one, which is recorded.

        Args:
            fields: The pair.
            opened: The image; None for a pair of a closed shard, whose image is not opened again
                and is b"" unless it was rejected.

        Raises:
            DamagedError: All rejects are known, and this image is a new one.
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
        if error.reason == "no_image":  # known to the pool, and no sign of a fault
            return
        try:
            self._image_limit.rejected(fields, error)
        except BadInputError as over:
            self._write_rejects()
            raise BadInputError(f"{over}; all are in {self._rejects_path}") from over
