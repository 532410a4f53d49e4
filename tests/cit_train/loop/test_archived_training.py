"""Training does not care where the images of a pool lie."""

import csv
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_config, make_pool

from cit_curate.errors import BadInputError
from cit_curate.pool.pool import Pool
from cit_curate.reject_limit import RejectLimit
from cit_curate.run.ledger import Run
from cit_curate.sources.columns import Columns
from cit_train.outer_loop import train
from cit_train.streaming import image_limit
from cit_train.streaming.shard_stream import read_rejects, rejects_path

SMALL_LIMIT = RejectLimit(max_in_a_row=6, always_allowed=6)


def as_zips(rows: list[dict[str, str]], folder: Path) -> Path:
    for number, row in enumerate(rows):
        path = Path(row["image"])
        name = f"{number // 20}.zip"
        with zipfile.ZipFile(folder / name, "a") as archive:
            archive.write(path, path.name)
        row["image"] = f"zip://{name}#{path.name}"
    return build(rows, folder, text=("title", "tag"))


def build(rows: list[dict[str, str]], folder: Path, text: tuple[str, ...]) -> Path:
    with (folder / "pairs.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    columns = Columns(image="image", text=text)
    return Pool.build([folder / "pairs.csv"], folder / "pool", columns=columns).path


def as_tar(rows: list[dict[str, str]], folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for row in rows:
            image = Path(row["image"]).read_bytes()
            fields = json.dumps({"title": row["title"], "tag": row["tag"]}).encode()
            for suffix, data in (("png", image), ("json", fields)):
                info = tarfile.TarInfo(f"{row['image_id']}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    columns = Columns(text=("title", "tag"))
    return Pool.build([folder / "a.tar"], folder / "pool", columns=columns).path


@pytest.mark.faults("I5")
@pytest.mark.parametrize("num_images", [300, 160])  # with fewer, the scan is over before the limit
def test_a_zip_that_is_gone_ends_training_with_3_and_is_named(world, tmp_path, num_images):
    picture = str(next((world / "pictures").rglob("*.png")))
    rows = [{"image_id": str(n), "image": picture, "title": f"a {n}"} for n in range(num_images)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(picture, "a.png")
    for row in rows:
        row["image"] = "zip://a.zip#a.png"
    pool = build(rows, tmp_path, text=("title",))
    (tmp_path / "a.zip").unlink()
    config = make_config(world, pool=str(pool), threshold=-1.0, curate_every=19)
    with pytest.raises(BadInputError, match=r"\d in a row\).*a\.zip.*cit pool info") as caught:
        train(config, tmp_path / "run")
    assert caught.value.exit_code == 3
    assert ("100 of the selected images" in str(caught.value)) == (num_images == 300)


@pytest.mark.faults("I5")
@pytest.mark.parametrize(("images_per_zip", "is_over"), [(40, False), (1, True)])
def test_a_zip_that_is_gone_counts_once_whatever_it_held(
    world, tmp_path, monkeypatch, images_per_zip, is_over
):
    monkeypatch.setattr(image_limit, "LANE_LIMIT", SMALL_LIMIT)
    shutil.copy(next((world / "pictures").rglob("*.png")), tmp_path / "a.png")
    rows = [{"image_id": str(n), "image": "a.png", "title": f"a {n}"} for n in range(120)]
    for number, row in enumerate(rows):
        if number % 3 == 0:
            name = f"gone{number // 3 // images_per_zip}.zip"
            (tmp_path / name).write_bytes(b"PK")
            row["image"] = f"zip://{name}#{number}.png"
    pool = build(rows, tmp_path, text=("title",))
    config = make_config(world, pool=str(pool), threshold=-1.0, curate_every=6)
    if is_over:
        with pytest.raises(BadInputError, match=r"7 of the selected images.*gone\d+\.zip"):
            train(config, tmp_path / "run")
        return
    rejects = train(config, tmp_path / "run").read("rejects")
    assert set(rejects["reason"].to_pylist()) == {"unreadable_archive"}
    assert rejects.num_rows > 6
    for row in rejects.to_pylist():
        assert "gone0.zip" in row["detail"]
        assert row["image_uri"].partition("#")[2] in row["detail"]


@pytest.mark.faults("I1", "I5")
def test_too_many_images_that_cannot_be_opened_end_training_with_3(world, tmp_path, monkeypatch):
    monkeypatch.setattr(image_limit, "LANE_LIMIT", SMALL_LIMIT)
    broken = tuple(range(0, 96, 3))
    pool = make_pool(tmp_path / "data", broken=broken)
    config = make_config(world, pool=str(pool), threshold=-1.0, curate_every=6)
    with pytest.raises(BadInputError, match="7 of the selected images cannot be opened") as caught:
        train(config, tmp_path / "run")
    assert caught.value.exit_code == 3
    path = rejects_path(tmp_path / "run" / "shards" / "step=000000", 0)
    assert str(path) in str(caught.value)
    assert len(read_rejects(path)) == 7


@pytest.mark.slow
@pytest.mark.parametrize("layout", [as_zips, as_tar])
def test_images_in_archives_give_the_weights_of_images_in_files(world, tmp_path, layout):
    config = make_config(world)
    with (world / "data/pairs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["image"] = str(world / "data" / row["image"])
    pool = layout(rows, tmp_path)
    train(config, tmp_path / "files")
    train(make_config(world, pool=str(pool)), tmp_path / "archives")
    runs = [Run.open(tmp_path / name) for name in ("files", "archives")]
    assert runs[0].counts() == runs[1].counts()
    assert runs[0].read("rejects").num_rows == runs[1].read("rejects").num_rows > 0
    weights = [load_file(run.path / "checkpoints/last/model.safetensors") for run in runs]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
