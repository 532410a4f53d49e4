"""Pictures that are evaluated are opened by processes that may crash, whatever they lie in."""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eval_layouts import image_bytes

from cit_curate.images.decoders import Decoders
from cit_curate.images.read import ImageRejected
from cit_train.evaluation import predict
from cit_train.evaluation.readers import (
    file_list,
    labelled_images,
    parquet_export,
    torchvision_sets,
    webdataset_export,
)

FAILING = Path(__file__).parents[3] / "cit_curate" / "failing_decoder.py"


@pytest.fixture(scope="module")
def failing() -> Iterator[Decoders]:
    started = Decoders(limit_seconds=1, command=(sys.executable, str(FAILING)))
    yield started
    started.close()


def in_parquet(path: Path) -> Any:
    table = pa.table({"image": pa.array([path.read_bytes()], pa.binary())})
    pq.write_table(table, path.with_suffix(".parquet"))
    return parquet_export.ParquetImages([path.with_suffix(".parquet")], "image").read(0)


def in_a_tar(path: Path) -> Any:
    member = webdataset_export._Member(path, path.name, 0, path.stat().st_size)
    return webdataset_export.ShardImages((member,)).read(0)


def predicted(path: Path) -> Any:
    view = predict._view(path, 32)
    if isinstance(view, predict.RejectedImage):
        raise ImageRejected("decoder_failed", view.detail)
    return view


READERS: list[tuple[Any, Callable[[Path], Any]]] = [
    (file_list, lambda path: file_list.ListedImages(path.parent, (path.name,)).read(0)),
    (labelled_images, lambda path: labelled_images.ImageFiles([path]).read(0)),
    (torchvision_sets, torchvision_sets._load),
    (parquet_export, in_parquet),
    (webdataset_export, in_a_tar),
    (predict, predicted),
]


@pytest.mark.faults("I9")
@pytest.mark.parametrize(("module", "read"), READERS)
@pytest.mark.slow
def test_a_picture_that_crashes_or_hangs_its_decoder_is_rejected_and_the_next_is_read(
    failing: Decoders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    read: Callable[[Path], Any],
) -> None:
    monkeypatch.setattr(module, "decoders", cache(lambda: failing))
    path = tmp_path / "a.png"
    endings = [(b"abort", "crashed (SIGABRT)")]
    if module is predict:
        endings += [(b"hang", "not decoded in 1 s")]
    for ending, told in endings:
        path.write_bytes(image_bytes(3) + ending)
        with pytest.raises(ImageRejected) as rejected:
            read(path)
        assert told in rejected.value.detail
        path.write_bytes(image_bytes(3))
        assert read(path) is not None
