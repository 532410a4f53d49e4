"""Training from a pool whose captions and images lie in a store gives the same run."""

from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from tiny import make_config

from cit_curate.errors import ConfigError
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from cit_curate.storage.remote import put_file
from cit_curate.storage.upload import upload_folder
from cit_train.outer_loop import train

URL = "memory://bucket/pool"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CIT_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


def to_store(data: Path) -> None:
    """Put the tiny pool and its images into the store."""
    for path in (data / "images").iterdir():
        put_file(path, f"memory://bucket/images/{path.name}")
    columns = Columns(image_id="image_id", image="image", text=("title", "tag"))
    (data / "below").mkdir()
    text = (data / "pairs.csv").read_text().replace(",images/", ",")
    (data / "below" / "pairs.csv").write_text(text)
    Pool.build(
        [data / "below" / "pairs.csv"], data / "below" / "pool",
        columns=columns, image_root="memory://bucket/images",
    )  # fmt: skip
    (data / "below" / "pool" / "pool.duckdb").unlink()
    upload_folder(data / "below" / "pool", URL, last="pool.json")


@pytest.mark.slow
def test_a_run_from_a_store_equals_one_from_a_disk(tmp_path, store):
    config = make_config(tmp_path)
    to_store(tmp_path / "data")
    local = train(config, tmp_path / "local")
    remote = train(replace(config, pool=URL), tmp_path / "remote")
    assert remote.config["pool"] == URL
    for table in ("selections", "used"):
        assert remote.read(table).equals(local.read(table))
    assert remote.read("rejects")["pair_key"].equals(local.read("rejects")["pair_key"])
    again = train(replace(config, pool=URL), tmp_path / "remote", resume=True)
    assert len(again.commits()) == len(local.commits())


def test_a_run_is_never_written_to_a_store(tmp_path):
    for out in ("s3://bucket/run", Path("s3://bucket/run")):
        with pytest.raises(ConfigError, match="file system"):
            train(make_config(tmp_path), out)
    assert not Path("s3:").exists()
