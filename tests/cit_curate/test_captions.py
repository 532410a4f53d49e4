"""Cleaning against the golden file, and repair on text that nobody would write on purpose."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.captions import (
    MAX_CAPTION_BYTES,
    TAG_DELIMITERS,
    augment_tags,
    clean_tags,
    clean_text,
    cleaner,
    cut_at_bytes,
    is_blank,
    is_unseen,
    replace_bad_text,
)

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "cleaning.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("case", GOLDEN["text"], ids=lambda case: case["raw"][:20])
def test_clean_text_equals_the_reference(case):
    assert clean_text(case["raw"]) == case["clean"]


@pytest.mark.parametrize("case", GOLDEN["tag"], ids=lambda case: case["clean"])
def test_clean_tags_equals_the_reference(case):
    assert clean_tags(case["user"], case["machine"]) == case["clean"]


def test_cleaning_by_name():
    assert cleaner("none")(" a+b ") == " a+b "
    assert cleaner("yfcc")("++a+b++") == "a b"
    with pytest.raises(ValueError, match="none and yfcc"):
        cleaner("other")


@pytest.mark.faults("C2")
@pytest.mark.parametrize(
    "nasty",
    ["<a" * 500_000, "<a" * 500_000 + "\n>", "http" * 250_000, "%" * 1_000_000, "\u0301" * 100_000],
)
def test_cleaning_a_megabyte_is_quick(nasty):
    start = time.perf_counter()
    cut_at_bytes(cleaner("yfcc")(nasty))
    clean_text(nasty)
    assert time.perf_counter() - start < 2


def test_augment_tags_is_a_function_of_its_key():
    first = augment_tags("cat, roof ,my cat", np.random.default_rng((1, 2)))
    assert first == augment_tags("cat, roof ,my cat", np.random.default_rng((1, 2)))
    seen = {augment_tags("cat, roof ,my cat", np.random.default_rng(seed)) for seed in range(400)}
    orders = [
        [a, b, c]
        for a in ("cat", "roof", "my cat")
        for b in ("cat", "roof", "my cat")
        for c in ("cat", "roof", "my cat")
        if len({a, b, c}) == 3
    ]
    assert seen == {delimiter.join(order) for order in orders for delimiter in TAG_DELIMITERS}


def test_augment_tags_keeps_empty_tags_as_the_rule_says():
    assert augment_tags(",", np.random.default_rng(0)) in TAG_DELIMITERS


@pytest.mark.faults("C1")
def test_what_is_not_seen():
    assert is_unseen("\u200b\u2060\ufeff \u00ad\u3164\u2800\ufe0f\0")
    assert not is_unseen("\u200b☃")
    assert not is_unseen(",")


def test_is_blank():
    assert is_blank("", "title")
    assert is_blank(" \n\t\u3000", "title")
    assert is_blank(" , ,,", "tag")
    assert not is_blank(",", "title")
    assert not is_blank("a,", "tag")


@pytest.mark.faults("P2")
@given(st.text(alphabet=st.characters(codec=None), max_size=30))
def test_replace_bad_text_always_encodes(text):
    fixed, changed = replace_bad_text(text)
    fixed.encode("utf-8")
    assert len(fixed) == len(text)
    assert changed == (fixed != text)


def test_replace_bad_text_flags_a_lone_surrogate_but_not_a_written_replacement_character():
    assert replace_bad_text("caf\udce9") == ("caf\ufffd", True)
    assert replace_bad_text("caf\ufffd") == ("caf\ufffd", False)
    assert replace_bad_text("nul\0 is text") == ("nul\0 is text", False)


@pytest.mark.faults("C2")
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40), st.integers(0, 60))
def test_cut_at_bytes_gives_the_longest_start_that_fits(text, max_bytes):
    cut, was_cut = cut_at_bytes(text, max_bytes)
    assert text.startswith(cut)
    assert len(cut.encode()) <= max_bytes
    if was_cut:
        assert len(text[: len(cut) + 1].encode()) > max_bytes
    else:
        assert cut == text


def test_the_cap_is_16_kib():
    assert len(cut_at_bytes("x" * 1_000_000)[0]) == MAX_CAPTION_BYTES == 16_384
