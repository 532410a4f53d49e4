"""File lists, WebDataset and Parquet exports: read as their tools write them, or refused."""

import csv
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eval_layouts import (
    LABELS,
    file_list,
    grey,
    image_bytes,
    parquet_export,
    webdataset_export,
    write_image,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cit_curate.errors import BadInputError, CitError, ConfigError, DamagedError
from cit_curate.images.read import ImageRejected
from cit_train.evaluation.readers import parquet_export as parquet_module
from cit_train.evaluation.readers.file_list import open_file_list
from cit_train.evaluation.readers.labelled_images import SourceImages
from cit_train.evaluation.readers.parquet_export import open_parquet_export
from cit_train.evaluation.readers.webdataset_export import open_webdataset_export

NAMES = ("ant", "bee", "cat")


def greys(source: SourceImages) -> list[int]:
    return [
        (int(np.asarray(source.images.read(row))[0, 0, 0]) - grey(0)) // 30
        for row in range(len(source.images))
    ]


def names(source: SourceImages) -> list[str] | None:
    return None if source.names is None else [entry.name for entry in source.names]


# --- file lists


@pytest.mark.parametrize("header", [True, False])
def test_a_file_list_gives_paths_and_labels(header: bool, tmp_path: Path) -> None:
    source = open_file_list(file_list(tmp_path / "task", LABELS, header=header) / "labels.csv")
    assert source.labels.tolist() == list(LABELS)
    assert source.names is None
    assert greys(source) == list(range(6))
    assert source.images.title(2) == str(tmp_path / "task" / "images" / "2.png")


def test_labels_of_a_file_list_may_be_names(tmp_path: Path) -> None:
    folder = file_list(tmp_path / "task", [NAMES[label] for label in LABELS])
    source = open_file_list(folder / "labels.csv")
    assert names(source) == list(NAMES)
    assert source.labels.tolist() == list(LABELS)
    # A class file says which names there are, and their order.
    (folder / "classes.txt").write_text("dog\ncat\nbee\nant | emmet\n")
    source = open_file_list(folder / "labels.csv")
    assert names(source) == ["dog", "cat", "bee", "ant"]
    assert source.labels.tolist() == [3, 3, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.tsv", "my images/0.png\t1\n"),
        ("labels.txt", "my images/0.png 1\n\n"),
        ("labels.txt", "my images/0.png\t1\n"),
        ("labels.csv", '\ufefffilename,target\n"my images/0.png",1\n'),
    ],
)
def test_a_file_list_has_commas_tabs_or_blanks(name: str, text: str, tmp_path: Path) -> None:
    write_image(tmp_path / "my images" / "0.png", 0, "PNG")
    (tmp_path / name).write_text(text, encoding="utf-8")
    source = open_file_list(tmp_path / name)
    assert source.labels.tolist() == [1]
    assert greys(source) == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no image"),
        ("path,label\n", "a header and no image"),
        ("picture,number\n1,2\n", "neither an image with its label nor a header"),
        ("a.png,0\nb.png\n", r"labels\.csv:2: .*has no label"),
        ("a.png,0\nb.png, \n", r"labels\.csv:2: .*has no label"),
    ],
)
def test_a_file_list_that_is_wrong_names_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(CitError, match=message):
        open_file_list(tmp_path / "labels.csv")


def test_labels_beyond_the_class_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    for text, message in (("a.png,2\n", "label 2 is beyond the 2"), ("a.png,cat\n", "'cat'")):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(BadInputError, match=message):
            open_file_list(tmp_path / "labels.csv")


def test_a_listed_image_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "outside.png", 0, "PNG")
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    lines = ["../outside.png,0", f"{tmp_path / 'outside.png'},0", "link.png,0"]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    source = open_file_list(folder / "labels.csv")
    for row in range(3):
        with pytest.raises(ImageRejected, match="path_escapes"):
            source.images.read(row)


cells = st.text(
    st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), min_size=1, max_size=8
).filter(lambda text: text.strip() == text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=st.lists(st.tuples(cells, st.integers(0, 99)), min_size=1, max_size=5))
def test_whatever_a_csv_writer_writes_is_read_back(
    rows: list[tuple[str, int]], tmp_path: Path
) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerows([("path", "label"), *((f"{p}.png", n) for p, n in rows)])
    (tmp_path / "labels.csv").write_text(stream.getvalue(), encoding="utf-8", newline="")
    source = open_file_list(tmp_path / "labels.csv")
    assert source.labels.tolist() == [label for _, label in rows]
    assert [source.images.title(row) for row in range(len(rows))] == [
        str(tmp_path / f"{path}.png") for path, _ in rows
    ]


# --- WebDataset exports


def test_a_webdataset_export_is_read_with_its_names_and_prompts(tmp_path: Path) -> None:
    source = open_webdataset_export(webdataset_export(tmp_path / "wds_x", names=NAMES))
    assert source.labels.tolist() == list(LABELS)
    assert greys(source) == list(range(6))
    assert names(source) == list(NAMES)
    assert source.prompts == ("a photo of {}", "a picture of a {}")
    assert source.images.title(4) == f"{tmp_path / 'wds_x' / 'test' / '1.tar'}: s0000004.webp"


def test_tars_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    labels = tuple(range(12))
    source = open_webdataset_export(webdataset_export(tmp_path / "x", labels, per_tar=1))
    assert source.labels.tolist() == list(labels)
    assert source.names is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(labels=st.lists(st.integers(0, 1000), min_size=1, max_size=8), per_tar=st.integers(1, 5))
def test_whatever_the_exporter_writes_is_read_back(
    labels: list[int], per_tar: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("export") / "x"
    source = open_webdataset_export(webdataset_export(folder, labels, per_tar=per_tar))
    assert source.labels.tolist() == labels


def make_tar(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            info.type, info.linkname = kind, "/etc/hostname"
            tar.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.faults("X3")
def test_pickled_fields_are_never_read(tmp_path: Path) -> None:
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    image = image_bytes(0)
    members = {
        "a.png": image,
        "a.cls": b"1",
        "a.pyd": payload,
        "a.pickle": payload,
        "a.pt": payload,
    }
    make_tar(tmp_path / "x" / "test" / "0.tar", {**members, "a.json": payload, "a.npy": payload})
    source = open_webdataset_export(tmp_path / "x")
    assert (source.labels.tolist(), greys(source)) == ([1], [0])
    make_tar(tmp_path / "y" / "test" / "0.tar", {"a.png": image, "a.cls": payload})
    with pytest.raises(BadInputError, match=r"0\.tar: a\.cls holds b''"):
        open_webdataset_export(tmp_path / "y")
    assert not (tmp_path / "ran").exists()


@pytest.mark.faults("X3")
def test_links_and_shell_commands_are_nothing_but_names(tmp_path: Path) -> None:
    make_tar(tmp_path / "x" / "0.tar", {"a.png": b"", "a.cls": b""}, tarfile.SYMTYPE)
    with pytest.raises(BadInputError, match="hold no image"):
        open_webdataset_export(tmp_path / "x")
    make_tar(tmp_path / "y" / "pipe:touch x.tar", {"a.png": image_bytes(0), "a.cls": b"0"})
    make_tar(tmp_path / "y" / "1.tar", {"../../b.png": image_bytes(1), "../../b.cls": b"1"})
    assert sorted(greys(open_webdataset_export(tmp_path / "y"))) == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_a_tar_cut_at_any_block_is_damaged(tmp_path: Path) -> None:
    folder = webdataset_export(tmp_path / "x", (0, 1), per_tar=4)
    path = folder / "test" / "0.tar"
    whole = path.read_bytes()
    content = len(whole.rstrip(b"\0"))
    for size in [*range(0, content, 512), content]:
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedError, match="damaged or still being copied"):
            open_webdataset_export(folder)


def test_a_missing_tar_is_damaged(tmp_path: Path) -> None:
    folder = webdataset_export(tmp_path / "x")
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(DamagedError, match=r"1\.tar is missing; .*nshards\.txt says there are 2"):
        open_webdataset_export(folder)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x"}, r"a\.png has no \.cls beside it"),
        ({"a.png": b"x", "a.cls": b"-1"}, "whole number"),
        ({"a.png": b"x", "a.cls": b"cat"}, "whole number"),
        ({"a.txt": b"x"}, "no image"),
    ],
)
def test_a_sample_without_a_label_is_bad_input(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    make_tar(tmp_path / "0.tar", members)
    with pytest.raises(BadInputError, match=message):
        open_webdataset_export(tmp_path)


def test_exports_for_other_tasks_are_refused(tmp_path: Path) -> None:
    folder = webdataset_export(tmp_path / "x")
    (folder / "dataset_type.txt").write_text("retrieval\n")
    with pytest.raises(ConfigError, match="'retrieval'"):
        open_webdataset_export(folder)


def test_more_labels_than_names_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"label 2.*names 2 classes"):
        open_webdataset_export(webdataset_export(tmp_path / "x", names=NAMES[:2]))


# --- Parquet exports


@pytest.mark.parametrize("plain", [True, False])
def test_a_parquet_export_is_read_with_the_names_of_its_metadata(
    plain: bool, tmp_path: Path
) -> None:
    source = open_parquet_export(
        parquet_export(tmp_path, names=("ant_hill", "bee", "cat"), plain=plain)
    )
    assert source.labels.tolist() == list(LABELS)
    assert greys(source) == list(range(6))
    assert names(source) == ["ant hill", "bee", "cat"]


def test_labels_of_a_parquet_export_may_be_names(tmp_path: Path) -> None:
    source = open_parquet_export(parquet_export(tmp_path, [NAMES[label] for label in LABELS]))
    assert names(source) == list(NAMES)
    assert source.labels.tolist() == list(LABELS)


def test_of_several_splits_test_is_read(tmp_path: Path) -> None:
    for split, label in (("train", 7), ("validation", 8), ("test", 9)):
        parquet_export(tmp_path, [label] * 4, split=split)
    assert set(open_parquet_export(tmp_path).labels.tolist()) == {9}
    for path in tmp_path.glob("data/test*"):
        path.unlink()
    assert set(open_parquet_export(tmp_path).labels.tolist()) == {8}


def test_few_row_groups_are_in_memory_and_threads_get_their_own_rows(tmp_path: Path) -> None:
    source = open_parquet_export(parquet_export(tmp_path, [0] * 8))
    images = source.images
    assert isinstance(images, parquet_module.ParquetImages)
    rows = list(range(8)) * 5
    read: list[int | None] = [None] * len(rows)

    def work(start: int) -> None:
        for at in range(start, len(rows), 4):
            read[at] = (int(np.asarray(images.read(rows[at]))[0, 0, 0]) - grey(0)) // 30

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == rows
    assert len(images._kept) <= 2


def test_a_parquet_row_without_a_label_or_an_image(tmp_path: Path) -> None:
    parquet_export(tmp_path / "x", [0, 1, None, 1])
    with pytest.raises(BadInputError, match=r"test-00001.*row 0 of row group 0 has no label"):
        open_parquet_export(tmp_path / "x")
    (tmp_path / "y").mkdir()
    escape = {"bytes": None, "path": "../outside.png"}
    write_image(tmp_path / "outside.png", 0, "PNG")
    absolute = {"bytes": None, "path": str(tmp_path / "outside.png")}
    table = pa.table({"image": [None, escape, absolute], "label": [0, 1, 1]})
    pq.write_table(table, tmp_path / "y" / "test.parquet")
    images = open_parquet_export(tmp_path / "y").images
    for row, reason in ((0, "no_image"), (1, "path_escapes"), (2, "no bytes but the path")):
        with pytest.raises(ImageRejected, match=reason):
            images.read(row)


def test_a_cut_parquet_file_is_damaged(tmp_path: Path) -> None:
    parquet_export(tmp_path)
    path = tmp_path / "data" / "test-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedError, match=r"test-00001.*damaged or still being copied"):
        open_parquet_export(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"picture": [b""], "label": [0]}, "images"), ({"image": [b""], "caption": ["x"]}, "labels")],
)
def test_a_parquet_file_needs_images_and_labels(
    columns: dict[str, list[object]], message: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    with pytest.raises(ConfigError, match=f"no column with {message}: it has"):
        open_parquet_export(tmp_path)
