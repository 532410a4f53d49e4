"""From a selection of captions to shards of images, in training order, while training reads them.

A selection is permuted by (seed, outer step, lane). Its images are then opened, checked and
written in that order, so reading needs no shuffle and a place in an outer step is one integer. A
pair whose image cannot be opened is set aside, and the scan's next kept pair takes its place.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cit_curate.curator import LaneScan
from cit_curate.errors import BadInputError
from cit_curate.ledger import SCHEMAS, Run, step_folder
from cit_curate.pool.images import ImageRejected, image_suffix, read_image
from cit_curate.pool.pool import Pool
from cit_curate.shards import Sample, ShardWriter

# First word of the random key of the training order.
ORDER_KEY = 21
# An outer step fails when this many images in a row cannot be opened, or a larger share than
# this; the share counts from as many rejects on, since it means nothing in a small selection.
MAX_REJECTS_IN_A_ROW = 100
MAX_REJECT_RATIO = 0.01


def lane_prefix(lane: int) -> str:
    """First part of the names of a lane's shards."""
    return f"lane{lane:05d}"


def shard_folder(run: Run, outer_step: int) -> Path:
    """Where the shards of an outer step lie."""
    return run.path / "shards" / step_folder(outer_step)


class ShardStream(threading.Thread):
    """Writes the shards of one lane's selection; a thread beside the training loop.

    Attributes:
        rows: The pairs that were written, in training order: the selection's pairs, with those
            replaced whose image could not be opened.
        error: What ended the stream, if not its end.
    """

    def __init__(
        self,
        run: Run,
        pool: Pool,
        scan: LaneScan,
        selection: pa.Table,
        *,
        num_pairs: int,
        pairs_per_shard: int,
        max_pixels: int,
        is_decoded: Callable[[bytes], bool] = lambda image: False,
    ) -> None:
        super().__init__(name=f"shards-lane{scan.lane}", daemon=True)
        self.error: BaseException | None = None
        self.rows = selection.slice(0, 0)
        self.folder = shard_folder(run, scan.outer_step)
        self._pool = pool
        self.scan = scan
        self._max_pixels = max_pixels
        self._is_decoded = is_decoded
        self._rejects: list[dict[str, Any]] = []
        self._in_a_row = 0
        self._num_unreadable = 0
        key = (scan.config.seed, ORDER_KEY, scan.outer_step, scan.lane)
        order = np.random.default_rng(key).permutation(len(selection))
        self._planned = selection.take(order)
        self._num_pairs = num_pairs
        self._unused = self._planned.slice(num_pairs)
        self._writer = ShardWriter(
            self.folder, lane_prefix(scan.lane), pairs_per_shard=pairs_per_shard
        )
        self._stopping = threading.Event()

    def run(self) -> None:
        """Write everything; a failure becomes `error` and a marker that readers see."""
        try:
            self._write()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread by `finish`
            self.error = error
            # Empty: a disk without room for data usually still takes a name.
            with contextlib.suppress(OSError):
                (self.folder / f"{lane_prefix(self.scan.lane)}.failed").touch()

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

    def selected_rows(self) -> pa.Table:
        """The selection as it came out, in arrival order: replaced pairs are not in it."""
        rows = pa.concat_tables([self.rows, self._unused])
        return rows.sort_by("scan_position")

    def reject_rows(self) -> pa.Table:
        """The `rejects` rows of this outer step."""
        return pa.Table.from_pylist(self._rejects, schema=SCHEMAS["rejects"])

    def _write(self) -> None:
        written: list[pa.Table] = []
        place = 0
        while place < len(self._planned) and len(written) < self._num_pairs:
            if self._stopping.is_set():
                raise BadInputError("the stream was asked to stop")
            row = self._planned.slice(place, 1)
            place += 1
            image = self._image_or_none(row)
            while image is None:
                row = self.scan.take(1)
                if not len(row):
                    break
                image = self._image_or_none(row)
            if image is None:  # the passes are over, and the policy is to train on what there is
                continue
            fields = row.to_pylist()[0]
            self._writer.add(Sample(image, image_suffix(image), fields["caption"], _info(fields)))
            written.append(row)
        self._writer.close()
        self._unused = self._planned.slice(place)
        self.rows = pa.concat_tables([self.rows, *written]).combine_chunks()

    def _image_or_none(self, row: pa.Table) -> bytes | None:
        """The image's bytes, once it decodes; a rejected image is written down."""
        fields = row.to_pylist()[0]
        try:
            image = self._pool.image_bytes(fields["image_uri"], fields["source"])
            if not self._is_decoded(image):
                read_image(image, max_pixels=self._max_pixels)
        except ImageRejected as error:
            self._reject(fields, error)
            return None
        self._in_a_row = 0
        return image

    def _reject(self, fields: Mapping[str, Any], error: ImageRejected) -> None:
        names = ("scan_position", "pair_key", "image_uri")
        self._rejects.append(
            {
                "outer_step": self.scan.outer_step,
                "lane": self.scan.lane,
                **{name: fields[name] for name in names},
                "reason": error.reason,
                "detail": error.detail,
            }
        )
        if error.reason == "no_image":  # the pool says so itself: nothing is wrong with it
            return
        self._in_a_row += 1
        self._num_unreadable += 1
        allowed = max(MAX_REJECT_RATIO * self._num_pairs, MAX_REJECTS_IN_A_ROW)
        if self._in_a_row >= MAX_REJECTS_IN_A_ROW or self._num_unreadable > allowed:
            raise BadInputError(
                f"outer step {self.scan.outer_step}: {self._num_unreadable} of the selected images "
                f"cannot be opened ({self._in_a_row} in a row); the last one is "
                f"{fields['image_uri']} of source {fields['source']}: {error.reason}, "
                f"{error.detail}. Check the image root of the pool with: cit pool info "
                f"{self._pool.path}"
            )


def _info(fields: Mapping[str, Any]) -> dict[str, Any]:
    names = ("pair_key", "image_id", "text_key", "similarity", "metadata_text", "reason")
    return {name: fields[name] for name in names}
