"""Training does not care where the images of a pool lie."""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_config

from cit_curate.ledger import Run
from cit_curate.pool import Pool
from cit_curate.sources.columns import Columns
from cit_train.outer_loop import train


def as_zips(rows: list[dict[str, str]], folder: Path) -> Path:
    for number, row in enumerate(rows):
        path = Path(row["image"])
        name = f"{number // 20}.zip"
        with zipfile.ZipFile(folder / name, "a") as archive:
            archive.write(path, path.name)
        row["image"] = f"zip://{name}#{path.name}"
    with (folder / "pairs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    columns = Columns(image="image", text=("title", "tag"))
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
