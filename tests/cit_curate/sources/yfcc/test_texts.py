"""The fast cleaning gives what the plain functions give, letter by letter."""

import itertools
import json
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote_plus

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cit_curate.captions import clean_tags, clean_text, cut_at_bytes, is_blank, replace_bad_text
from cit_curate.sources.rows import TEXT_FIELDS
from cit_curate.sources.yfcc.texts import texts_of

GOLDEN = json.loads(
    (Path(__file__).parents[3] / "golden" / "cleaning.json").read_text(encoding="utf-8")
)

# What cleaning looks for, cut up so that hypothesis finds its edges.
PIECES = (
    *("a", "+", "%", "%2", "%4", "1", "%41", "%2B", "%20", "%0A", "%0a", "%09", "%00", "%25", ","),
    *(
        "%2C",
        "<",
        ">",
        "<a ",
        "%3Ca+x%3E",
        "%3C%2Fa%3E",
        "%3Cb%3E",
        "%3E",
        "http",
        "ht",
        "tp",
        "ww",
    ),
    *("www.", "http%3A%2F%2Fx", "%C3%A9", "%C3", "%A9", "%E9", "%C2%A0", "%E3%80%80", "%C2%85"),
    *("%1C", "%1F", " ", "\r", "é", "東", "%F0%9F%90%B1", "%ED%A0%80"),
)
cells = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=9).map(lambda pieces: "".join(pieces).encode()),
    st.text(max_size=20).map(lambda text: quote_plus(text, errors="replace").encode()),
    st.binary(max_size=8).map(lambda raw: raw.replace(b"\t", b"").replace(b"\n", b"")),
)
images = st.lists(st.tuples(cells, cells, cells, cells), max_size=6)


def plain(image, reference_empty_tags):
    """The texts of one image: key, caption, whether it was mended or cut."""
    mended = [replace_bad_text(cell.decode("utf-8", "surrogateescape")) for cell in image]
    title, description, user, machine = (text for text, _ in mended)
    bad = [was_bad for _, was_bad in mended]
    texts = []
    for key, text, was_bad in (
        ("title", clean_text(title), bad[0]),
        ("desc", clean_text(description), bad[1]),
        ("tag", clean_tags(user, machine), bad[2] or bad[3]),
    ):
        caption, was_cut = cut_at_bytes(text.strip())
        if not is_blank(caption, "" if reference_empty_tags else key):
            texts.append((key, caption, was_bad or was_cut))
    return texts


def fast(images, **options):
    regions = [b"\t".join([*image, b""]) for image in images]
    found = texts_of(pa.array(regions, pa.binary()), **options)
    assert [column.type for column in found] == [field.type for field in TEXT_FIELDS]
    texts = [
        list(zip(*of_image, strict=True))
        for of_image in zip(*(column.to_pylist() for column in found), strict=True)
    ]
    for _, caption, caption_hash, _ in itertools.chain(*texts):
        digest = blake2b(caption.encode(), digest_size=8).digest()
        assert caption_hash == int.from_bytes(digest, "little")
    return [[(key, caption, fixed) for key, caption, _, fixed in image] for image in texts]


@settings(deadline=None)
@given(images, st.booleans())
@example([(b"", b"", b"", b"")], False)
@example([(b",", b",,", b",", b""), (b"%E9", b"%ED%A0%80x", b"%2C", b"+")], True)
@example([(b"%4", b"1", b"%", b"41")], False)
def test_every_image_has_the_texts_of_the_plain_functions(images, reference_empty_tags):
    found = fast(images, reference_empty_tags=reference_empty_tags)
    assert found == [plain(image, reference_empty_tags) for image in images]


def test_the_golden_cases_together_in_one_block():
    cases = [(case["raw"].encode(), case["clean"].strip()) for case in GOLDEN["text"]]
    found = fast([(raw, raw, b"", b"") for raw, _ in cases])
    assert [{key: text for key, text, _ in texts} for texts in found] == [
        {"title": clean, "desc": clean} if clean else {} for _, clean in cases
    ]


@pytest.mark.faults("P2")
@pytest.mark.parametrize("letter", ["a", "%C3%A9", "+a", "é"])
def test_long_texts_are_cut_as_the_plain_functions_cut_them(letter):
    images = [(letter.encode() * count, b"x", b"", b"") for count in (4096, 8193, 16_385, 200_000)]
    found = fast(images)
    assert found == [plain(image, False) for image in images]
    assert found[3][0][2]


def test_images_without_tags_have_a_comma_only_when_asked_for():
    image = (b"cat", b"", b"", b"")
    assert fast([image]) == [[("title", "cat", False)]]
    kept = fast([image], reference_empty_tags=True)
    assert kept == [[("title", "cat", False), ("tag", ",", False)]]
