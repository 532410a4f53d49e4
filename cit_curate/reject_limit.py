"""One rule for rows, images, captions and counts alike: how many rejects are too many."""

from dataclasses import dataclass

from cit_curate.config import MAX_REJECT_RATIO


@dataclass(frozen=True, kw_only=True)
class RejectLimit:
    """How many rejects are too many: more than a share, or so many in a row.

    Attributes:
        max_ratio: The largest share of rejects.
        max_in_a_row: The number of rejects in a row that is too many.
        always_allowed: The number of rejects whose share does not matter, for among few it means
            nothing.
    """

    max_ratio: float = MAX_REJECT_RATIO
    max_in_a_row: int = 100
    always_allowed: int = 0

    def is_exceeded(self, num_rejects: int, *, num_seen: int, in_a_row: int = 0) -> bool:
        """Whether there are too many.

        Args:
            num_rejects: All rejects.
            num_seen: Rejects and the others, of which `max_ratio` is a share.
            in_a_row: The longest run of rejects.
        """
        allowed = max(self.max_ratio * num_seen, self.always_allowed)
        return num_rejects > allowed or in_a_row >= self.max_in_a_row


# The limit of one lane in one outer step, for its images and for its captions.
LANE_LIMIT = RejectLimit(always_allowed=100)
