"""Every command of the table in docs/sources.md, on files of the names that it has.

A new row needs a maker in `MAKERS`, by the name of its source.
"""

import csv
import gzip
import io
import json
import re
import shlex
import tarfile
from pathlib import Path
from typing import get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro
from PIL import Image

from cit_curate.config import SourceFormat
from cit_curate.pool import commands

PAGE = (Path(__file__).parents[3] / "docs/sources.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| .* \| *(\w*) *\| `cit (pool build .*)` \|$", PAGE, re.MULTILINE)
WIDE = [
    {"id": number, "file": f"{number}.png", "title": f"a mug, {number}", "alt": f"mug {number}"}
    for number in range(3)
]
COCO_IMAGES = [{"id": number, "file_name": f"{number}.png"} for number in range(3)]


def png(number):
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (60 * number, 9, 9)).save(stream, "PNG")
    return stream.getvalue()


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def written(rows, delimiter=","):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def long_table(path):
    kinds = [{"id": 1, "file": "1.png", "kind": k, "text": f"a {k}"} for k in ("title", "alt")]
    write(path, written(kinds))


def arrow(path):
    table = pa.Table.from_pylist(WIDE)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def karpathy(path):
    sentences = [{"raw": "A mug.", "sentid": 0, "tokens": ["a", "mug"]}]
    images = [{"filename": f"{n}.png", "cocoid": n, "sentences": sentences} for n in range(3)]
    write(path, json.dumps({"images": images}))


def coco(path):
    annotations = [{"id": n, "image_id": n % 3, "caption": f"a mug, {n}"} for n in range(3)]
    write(path, json.dumps({"images": COCO_IMAGES, "annotations": annotations}))


def tables(path):
    for lang in ("de", "en"):
        write(f"{path}/lang={lang}/0.csv", written([{"id": lang, "title": f"a mug {lang}"}]))


def shards(path):
    for number in range(2):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for suffix, content in (("png", png(1)), ("txt", b"a mug"), ("json", b'{"alt": "x"}')):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        write(f"{path}/{number:03d}.tar", stream.getvalue())


def pictures(path):
    for number in range(3):
        write(f"{path}/{number}.png", png(number))
        write(f"{path}/{number}.txt", f"a mug, {number}")


def imagefolder(path):
    rows = [{"file_name": f"{number}.png", "text": f"a mug, {number}"} for number in range(3)]
    write(f"{path}/train/metadata.jsonl", "\n".join(map(json.dumps, rows)))
    for number in range(3):
        write(f"{path}/train/{number}.png", png(number))


def dataset():
    features = datasets.Features({"photo": datasets.Image(), "caption": datasets.Value("string")})
    photos = [{"bytes": png(number), "path": None} for number in range(3)]
    rows = {"photo": photos, "caption": ["a mug", "a jug", "a lid"]}
    return datasets.Dataset.from_dict(rows, features)


def snapshot(path):
    Path(path, "data").mkdir(parents=True)
    dataset().to_parquet(Path(path, "data/train-00000-of-00001.parquet"))


def downloads(path, *, with_images):
    rows = [
        {"key": f"{n:09d}", "status": "success", "error_message": None, "txt": f"a mug, {n}"}
        for n in range(3)
    ]
    rows[1] |= {"status": "failed_to_download", "error_message": "HTTP Error 404"}
    if with_images:
        rows = [row | {"jpg": png(n)} for n, row in enumerate(rows)]
    Path(path).mkdir()
    pq.write_table(pa.Table.from_pylist(rows), f"{path}/00000.parquet")
    write(f"{path}/00000_stats.json", "{}")
    if not with_images:
        for n in (0, 2):
            write(f"{path}/00000/{n:09d}.png", png(n))
            write(f"{path}/00000/{n:09d}.txt", f"a mug, {n}")
            write(f"{path}/00000/{n:09d}.json", "{}")


MAKERS = {
    "table.csv": lambda path: write(path, written(WIDE)),
    "long.csv": long_table,
    "table.tsv": lambda path: write(path, written(WIDE, "\t")),
    "table.csv.gz": lambda path: write(path, gzip.compress(written(WIDE).encode())),
    "lines.jsonl": lambda path: write(path, "\n".join(map(json.dumps, WIDE))),
    "array.json": lambda path: write(path, json.dumps(WIDE)),
    "nested.json": lambda path: write(path, json.dumps({"version": 1, "data": WIDE})),
    "captions_val.json": coco,
    "dataset_coco.json": karpathy,
    "table.parquet": lambda path: pq.write_table(pa.Table.from_pylist(WIDE), path),
    "table.arrow": arrow,
    "tables": tables,
    "shards": shards,
    "shards/{000..001}.tar": lambda path: shards("shards"),
    "pictures": pictures,
    "birds": imagefolder,
    "saved_dataset": lambda path: dataset().save_to_disk(path),
    "snapshot": snapshot,
    "downloads": lambda path: downloads(path, with_images=False),
    "downloaded": lambda path: downloads(path, with_images=True),
}


@pytest.mark.parametrize(("kind", "command"), ROWS)
def test_a_command_of_the_page_reads_what_it_says(kind, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    verb, flags = shlex.split(command)[:2], shlex.split(command)[2:]
    assert verb == ["pool", "build"]
    MAKERS[flags[0]](flags[0])
    for number in range(3):
        write(f"{number}.png", png(number))
        write(f"pictures/{number}.png", png(number))
    capsys.readouterr()
    tyro.cli(commands.build, args=[*flags, "--json"])
    built = json.loads(capsys.readouterr().out)
    assert built["num_pairs"] >= 2
    has_images = "--image " in command or "--text title" not in command
    assert built["num_with_image"] == (built["num_pairs"] if has_images else 0)
    expected = kind if kind in get_args(SourceFormat) else "csv"
    assert {source["format"] for source in built["sources"]} == {expected}
    assert set(built["rejects"]) <= {"failed_to_download"}
    assert ("failed_to_download" in built["rejects"]) == flags[0].startswith("download")


def test_the_page_has_a_command_for_every_format():
    assert {kind for kind, _ in ROWS} >= set(get_args(SourceFormat))
    assert len(ROWS) == len(MAKERS)
