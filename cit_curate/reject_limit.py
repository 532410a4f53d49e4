"""The reject limit: how many rows, images, captions or counts may be rejected."""

from dataclasses import dataclass

from cit_curate.config import MAX_REJECT_RATIO


@dataclass(frozen=True, kw_only=True)
class RejectLimit:
    """A limit on the share of rejects, and on rejects in a row.

    Attributes:
        max_ratio: The largest allowed share of rejects.
        max_in_a_row: The number of rejects in a row that is too many.
        always_allowed: The number of rejects that is allowed at any share, since a share of few
            means little.
    """

    max_ratio: float = MAX_REJECT_RATIO
    max_in_a_row: int = 100
    always_allowed: int = 0

    def is_exceeded(self, num_rejects: int, *, num_seen: int, in_a_row: int = 0) -> bool:
        """Whether there are too many rejects.

        Args:
            num_rejects: The number of rejects.
            num_seen: The number of rows, images or captions so far, rejects included.
            in_a_row: The longest run of rejects.
        """
        allowed = max(self.max_ratio * num_seen, self.always_allowed)
        return num_rejects > allowed or in_a_row >= self.max_in_a_row


# The limit of one lane in one outer step, for images and for captions.
LANE_LIMIT = RejectLimit(always_allowed=100)
