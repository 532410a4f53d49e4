"""No metadata entry gets many more pairs than the others.

Training moves the text encoder towards what it was given, so an entry that attracts many captions
attracts more in the next outer step. A limit on each entry's pairs holds that back, as MetaCLIP
(arXiv 2309.16671) does for an entry's pairs of a whole pool.
"""

import math

import numpy as np

from cit_curate.curation.policies.decision import Candidates, Decision, Policy
from cit_curate.curation.selection import BALANCE, place_within_entry


def balanced(times: float, *, num_pairs: int, num_entries: int) -> Policy:
    """Leave captions out whose nearest entry has had its pairs of this outer step.

    Args:
        times: The most pairs of an entry, as a multiple of its equal share.
        num_pairs: The pairs that the outer step collects in a lane.
        num_entries: The metadata entries.
    """
    most = max(1, math.ceil(times * num_pairs / num_entries))

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        nearest = candidates.scores.nearest
        room = np.full(num_entries, most, dtype=np.int64)
        kept = candidates.totals.kept_of_entry
        room[np.fromiter(kept, np.int64)] -= np.fromiter(kept.values(), np.int64)
        # Of a batch, the best of each entry take the room.
        place = place_within_entry(decision.open_rank, nearest)
        return decision.leave_out(place >= room[nearest], BALANCE)

    return policy
