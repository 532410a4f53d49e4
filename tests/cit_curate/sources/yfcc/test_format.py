"""YFCC100M: image ids, the lists of them, and where images lie."""

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.sources.yfcc.format import (
    COLUMNS,
    NUM_IDS,
    are_listed,
    image_ids_of,
    image_uris_of,
    leading_ids,
    line_bounds,
    read_image_ids,
    read_subset,
)

image_ids = st.integers(0, NUM_IDS - 1)


def test_the_columns_that_are_read_stand_where_the_file_has_them():
    places = {8: "title", 9: "description", 10: "user_tags", 11: "machine_tags", 24: "marker"}
    assert {place: COLUMNS[place] for place in places} == places
    assert (COLUMNS[15], COLUMNS[17], COLUMNS[18]) == ("page_url", "license_name", "license_url")


@settings(deadline=None)
@given(st.lists(image_ids, max_size=20))
def test_an_id_of_eight_digits_names_its_zip_and_its_member(ids):
    array = np.array(ids, np.uint32)
    assert image_ids_of(array).to_pylist() == [f"{image:08d}" for image in ids]
    for image, uri in zip(ids, image_uris_of(array).to_pylist(), strict=True):
        folder, archive, member = re.fullmatch(
            r"zip://images/(\d\d)/(\d{3})\.zip#(\d{3})\.jpg", uri
        ).groups()
        assert int(folder + archive + member) == image


def test_the_first_and_the_last_image():
    uris = image_uris_of(np.array([0, 12_345_678, NUM_IDS - 1], np.uint32)).to_pylist()
    assert uris == [
        "zip://images/00/000.zip#000.jpg",
        "zip://images/12/345.zip#678.jpg",
        "zip://images/99/999.zip#999.jpg",
    ]


@settings(deadline=None)
@given(
    st.lists(st.text(st.sampled_from("0123456789\t -x"), max_size=12), max_size=12), st.booleans()
)
def test_ids_are_read_as_one_would_by_hand(lines, ends_with_newline):
    block = "\n".join(lines).encode() + b"\n" * ends_with_newline
    wanted = block.decode().split("\n")
    wanted = wanted[:-1] if wanted[-1] == "" else wanted
    data = np.frombuffer(block, np.uint8)
    starts, ends = line_bounds(data)
    assert [block[s:e].decode() for s, e in zip(starts, ends, strict=True)] == wanted
    ids, good = leading_ids(data, starts)
    found = [re.match(r"([0-9]{1,8})\t", line) for line in wanted]
    assert good.tolist() == [match is not None for match in found]
    assert ids.tolist() == [int(match[1]) if match else 0 for match in found]


@pytest.mark.parametrize("dtype", ["<i8", "<u4", ">i4", "<i2"])
def test_a_list_of_ids_of_any_integer_type(tmp_path, dtype):
    path = tmp_path / "ids.npy"
    np.save(path, np.array([7, 3, 3, 30_000], dtype))
    listed, bits = read_image_ids(path)
    assert listed.num_ids == 3
    assert listed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    asked = np.array([0, 3, 4, 7, 8, 30_000, NUM_IDS - 1], np.uint32)
    assert are_listed(asked, bits).tolist() == [False, True, False, True, False, True, False]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1, NUM_IDS]), "entry 1 is 100000000"),
        (np.array([5, 6, -1]), "entry 2 is -1"),
        (np.array([[1, 2]]), r"int64 \[1, 2\]"),
        (np.array([1.5]), "float64"),
        (np.array(["00000001"]), "<U8"),
    ],
)
def test_what_is_no_list_of_image_ids_is_refused(tmp_path, value, message):
    np.save(tmp_path / "ids.npy", value)
    with pytest.raises(ConfigError, match=message):
        read_image_ids(tmp_path / "ids.npy")


def test_a_cut_or_pickled_list_is_damaged_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "ids.npy"
    np.save(path, np.arange(1000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"ids\.npy"):
        read_image_ids(path)
    np.save(path, np.array([{1}, None], object), allow_pickle=True)
    with pytest.raises(DamagedError, match=r"ids\.npy"):
        read_image_ids(path)
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match=r"ids\.npy"):
        read_image_ids(path)
    with pytest.raises(ConfigError, match=r"--image-ids .*there is no such file"):
        read_image_ids(tmp_path / "none.npy")


def test_a_file_that_is_no_numpy_list_is_not_recommended_to_be_unpickled(tmp_path):
    path = tmp_path / "ids.npy"
    path.write_text("1\n2\n")
    with pytest.raises(DamagedError, match=r"does not begin like one$"):
        read_image_ids(path)


def test_the_subset_is_the_line_numbers_of_clips_list(tmp_path):
    path = tmp_path / "subset.tsv"
    path.write_text("4\t6985418911\t4e2f7a26a1\n\n99\t1\tff\r\n7\t2\t00")
    listed, bits = read_subset(path)
    assert listed.num_ids == 3
    assert np.flatnonzero(np.unpackbits(bits[:16])).tolist() == [4, 7, 99]
    path.write_text("4\t6985418911\t4e2f7a26a1\n\n6985418911\t4e2f7a26a1\n")
    with pytest.raises(BadInputError, match=r"subset\.tsv line 3: '6985418911.t4e2f7a26a1'"):
        read_subset(path)
    path.write_text("\t".join(["4", *map(str, range(24))]) + "\n")
    with pytest.raises(ConfigError, match="looks like the metadata"):
        read_subset(path)
