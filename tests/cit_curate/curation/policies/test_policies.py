"""Policies in a scan: what is kept, and for what reason."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from caption_lists import ListOrder, WordEncoder, caption_table, open_scan
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.config import CurateConfig
from cit_curate.curation import lane_scan
from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.scan_ledger import ledger_rows, round_row
from cit_curate.curation.scan_state import state_from_json, state_to_json
from cit_curate.errors import ConfigError, ShortfallError
from cit_curate.metadata.entries import MetadataEntry
from indexes.build import build_index

# Three metadata entries, at 0, 120 and 240 degrees.
ENTRIES = ("0", "120", "240")
angles = st.lists(st.integers(0, 359), min_size=30, max_size=150)


def scan(captions: Sequence[float], **fields: object) -> LaneScan:
    encoder = WordEncoder()
    config = CurateConfig(**{"batch_size": 5, "curate_every": 2, **fields})
    order = ListOrder(caption_table([str(each) for each in captions]))
    entries = [MetadataEntry(name) for name in ENTRIES]
    return open_scan(config, order, entries, encoder, build_index(encoder.embed(ENTRIES), "exact"))


def similarity(angle: float) -> float:
    return max(math.cos(math.radians(angle - float(entry))) for entry in ENTRIES)


def reasons(rows: object) -> list[str]:
    return rows["reason"].to_pylist()


def kept_captions(rows: object) -> list[str]:
    return rows["caption"].to_pylist()


# --- a share of what is scanned


@given(angles, st.sampled_from([0.05, 0.15, 1 / 3, 0.9]))
def test_keep_ratio_keeps_the_best_of_each_batch_up_to_its_share(
    captions: list[int], ratio: float
) -> None:
    found = scan(captions, keep_ratio=ratio, on_shortfall="train", collection="multiset")
    try:
        rows = found.take(None)
    except ShortfallError:
        assert int(ratio * len(captions)) == 0
        return
    assert len(rows) == int(ratio * len(captions))
    expected = []
    for start in range(0, len(captions), 10):
        batch = captions[start : start + 10]
        count = int(ratio * (start + len(batch))) - int(ratio * start)
        values = np.array([similarity(each) for each in batch])
        best = np.argsort(-values.astype(np.float32), kind="stable")[:count]
        expected.append(sorted(values[best].round(5).tolist()))
    got = np.array([similarity(float(each)) for each in kept_captions(rows)])
    positions = rows["scan_position"].to_numpy()
    for number, values in enumerate(expected):
        of_batch = got[(positions >= 10 * number) & (positions < 10 * number + 10)]
        assert sorted(of_batch.round(5).tolist()) == pytest.approx(values, abs=1e-4)
    assert set(reasons(rows)) == {"keep_ratio"}


def test_the_round_has_the_threshold_that_a_share_came_to() -> None:
    found = scan([0, 50, 10, 40, 20, 55, 30, 35, 60, 45], keep_ratio=0.3)
    rows = found.take(3)
    assert kept_captions(rows) == ["0", "10", "20"]
    (row,) = round_row(found, selected=3).to_pylist()
    assert row["threshold"] == pytest.approx(similarity(20))
    assert reasons(ledger_rows(found, found.near_misses, "near_misses")) == ["keep_ratio"] * 5


def test_too_small_a_share_is_an_error_with_one_that_works() -> None:
    captions = list(range(100))
    with pytest.raises(ShortfallError, match=r"at a kept ratio of 0\.02") as caught:
        scan(captions, keep_ratio=0.02).take(10)
    found = re.search(r"--keep-ratio (\S+) would have kept enough", str(caught.value))
    assert found
    assert len(scan(captions, keep_ratio=float(found[1])).take(10)) == 10


# --- balance


def test_no_entry_gets_more_than_its_share_and_near_misses_say_why() -> None:
    # A budget of 10 pairs for 3 entries: at most ceil(1.2 * 10 / 3) = 4 of each.
    captions = [0, 1, 2, 3, 4, 5, 6, 7, 120, 121, 8, 9, 240, 241, 122, 242, 123, 243, 10, 11]
    found = scan(captions, threshold=0.9, balance=1.2)
    rows = found.take(10)
    assert Counter(rows["metadata_text"].to_pylist()) == {"0": 4, "120": 3, "240": 3}
    assert kept_captions(rows)[:4] == ["0", "1", "2", "3"]  # of a batch, the best
    assert set(reasons(rows)) == {"threshold"}
    missed = ledger_rows(found, found.near_misses, "near_misses")
    assert dict(zip(kept_captions_of(found), reasons(missed), strict=True))["4"] == "balance"


def kept_captions_of(found: LaneScan) -> list[str]:
    return found.near_misses["caption"].to_pylist()


def test_when_the_passes_end_first_the_next_best_fill_the_budget_and_are_marked() -> None:
    captions = [0, 3, 2, 1, 100, 125, 60, 65, 50, 245]
    found = scan(captions, threshold=0.99, balance=1.0, min_ratio=0.0)
    rows = found.take(8)
    # 4 of each entry at most: 0 to 3, 125 and 245 pass; 100, the next best, and 50 wait.
    assert kept_captions(rows) == ["0", "3", "2", "1", "125", "245", "100", "50"]
    assert reasons(rows) == ["threshold"] * 6 + ["next_best"] * 2
    assert found.totals.kept == 8
    # A replacement for a broken picture is the next one again.
    assert kept_captions(found.take(1)) == ["65"]
    with pytest.raises(ShortfallError):
        found.take(2)


@given(angles, st.sampled_from([1.0, 1.5, 3.0]), st.integers(1, 3))
def test_every_kept_pair_within_the_passes_keeps_the_limit(
    captions: list[int], times: float, passes: int
) -> None:
    fields = {"threshold": 0.5, "balance": times, "max_passes": passes, "collection": "multiset"}
    found = scan(captions, **fields, on_shortfall="train")
    rows = found.take(10)
    within = [
        entry
        for entry, reason in zip(rows["metadata_text"].to_pylist(), reasons(rows), strict=True)
        if reason != "next_best"
    ]
    assert max(Counter(within).values(), default=0) <= math.ceil(times * 10 / 3)
    assert len(rows) == 10  # the reserve has the rest


# --- anchor


def anchored_scan(
    captions: Sequence[int], first: Callable[[float], float], weight: float
) -> LaneScan:
    found = scan(captions, keep_ratio=0.2, anchor=weight)
    today = found._scores
    assert today is not None

    def both(window: object, totals: object) -> object:
        scores = today(window, totals)
        texts = [text for batch in window for text in batch.rows["caption"].to_pylist()]
        values = np.array([first(float(text)) for text in texts], dtype=np.float32)
        return scores._replace(first=values)

    found._scores = both
    return found


def test_an_anchor_of_1_ranks_by_the_first_encoder_and_of_0_by_todays() -> None:
    captions = [0, 20, 40, 60, 10, 30, 50, 5, 15, 25]
    by_first = anchored_scan(captions, lambda angle: angle / 100, 1.0).take(2)
    assert kept_captions(by_first) == ["60", "50"]
    by_today = anchored_scan(captions, lambda angle: angle / 100, 1e-9).take(2)
    assert kept_captions(by_today) == ["0", "5"]


def test_both_similarities_count_alike_whatever_their_scale() -> None:
    captions = [0, 20, 40, 60, 10, 30, 50, 5, 15, 25]
    narrow = anchored_scan(captions, lambda angle: -angle / 1000, 0.5).take(2)
    wide = anchored_scan(captions, lambda angle: 5 - angle * 10, 0.5).take(2)
    assert kept_captions(narrow) == kept_captions(wide) == ["0", "5"]


# --- a random share


def test_random_pairs_are_a_share_of_what_is_kept_and_do_not_depend_on_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    captions = rng.integers(0, 360, 400).tolist()
    fields = {"threshold": 0.95, "mix_random": 0.25, "collection": "multiset"}
    whole = scan(captions, **fields).take(None)
    counts = Counter(reasons(whole))
    assert counts["random"] / len(whole) == pytest.approx(0.25, abs=0.02)
    random = [
        similarity(float(c))
        for c, r in zip(kept_captions(whole), reasons(whole), strict=True)
        if r == "random"
    ]
    assert np.mean(random) < 0.9  # not the best of the rest
    for name, size in (("SMALLEST_WINDOW", 10), ("LARGEST_WINDOW", 30)):
        monkeypatch.setattr(lane_scan, name, size)
    assert scan(captions, **fields).take(None).equals(whole)


# --- a policy of one's own


def test_a_policy_of_ones_own_leaves_captions_out_or_ranks_them(tmp_path: Path) -> None:
    (tmp_path / "mine_for_test.py").write_text(
        "import numpy as np\n"
        "def short(candidates, decision):\n"
        "    captions = candidates.batch.rows['caption'].to_pylist()\n"
        "    return np.array([len(text) < 2 for text in captions])\n"
        "def farthest(candidates, decision):\n"
        "    return -candidates.scores.similarity\n"
        "def wrong(candidates, decision):\n"
        "    return np.zeros(3)\n"
        "def late(candidates, decision):\n"
        "    return decision.keep(candidates.scores.similarity < 0.6, 'late')\n"
    )
    captions = [0, 10, 1, 50, 2, 20, 3, 60, 4, 30]
    own = f"{tmp_path / 'mine_for_test.py'}:"
    found = scan(captions, threshold=0.9, policy=f"{own}short")
    assert kept_captions(found.take(None)) == ["0", "1", "2", "3", "4"]
    missed = dict(zip(kept_captions_of(found), reasons(found.near_misses), strict=True))
    assert missed["10"] == "policy"
    best = scan(captions, keep_ratio=0.2, policy=f"{own}farthest").take(None)
    assert sorted(kept_captions(best)) == ["50", "60"]
    with pytest.raises(ConfigError, match=r"shape \(3,\) for 10 captions"):
        scan(captions, policy=f"{own}wrong").take(None)
    # A file may have the name of a module that is imported already, and one may be broken.
    (tmp_path / "json.py").write_text("def none(candidates, decision):\n    return decision\n")
    assert len(scan(captions, threshold=0.9, policy=f"{tmp_path}/json.py:none").take(None))
    (tmp_path / "broken.py").write_text("x = 1\ny = = 2\n")
    for name, message in (
        (f"{tmp_path}/broken.py:f", "cannot be imported: SyntaxError"),
        (f"{own}absent", "has no function absent"),
        ("no.such.module:f", "cannot be imported"),
        ("just_a_name", "it reads package.module:function"),
    ):
        with pytest.raises(ConfigError, match=message):
            scan(captions, policy=name)


# --- settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_ratio": 1.5}, "--keep-ratio is 1.5"),
        ({"anchor": 0.5}, "give --keep-ratio"),
        ({"balance": 0.5}, "at least 1"),
        ({"mix_random": 1.0}, "--mix-random is 1"),
        ({"keep_ratio": 0.1, "curation": "cascade"}, "--keep-ratio: policies need the similarity"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CurateConfig(**fields)


# --- going on


@given(angles, st.integers(0, 9))
def test_a_scan_with_policies_goes_on_from_any_state_as_if_never_stopped(
    captions: list[int], taken: int
) -> None:
    fields = {"threshold": 0.6, "balance": 1.5, "mix_random": 0.2, "on_shortfall": "train"}
    whole = scan(captions, **fields)
    before, after = whole.take(taken + 1), whole.take(3) if taken < 9 else None
    stopped = scan(captions, **fields)
    state = stopped.state(stopped.take(taken + 1))
    value = state_to_json(state)
    again = scan(captions, **fields)
    again.resume_from(
        state_from_json(
            value, near_misses=state.near_misses, surplus=state.surplus, reserve=state.reserve
        )
    )
    assert before.num_rows
    if after is not None:
        assert again.take(3).equals(after)
        assert again.totals.kept_of_reason == whole.totals.kept_of_reason
