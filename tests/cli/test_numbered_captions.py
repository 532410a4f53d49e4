"""Pairs with numbered text keys, from a table to a run, its exports and back."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_runs import Cit
from PIL import Image

CAPTIONS = ("a pot of tea", "a kettle on a stove", "steam over a cup")


def pairs(pool: Path) -> set[tuple[str, str, str]]:
    table = pq.read_table(pool / "pairs", columns=["image_id", "text_key", "caption"])
    return {(r["image_id"], r["text_key"], r["caption"]) for r in table.to_pylist()}


@pytest.mark.slow
def test_numbered_text_keys_come_back_from_exports(cit: Cit, tiny: Path, tmp_path: Path) -> None:
    lines = ["id,file,caption"]
    for image in (700, 701):
        Image.new("RGB", (16, 16), (image % 256, 90, 10)).save(tmp_path / f"{image}.png")
        lines += [f"{image},{image}.png,{text} {image}" for text in CAPTIONS]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    columns = ("--image-id", "id", "--image", "file", "--caption", "caption")
    metadata = ("--metadata", tiny / "classes.txt", "--text-encoder", tiny / "text")
    everything = ("--threshold", "-1", "--max-pairs", "all", "--texts", "every")
    pool, run, shards = tmp_path / "pool", tmp_path / "run", tmp_path / "shards"
    for args in (
        ("pool", "build", tmp_path / "t.csv", *columns, "--out", pool),
        ("curate", pool, *metadata, *everything, "--out", run),
        ("export", run, tmp_path / "counts.json"),
        ("export", run, shards),
        ("import-counts", tmp_path / "counts.json", "--pool", pool, "--out", tmp_path / "back"),
        ("export", tmp_path / "back", tmp_path / "again.json"),
        ("pool", "build", shards, "--out", tmp_path / "pool2"),
    ):
        ended = cit(*args)
        assert ended.code == 0, (args, ended.err)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert "700_caption-3" in counts
    assert set(counts) == {f"{image}_{key}" for image, key, _ in pairs(pool)}
    assert json.loads((tmp_path / "again.json").read_text()) == counts
    assert len(pairs(pool)) == 6
    assert pairs(tmp_path / "pool2") == pairs(pool)
