"""What is remembered of captions gives the scores that embedding all of them would give."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.curation.scores.score_cache import ScoreCache
from cit_curate.text_encoder.texts import Texts


def score(text: str) -> tuple[np.float32, int]:
    return np.float32(len(text) / 7 - sum(map(ord, text)) % 5), sum(map(ord, text)) % 3


@settings(deadline=None)
@given(st.lists(st.lists(st.text("abc", max_size=3), max_size=30), max_size=6), st.integers(0, 9))
def test_remembered_scores_are_those_of_every_caption_alone(
    windows: list[list[str]], limit: int
) -> None:
    known = ScoreCache(limit)
    embedded: list[str] = []
    for window in windows:
        lookup = known.lookup(Texts.of(window))
        new = lookup.new.array.to_pylist()
        scores = [score(text) for text in new]
        similarity, nearest = known.store(
            lookup,
            np.array([value for value, _ in scores], dtype=np.float32),
            np.array([entry for _, entry in scores], dtype=np.int64),
        )
        expected = [score(text) for text in window]
        assert similarity.tolist() == [value for value, _ in expected]
        assert nearest.tolist() == [entry for _, entry in expected]
        embedded += new
    met = [text for window in windows for text in window]
    remembered = list(dict.fromkeys(met))[:limit]
    assert all(embedded.count(text) == 1 for text in remembered)
