"""Images in tars and in cells of Arrow and Parquet files."""

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cit_curate.images import archives
from cit_curate.images.read import ImageRejected, read_image_bytes
from cit_curate.images.uri import cell_uri, tar_uri

MEMBERS = {"a.jpg": b"A" * 700, "sub/b.png": b"B" * 512, "c.jpg": b""}


def reason_of(root, uri, **options):
    with pytest.raises(ImageRejected) as rejected:
        read_image_bytes(root, uri, **options)
    return rejected.value.reason


def write_tar(path, members=MEMBERS, *, form=tarfile.PAX_FORMAT):
    """Write a tar, and give the uri of each member."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return {
            info.name: tar_uri(path.name, info.offset_data, info.size, info.name) for info in tar
        }


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_tar_are_read_at_their_place(tmp_path, form):
    members = MEMBERS | {"long/" * 25 + "x.jpg": b"1", "ü.jpg": b"2"}
    uris = write_tar(tmp_path / "a.tar", members, form=form)
    assert {name: read_image_bytes(tmp_path, uri) for name, uri in uris.items()} == members
    nameless = {uri.partition("#")[0]: members[name] for name, uri in uris.items()}
    assert {uri: read_image_bytes(tmp_path, uri) for uri in nameless} == nameless


def test_a_tar_that_was_written_anew_is_noticed(tmp_path):
    uris = write_tar(tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", {"other.jpg": b"Z" * 700, "sub/b.png": b"B" * 511})
    for name, reason in (
        ("a.jpg", r"'other\.jpg' of 700 bytes lies there now; the tar has changed"),
        ("sub/b.png", r"'sub/b\.png' of 511 bytes lies there now"),
        ("c.jpg", "no member starts there"),
    ):
        with pytest.raises(ImageRejected, match=reason) as rejected:
            read_image_bytes(tmp_path, uris[name])
        assert rejected.value.reason == "damaged_archive"


def test_places_that_a_tar_does_not_have_are_refused(tmp_path):
    uris = write_tar(tmp_path / "a.tar")
    whole = (tmp_path / "a.tar").stat().st_size
    assert reason_of(tmp_path, tar_uri("a.tar", whole, 1)) == "damaged_archive"
    assert reason_of(tmp_path, tar_uri("a.tar", 10**17, 10**7)) == "damaged_archive"
    assert reason_of(tmp_path, tar_uri("a.tar", 0, 512)) == "damaged_archive"
    assert reason_of(tmp_path, tar_uri("a.tar", 600, 5)) == "damaged_archive"
    assert reason_of(tmp_path, tar_uri("gone.tar", 512, 5)) == "unreadable_archive"
    assert reason_of(tmp_path, tar_uri("../a.tar", 512, 5)) == "path_escapes"
    assert reason_of(tmp_path, uris["a.jpg"], max_bytes=699) == "too_many_bytes"
    assert reason_of(tmp_path, "tar://a.tar") == "missing_image"


def test_a_cut_tar_gives_the_bytes_or_a_reason(tmp_path):
    uris = write_tar(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    for size in range(0, 2048, 100):
        (tmp_path / "a.tar").write_bytes(content[:size])
        if size >= 512 + 700:
            assert read_image_bytes(tmp_path, uris["a.jpg"]) == MEMBERS["a.jpg"]
        else:
            assert reason_of(tmp_path, uris["a.jpg"]) == "damaged_archive"


IMAGES = [b"one", None, b"three" * 100, b"", b"five"]


def struct_of(images):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": image, "path": "p"} for image in images] + [None], kind)


def write_cells(folder, scheme, images=IMAGES):
    """Write a table of a struct and of a binary column, two rows a batch; give its name."""
    table = pa.table({"image": struct_of(images), "a&b": pa.array([*images, b"six"], pa.binary())})
    name = f"t.{scheme}"
    if scheme == "parquet":
        pq.write_table(table, folder / name, row_group_size=2)
    else:
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return name


@pytest.mark.parametrize("scheme", ["arrow", "parquet"])
def test_cells_are_read_by_column_and_row(tmp_path, scheme):
    name = write_cells(tmp_path, scheme)
    for row, image in enumerate(IMAGES):
        for column in ("image", "a&b"):
            uri = cell_uri(scheme, name, column, row)
            if image is None:
                assert reason_of(tmp_path, uri) == "missing_image"
            else:
                assert read_image_bytes(tmp_path, uri) == image
    assert read_image_bytes(tmp_path, cell_uri(scheme, name, "a&b", 5)) == b"six"
    assert reason_of(tmp_path, cell_uri(scheme, name, "image", 5)) == "missing_image"


@pytest.mark.parametrize("scheme", ["arrow", "parquet"])
def test_cells_that_are_not_there_are_refused(tmp_path, scheme):
    name = write_cells(tmp_path, scheme)
    assert reason_of(tmp_path, cell_uri(scheme, name, "image", 6)) == "missing_image"
    assert reason_of(tmp_path, cell_uri(scheme, name, "none", 0)) == "missing_image"
    assert reason_of(tmp_path, cell_uri(scheme, "gone", "image", 0)) == "unreadable_archive"
    assert reason_of(tmp_path, cell_uri(scheme, f"../{name}", "image", 0)) in {
        "path_escapes",
        "missing_image",
    }
    uri = cell_uri(scheme, name, "image", 2)
    assert reason_of(tmp_path, uri, max_bytes=499) == "too_many_bytes"
    text = tmp_path / f"text.{scheme}"
    table = pa.table({"image": ["not bytes"], "struct": [{"path": "a.jpg"}]})
    if scheme == "parquet":
        pq.write_table(table, text)
    else:
        with pa.ipc.new_stream(text, table.schema) as writer:
            writer.write_table(table)
    for column in table.column_names:
        assert reason_of(tmp_path, cell_uri(scheme, text.name, column, 0)) == "missing_image"


@pytest.mark.parametrize("scheme", ["arrow", "parquet"])
def test_damaged_cells_give_bytes_or_a_reason(tmp_path, scheme):
    name = write_cells(tmp_path, scheme)
    content = (tmp_path / name).read_bytes()
    rng = Random(0)
    refused = 0
    for _ in range(150):
        flipped = bytearray(content)
        for _ in range(4):
            flipped[rng.randrange(len(content))] = rng.randrange(256)
        cut = flipped if rng.random() < 0.7 else flipped[: rng.randrange(len(content))]
        # Not written over: what is mapped must not change under its reader.
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(cut)
        try:
            read_image_bytes(tmp_path, cell_uri(scheme, name, "image", 2))
        except ImageRejected as rejected:
            refused += rejected.reason.endswith("archive") or rejected.reason == "missing_image"
    assert refused > 30


@pytest.mark.parametrize("scheme", ["arrow", "parquet"])
def test_a_table_that_was_written_anew_is_read_anew(tmp_path, scheme):
    name = write_cells(tmp_path, scheme)
    uri = cell_uri(scheme, name, "image", 0)
    assert read_image_bytes(tmp_path, uri) == b"one"
    (tmp_path / name).unlink()
    write_cells(tmp_path, scheme, [b"other", *IMAGES[1:]])
    assert read_image_bytes(tmp_path, uri) == b"other"


def test_threads_read_the_same_tables(tmp_path):
    images = [b"%d" % row * 50 for row in range(60)]
    names = {scheme: write_cells(tmp_path, scheme, images) for scheme in ("arrow", "parquet")}
    archives._row_groups._start()

    def work(seed):
        rng = Random(seed)
        for _ in range(150):
            row, scheme = rng.randrange(60), rng.choice(("arrow", "parquet"))
            assert (
                read_image_bytes(tmp_path, cell_uri(scheme, names[scheme], "image", row))
                == (images[row])
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
