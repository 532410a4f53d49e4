"""Token ids in one array are those of the captions one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.text_encoder.tokens import Tokens

CAPTIONS = st.lists(st.lists(st.integers(0, 30_000), max_size=6), min_size=1, max_size=8)


def split(tokens: Tokens) -> list[list[int]]:
    ends = tokens.starts + tokens.counts
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.starts, ends, strict=True)]


@given(CAPTIONS, st.data())
def test_captions_come_out_as_they_went_in(captions: list[list[int]], data: st.DataObject) -> None:
    tokens = Tokens.of(captions)
    assert split(tokens) == captions
    rows = data.draw(st.lists(st.integers(0, len(captions) - 1), min_size=1, max_size=10))
    assert split(tokens.take(np.array(rows))) == [captions[row] for row in rows]
