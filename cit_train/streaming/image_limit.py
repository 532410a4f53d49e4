"""How many images of a selection may fail to open before an outer step is abandoned."""

from collections.abc import Mapping
from typing import Any

from cit_curate.errors import BadInputError
from cit_curate.images.read import ImageRejected
from cit_curate.images.uri import parse_image_uri
from cit_curate.pool.mixture import PoolMixture
from cit_curate.reject_limit import LANE_LIMIT


class ImageLimit:
    """Counts the images of one lane and outer step that cannot be opened, up to `LANE_LIMIT`.

    An archive that cannot be read at all counts once, however many of its images are selected, as
    soon as one image could be opened; before that, each of them counts.

    Attributes:
        message: A description of the failures, for an error about too few pairs.
    """

    def __init__(self, pools: PoolMixture, *, outer_step: int, num_pairs: int) -> None:
        """Start with no failures.

        Args:
            pools: The pools of the images.
            outer_step: The number of the outer step.
            num_pairs: The pairs to write, of which a share may fail.
        """
        self.message = "some selected pairs have no image"
        self._pools, self._outer_step, self._num_pairs = pools, outer_step, num_pairs
        self._num_unreadable = self._num_counted = self._in_a_row = 0
        self._archives: set[tuple[str, str, str]] = set()  # unreadable and already counted
        self._has_opened = False

    def opened(self) -> None:
        """Count an opened image."""
        self._in_a_row, self._has_opened = 0, True

    def rejected(self, fields: Mapping[str, Any], error: ImageRejected) -> None:
        """Count an image that cannot be opened.

        Raises:
            BadInputError: The limit is exceeded.
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
        """Whether a reject counts; of an unreadable archive, only the first does."""
        if error.reason != "unreadable_archive" or not self._has_opened:
            return True
        uri = parse_image_uri(fields["image_uri"])
        assert uri is not None  # only images in archives have this reason
        archive = (fields["pool"], fields["source"], uri.path)
        is_new = archive not in self._archives
        self._archives.add(archive)
        return is_new
