"""How many of a selection's images may fail to open before an outer step is given up."""

from collections.abc import Mapping
from typing import Any

from cit_curate.errors import BadInputError
from cit_curate.images.read import ImageRejected
from cit_curate.images.uri import parse_image_uri
from cit_curate.pool.mixture import PoolMixture
from cit_curate.reject_limit import LANE_LIMIT


class ImageLimit:
    """Counts the images of one lane and outer step that cannot be opened, up to `LANE_LIMIT`.

    An archive that cannot be read at all counts once, however many images of it are wanted, unless
    there is nothing but such archives.

    Attributes:
        message: What is known of them, for an error about too few pairs.
    """

    def __init__(self, pools: PoolMixture, *, outer_step: int, num_pairs: int) -> None:
        """Count from nothing.

        Args:
            pools: Where the images are.
            outer_step: The outer step.
            num_pairs: The pairs that are wanted, of which a share may fail.
        """
        self.message = "some selected pairs have no image"
        self._pools, self._outer_step, self._num_pairs = pools, outer_step, num_pairs
        self._num_unreadable = self._num_counted = self._in_a_row = 0
        self._archives: set[tuple[str, str, str]] = set()  # those that have been counted
        self._has_opened = False

    def opened(self) -> None:
        """Count an image that was opened."""
        self._in_a_row, self._has_opened = 0, True

    def rejected(self, fields: Mapping[str, Any], error: ImageRejected) -> None:
        """Count an image that cannot be opened.

        Raises:
            BadInputError: They are more than the limit.
        """
        self._num_unreadable += 1
        if self._counts(fields, error):
            self._num_counted += 1
            self._in_a_row += 1
        self.message = (
            f"{self._num_unreadable} of the selected images cannot be opened ({self._in_a_row} in "
            f"a row); the last one is {fields['image_uri']} of source {fields['source']}: "
            f"{error.reason}, {error.detail}. Check the image root of the pool with: cit pool info "
            f"{self._pools[fields['pool']].location}"
        )
        if LANE_LIMIT.is_exceeded(
            self._num_counted, num_seen=self._num_pairs, in_a_row=self._in_a_row
        ):
            raise BadInputError(f"outer step {self._outer_step}: {self.message}")

    def _counts(self, fields: Mapping[str, Any], error: ImageRejected) -> bool:
        """Whether a reject counts: of an archive as a whole, only the first."""
        if error.reason != "unreadable_archive" or not self._has_opened:
            return True
        uri = parse_image_uri(fields["image_uri"])
        assert uri is not None  # only a place in an archive is rejected so
        archive = (fields["pool"], fields["source"], uri.path)
        is_new = archive not in self._archives
        self._archives.add(archive)
        return is_new
