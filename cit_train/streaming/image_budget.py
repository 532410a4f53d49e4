"""How many of a selection's images may fail to open before an outer step is given up."""

from collections.abc import Mapping
from typing import Any

from cit_curate.errors import BadInputError
from cit_curate.images.read import ImageRejected
from cit_curate.images.uri import parse_image_uri
from cit_curate.pool.mixture import PoolMixture

# An outer step fails when this many images in a row cannot be opened, or a larger share than
# this; the share counts from as many rejects on, since it means nothing in a small selection. An
# archive that cannot be read at all counts once, whatever was asked of it, unless there is nothing
# but such archives.
MAX_IN_A_ROW = 100
MAX_RATIO = 0.01


class ImageBudget:
    """Counts the images of one lane and outer step that cannot be opened.

    Attributes:
        told: What is known of them, for whoever has too few pairs.
    """

    def __init__(self, pools: PoolMixture, *, outer_step: int, num_pairs: int) -> None:
        """Count from nothing.

        Args:
            pools: Where the images are.
            outer_step: The outer step.
            num_pairs: That are wanted, of which a share may fail.
        """
        self.told = "some selected pairs have no image"
        self._pools, self._outer_step = pools, outer_step
        self._num_allowed = max(MAX_RATIO * num_pairs, MAX_IN_A_ROW)
        self._num_unreadable = self._num_counted = self._in_a_row = 0
        self._archives: set[tuple[str, str, str]] = set()  # those that have been counted
        self._has_opened = False

    def opened(self) -> None:
        """An image was opened."""
        self._in_a_row, self._has_opened = 0, True

    def rejected(self, fields: Mapping[str, Any], error: ImageRejected) -> None:
        """An image of a pair was not.

        Raises:
            BadInputError: They are more than the budget.
        """
        self._num_unreadable += 1
        if self._counts(fields, error):
            self._num_counted += 1
            self._in_a_row += 1
        self.told = (
            f"{self._num_unreadable} of the selected images cannot be opened ({self._in_a_row} in "
            f"a row); the last one is {fields['image_uri']} of source {fields['source']}: "
            f"{error.reason}, {error.detail}. Check the image root of the pool with: cit pool info "
            f"{self._pools[fields['pool']].location}"
        )
        if self._in_a_row >= MAX_IN_A_ROW or self._num_counted > self._num_allowed:
            raise BadInputError(f"outer step {self._outer_step}: {self.told}")

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
