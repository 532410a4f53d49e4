"""Other spellings of a path: trimmed, with other slashes, in other Unicode forms."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.images.spellings import spellings
from cit_curate.images.suffixes import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, suffix_of


def test_the_path_itself_comes_first_then_trimmed_then_with_slashes():
    assert list(spellings(" a\\b.jpg ")) == [" a\\b.jpg ", "a\\b.jpg", "a/b.jpg"]
    assert list(spellings("a/b.jpg")) == ["a/b.jpg"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_each_folder_may_be_in_another_unicode_form(form):
    path = "été/fenêtre.jpg"
    found = list(spellings(unicodedata.normalize(form, path)))
    folder, name = path.split("/")
    for one in ("NFC", "NFD"):
        for other in ("NFC", "NFD"):
            mixed = f"{unicodedata.normalize(one, folder)}/{unicodedata.normalize(other, name)}"
            assert mixed in found


@given(st.text(min_size=1, max_size=40))
def test_each_spelling_comes_once_and_there_are_few(path):
    found = list(spellings(path))
    assert found[0] == path
    assert len(set(found)) == len(found) <= 60


def test_suffixes_are_told_by_the_last_dot():
    assert suffix_of("a/b.tar/c.JPG") == ".jpg"
    assert suffix_of("a.b/c") == suffix_of("a/.jpg") == ""
    assert not IMAGE_SUFFIXES & OTHER_IMAGE_SUFFIXES
