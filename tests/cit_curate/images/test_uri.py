"""Uris of images: what is written reads back, and what is misspelled is said to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.images.uri import cell_uri, parse_image_uri, tar_uri

NUMBERS = st.integers(0, 10**18 - 1)
# As `checked_image_uri` lets them through: any printable character, `#`, `?` and `%` among them.
NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from("#?%&=/. "), min_size=1
)


@given(path=NAMES, offset=NUMBERS, size=NUMBERS, member=NAMES | st.just(""))
def test_a_tar_uri_reads_back(path, offset, size, member):
    if "?offset=" in path:
        return
    uri = parse_image_uri(tar_uri(path, offset, size, member))
    assert (uri.scheme, uri.path) == ("tar", path)
    assert (uri.offset, uri.size, uri.member) == (offset, size, member)


@given(scheme=st.sampled_from(["arrow", "parquet"]), path=NAMES, column=NAMES, row=NUMBERS)
def test_a_cell_uri_reads_back(scheme, path, column, row):
    uri = parse_image_uri(cell_uri(scheme, path, column, row))
    assert (uri.scheme, uri.path, uri.column, uri.row) == (scheme, path, column, row)


@pytest.mark.parametrize(
    ("text", "path", "member"),
    [
        ("zip://images/00/012.zip#345.jpg", "images/00/012.zip", "345.jpg"),
        ("zip://a #1/B.ZIP#x#y z.jpg", "a #1/B.ZIP", "x#y z.jpg"),
        ("zip://a.zip#folder.zip#x.jpg", "a.zip", "folder.zip#x.jpg"),
        ("zip://100%.zip#50%20.jpg", "100%.zip", "50%20.jpg"),
    ],
)
def test_a_zip_uri_is_split_at_the_first_zip_and_decodes_nothing(text, path, member):
    uri = parse_image_uri(text)
    assert (uri.scheme, uri.path, uri.member) == ("zip", path, member)
    assert f"{uri.scheme}://{uri.path}{uri.location}" == text


@pytest.mark.parametrize("text", ["a/b.jpg", "https://x.org/a.zip#b", "s3://a.zip#b", "zip:a", ""])
def test_other_texts_are_no_uri_of_ours(text):
    assert parse_image_uri(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "zip://a.zip",
        "zip://a.zip#",
        "zip://.zip#a",
        "zip://a.tar#b",
        "tar://a.tar",
        "tar://a.tar#b",
        "tar://a.tar?offset=-1&size=2",
        "tar://a.tar?offset=1&size=٣",
        "arrow://a.arrow?column=&row=1",
        "parquet://a.parquet?row=1&column=x",
    ],
)
def test_a_misspelled_uri_is_told_how_to_spell_it(text):
    with pytest.raises(ValueError, match=r"is not spelled as (zip|tar|arrow|parquet)://PATH"):
        parse_image_uri(text)
