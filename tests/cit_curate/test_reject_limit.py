from cit_curate.reject_limit import LANE_LIMIT, RejectLimit


def test_the_largest_share_itself_is_allowed() -> None:
    limit = RejectLimit(max_ratio=0.1)
    assert not limit.is_exceeded(10, num_seen=100)
    assert limit.is_exceeded(11, num_seen=100)


def test_without_a_ratio_one_in_a_hundred_is_allowed() -> None:
    assert not RejectLimit().is_exceeded(3, num_seen=300)
    assert RejectLimit().is_exceeded(4, num_seen=300)


def test_so_many_in_a_row_are_too_many_whatever_their_share() -> None:
    limit = RejectLimit(max_ratio=1.0, max_in_a_row=3)
    assert not limit.is_exceeded(9, num_seen=10, in_a_row=2)
    assert limit.is_exceeded(3, num_seen=10_000, in_a_row=3)


def test_the_share_of_a_lane_counts_from_a_hundred_rejects_on() -> None:
    assert not LANE_LIMIT.is_exceeded(100, num_seen=101, in_a_row=99)
    assert LANE_LIMIT.is_exceeded(101, num_seen=200)
    assert not LANE_LIMIT.is_exceeded(200, num_seen=20_000)
    assert LANE_LIMIT.is_exceeded(201, num_seen=20_000)
