import csv
import gc
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from run_fixtures import (
    MemoryPool,
    image_bytes,
    row,
    scanned,
    small_pool,
    small_run,
    write_step,
)

from cit_curate.config import CsvGuard, ImageFormat
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.run.exports.counts_import import import_counts
from cit_curate.run.exports.export import export_counts, export_webdataset, json_members
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import SCHEMAS
from cit_curate.run.paths import MANIFESTS
from cit_curate.run.shards import Sample, read_shard, shard_entry
from cit_curate.sources.columns import Columns
from cit_curate.storage.durable import read_json


def read_plainly(folder: Path, shards: str) -> list[dict[str, object]]:
    """What webdataset alone makes of a folder of ours."""
    dataset = wds.WebDataset(f"{folder}/{shards}", shardshuffle=False, empty_check=False)
    with warnings.catch_warnings():
        # webdataset leaves the tars to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(dataset.decode("pil"))
        del dataset
        gc.collect()
    return samples


@pytest.mark.faults("Q4")
@pytest.mark.parametrize("used", [True, False])
def test_json_counts_are_the_runs_counts_by_sorted_pair_key(tmp_path: Path, used: bool) -> None:
    run = small_run(tmp_path / "run", used=used)
    assert export_counts(run, tmp_path / "counts.json") == 8
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts == run.counts()
    assert list(counts) == sorted(counts)
    rows = run.read("used")["times_used"].to_pylist() if used else run.read("selections")
    assert sum(counts.values()) == (sum(rows) if used else len(rows))


def test_json_counts_are_one_object_of_pair_keys_and_whole_numbers(tmp_path: Path) -> None:
    """The published form of a curated dataset, to the byte."""
    export_counts(small_run(tmp_path / "run", steps=1, used=False), tmp_path / "counts.json")
    lines = [f'"0000000{number}_t": 1' for number in range(7)]
    text = (tmp_path / "counts.json").read_text(encoding="utf-8")
    assert text == "{\n" + ",\n".join(lines) + "\n}\n"
    counts = json.loads(text)
    assert isinstance(counts, dict)
    assert {(type(key), type(count)) for key, count in counts.items()} == {(str, int)}


@pytest.mark.slow
def test_json_counts_are_written_without_holding_them(tmp_path: Path) -> None:
    """A million pairs: their keys and counts as a dict alone take 130 MB."""
    num_pairs = 1_000_000
    ids = [f"{number:08d}" for number in range(num_pairs)]
    columns = {name: pa.nulls(num_pairs, SCHEMAS["selections"].field(name).type)
               for name in SCHEMAS["selections"].names}  # fmt: skip
    columns |= {"pair_key": pa.array([f"{image_id}_tag" for image_id in ids])}
    run = Run.create(tmp_path / "run", config={}, environment={})
    rows = pa.table(columns, schema=SCHEMAS["selections"])
    entry = run.write_table("selections", rows, outer_step=0, lane=0)
    run.commit(Commit(outer_step=0, update=0, cursors=(PoolCursor(),), files=(entry,)))
    code = (
        "import sys, tracemalloc; from pathlib import Path; from cit_curate.run.ledger import Run; "
        "from cit_curate.run.exports.export import export_counts; tracemalloc.start(); "
        "export_counts(Run.open(sys.argv[1]), Path(sys.argv[2])); "
        "print(tracemalloc.get_traced_memory()[1], file=sys.stderr)"
    )
    out = tmp_path / "counts.json"
    command = [sys.executable, "-c", code, str(run.path), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stderr) < 30_000_000
    with out.open() as stream:
        assert sum(1 for _ in stream) == num_pairs + 2


@pytest.mark.faults("Q4")
@pytest.mark.parametrize("name", ["counts.json", "counts.parquet", "counts.csv"])
def test_an_export_is_the_same_bytes_again(tmp_path: Path, name: str) -> None:
    run = small_run(tmp_path / "run")
    pool = small_pool(tmp_path / "pool")
    export_counts(run, tmp_path / name, pool=pool)
    first = (tmp_path / name).read_bytes()
    export_counts(run, tmp_path / name, pool=pool)
    assert (tmp_path / name).read_bytes() == first
    assert not list(tmp_path.glob(".tmp-*"))


def test_parquet_and_csv_carry_the_pools_caption_and_uri(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1)
    pool = small_pool(tmp_path / "pool")
    export_counts(run, tmp_path / "c.parquet", pool=pool)
    first = pq.read_table(tmp_path / "c.parquet").to_pylist()[0]
    assert first == {
        "pair_key": "00000000_t",
        "image_id": "00000000",
        "text_key": "t",
        "count": 2,
        "caption": "a picture of thing 0",
        "image_uri": "memory:0.png",
    }
    export_counts(run, tmp_path / "c.csv", pool=pool)
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert len(rows) == 7
    assert rows[0] == {name: str(value) for name, value in first.items()}


@pytest.mark.parametrize("name", ["c.json", "c.parquet", "c.csv"])
def test_a_run_without_outer_steps_exports_no_pairs(tmp_path: Path, name: str) -> None:
    run = small_run(tmp_path / "run", steps=0)
    assert export_counts(run, tmp_path / name) == 0
    assert (tmp_path / name).is_file()
    if name == "c.json":
        assert json.loads((tmp_path / name).read_text()) == {}


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.json, \.parquet, \.csv"):
        export_counts(small_run(tmp_path / "run"), tmp_path / "counts.xlsx")


NASTY = ['=cmd|"/c calc"!A1', "+1", "-1", "@SUM(A1)", "\t=1", 'a "quoted", cell', "two\nlines"]


def nasty_run(path: Path, captions: Sequence[str]) -> tuple[Run, MemoryPool]:
    pool = MemoryPool(
        path / "pool",
        [row(index, caption=caption) for index, caption in enumerate(captions)],
        {f"memory:{index}.png": image_bytes() for index in range(len(captions))},
    )
    run = Run.create(path / "run", config={}, environment={})
    items = [
        scanned(index, outer_step=0, similarity=0.9, entry=0, classes=["=cat"])
        for index in range(len(captions))
    ]
    write_step(run, 0, selections=items)
    return run, pool


@pytest.mark.faults("C3")
def test_a_csv_cell_is_never_a_formula(tmp_path: Path) -> None:
    run, pool = nasty_run(tmp_path, NASTY)
    export_counts(run, tmp_path / "c.csv", pool=pool)
    with (tmp_path / "c.csv").open(newline="") as stream:
        captions = [line["caption"] for line in csv.DictReader(stream)]
    formulas = [text for text in NASTY if text[0] in "=+-@\t" and text not in ("+1", "-1")]
    assert captions == [f"'{text}" if text in formulas else text for text in NASTY]


@pytest.mark.faults("C3")
def test_no_cell_of_any_column_is_a_formula(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config={}, environment={})
    item = scanned(0, outer_step=0, similarity=0.9, entry=0, classes=["=cat"])
    item |= {"image_id": "=1+1", "text_key": "t", "pair_key": "=1+1_t"}
    write_step(run, 0, selections=[item])
    rows = [{**row(0, caption="@SUM(A1)", image_uri="+1.png"), "image_id": "=1+1"}]
    export_counts(run, tmp_path / "c.csv", pool=MemoryPool(tmp_path / "pool", rows, {}))
    with (tmp_path / "c.csv").open(newline="") as stream:
        (line,) = csv.DictReader(stream)
    assert {"'=1+1_t", "'=1+1", "'@SUM(A1)", "'+1.png"} <= {*line.values()}
    assert line["guarded"] == "pair_key image_id caption image_uri"


def test_cells_are_written_as_they_are_without_the_guard(tmp_path: Path) -> None:
    run, pool = nasty_run(tmp_path, NASTY)
    export_counts(run, tmp_path / "c.csv", pool=pool, csv_guard="off")
    with (tmp_path / "c.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["caption"] for line in lines] == NASTY
    assert "guarded" not in lines[0]


def test_the_first_formula_may_come_in_the_last_row(tmp_path: Path) -> None:
    captions = [f"a brass bell no {number}" for number in range(20)] + ["@dawn on the pier"]
    run, pool = nasty_run(tmp_path, captions)
    export_counts(run, tmp_path / "c.csv", pool=pool)
    with (tmp_path / "c.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["guarded"] for line in lines] == [""] * 20 + ["caption"]
    assert lines[-1]["caption"] == "'@dawn on the pier"


CAPTION_LETTERS = st.sampled_from("=+-@\t\r\n'\",; ab1é\u2028")


@pytest.mark.parametrize("guard", ["formulas", "off"])
def test_keys_and_captions_come_back_from_an_exported_csv(tmp_path: Path, guard: CsvGuard) -> None:
    captions = ["-50% on lamps", "@home", "'=quoted", "-7.5", "+3", "1e-3", 'a "b", c\r\nd\re']
    # Lines that by themselves are whole rows of the exported table, with a guard and without.
    captions += [
        "a,b\n1,2,3,4,5,6\nc,,,,d",
        "a,b,c\n1,2,3,4,5,6,7\nc,,,d",
        'a\n"\nb',
        '"',
        "x\r\r\ny",
    ]
    check_the_way_back(tmp_path, captions, guard)


@pytest.mark.slow
@given(st.lists(st.text(CAPTION_LETTERS, max_size=12), min_size=1, max_size=12), st.booleans())
@settings(max_examples=10, deadline=None)
def test_any_captions_come_back_from_an_exported_csv(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], is_guarded: bool
) -> None:
    guard: CsvGuard = "formulas" if is_guarded else "off"
    check_the_way_back(tmp_path_factory.mktemp("way-back"), captions, guard)


def check_the_way_back(folder: Path, captions: Sequence[str], guard: CsvGuard) -> None:
    table = pa.table(
        {"id": [f"{'-=@1'[n % 4]}{n}" for n in range(len(captions) + 1)], "t": [*captions, "end"]}
    )
    pq.write_table(table, folder / "in.parquet")
    columns = Columns(image_id="id", text=("t",))
    pool = Pool.build([folder / "in.parquet"], folder / "pool", columns=columns)
    pairs = pq.read_table(folder / "pool" / "pairs").to_pylist()
    keys = {f"{pair['image_id']}_t": 1 for pair in pairs}
    (folder / "counts.json").write_text(json.dumps(keys))
    run = import_counts(folder / "counts.json", pool, folder / "run").run
    export_counts(run, folder / "out.csv", pool=pool, csv_guard=guard)
    columns = Columns(text_key="text_key", caption="caption")
    Pool.build([folder / "out.csv"], folder / "again", columns=columns)
    again = pq.read_table(folder / "again" / "pairs").to_pylist()
    assert {(pair["image_id"], pair["text_key"], pair["caption"]) for pair in again} == {
        (pair["image_id"], pair["text_key"], pair["caption"]) for pair in pairs
    }
    counted = import_counts(folder / "out.csv", pool, folder / "run-again").run
    assert counted.counts() == run.counts()


def test_a_folder_reads_with_webdataset_alone(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    pool = small_pool(tmp_path / "pool")
    seen: list[tuple[int, int]] = []
    result = export_webdataset(
        run,
        pool,
        tmp_path / "out",
        pairs_per_shard=5,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert (result.num_pairs, result.num_shards, result.rejects) == (8, 2, {})
    assert seen == [(done, 8) for done in range(1, 9)]
    samples = read_plainly(tmp_path / "out", "pairs-{000000..000001}.tar")
    assert [sample["json"]["pair_key"] for sample in samples] == sorted(run.counts())  # type: ignore[index]
    assert samples[1]["json"] == {
        "pair_key": "00000001_t",
        "image_id": "00000001",
        "text_key": "t",
        "count": 4,
        "metadata_text": "dog",
        "reason": "threshold",
        "similarity": 0.85,
        "original_format": "png",
    }
    assert samples[1]["txt"] == "a picture of thing 1"
    assert samples[1]["png"].size == (8, 6)  # type: ignore[attr-defined]


@pytest.mark.faults("Q4")
def test_a_folder_is_the_same_bytes_again_and_keeps_image_bytes(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    pool = small_pool(tmp_path / "pool")
    for name in ("a", "b"):
        export_webdataset(run, pool, tmp_path / name)
    files = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [path.relative_to(tmp_path / "a").as_posix() for path in files] == [
        "README.md",
        *(f"{MANIFESTS}/{name}" for name in ("pairs-000000.json", "pairs.json", "rejects.parquet")),
        "pairs-000000.tar",
    ]
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    entry = shard_entry(tmp_path / "a" / "pairs-000000.tar")
    assert read_json(tmp_path / "a" / MANIFESTS / "pairs.json") == [asdict(entry)]
    samples = list(read_shard(tmp_path / "a", entry))
    assert samples[0].image == pool.images["memory:0.png"]


def pool_of_formats(path: Path, kinds: Sequence[str]) -> MemoryPool:
    """A picture of each format, the colours of one not those of the next."""
    pool = small_pool(path, num_rows=len(kinds))
    for index, kind in enumerate(kinds):
        picture = Image.linear_gradient("L").resize((30, 20 + index)).convert("RGB")
        stream = io.BytesIO()
        picture.save(stream, kind)
        pool.images[f"memory:{index}.png"] = stream.getvalue()
    return pool


FORMATS = ("GIF", "JPEG", "BMP", "PNG", "TIFF", "WEBP", "AVIF", "GIF")


def test_formats_that_readers_of_shards_drop_are_written_as_png(tmp_path: Path) -> None:
    pool = pool_of_formats(tmp_path / "pool", FORMATS)
    result = export_webdataset(small_run(tmp_path / "run"), pool, tmp_path / "out")
    assert result.reencoded == {"png": {"avif": 1, "bmp": 1, "gif": 2, "tiff": 1}}
    samples = stored(tmp_path / "out")
    assert [sample.suffix for sample in samples] == [
        "png",
        "jpg",
        "png",
        "png",
        "png",
        "webp",
        "png",
        "png",
    ]
    for index, (sample, kind) in enumerate(zip(samples, FORMATS, strict=True)):
        original = pool.images[f"memory:{index}.png"]
        own = {"JPEG": "jpg"}.get(kind, kind.lower())
        assert sample.info["original_format"] == own
        assert (sample.image == original) == (sample.suffix == own)
        new, old = (Image.open(io.BytesIO(data)) for data in (sample.image, original))
        assert new.convert("RGBA").tobytes() == old.convert("RGBA").tobytes()


def test_the_member_of_a_jfif_is_called_jpg(tmp_path: Path) -> None:
    (tmp_path / "0.jfif").write_bytes(image_bytes(kind="JPEG"))
    (tmp_path / "t.csv").write_text("image_id,image,t\n00000000,0.jfif,a pier\n")
    columns = Columns(image="image", text=("t",))
    pool = Pool.build([tmp_path / "t.csv"], tmp_path / "pool", columns=columns)
    export_webdataset(small_run(tmp_path / "run"), pool, tmp_path / "out")
    [sample] = stored(tmp_path / "out")
    assert (sample.suffix, sample.image) == ("jpg", (tmp_path / "0.jfif").read_bytes())


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_one_format_throughout(tmp_path: Path, image_format: ImageFormat) -> None:
    pool = pool_of_formats(tmp_path / "pool", FORMATS)
    run, out = small_run(tmp_path / "run"), tmp_path / "out"
    result = export_webdataset(run, pool, out, image_format=image_format)
    assert {sample.suffix for sample in stored(out)} == {image_format}
    assert sum(result.reencoded[image_format].values()) == len(FORMATS) - 1
    small = export_webdataset(run, pool, tmp_path / "s", image_format=image_format, image_side=10)
    assert sum(small.reencoded[image_format].values()) == len(FORMATS) - 1
    sizes = [Image.open(io.BytesIO(sample.image)).size for sample in stored(tmp_path / "s")]
    assert {min(size) for size in sizes} == {10}


def stored(folder: Path) -> list[Sample]:
    entries = map(shard_entry, sorted(folder.glob("*.tar")))
    return [sample for entry in entries for sample in read_shard(folder, entry)]


@pytest.mark.parametrize("kinds", [FORMATS, ("JPEG",) * 8])
@pytest.mark.slow
def test_a_folder_is_a_dataset_of_hugging_face_as_it_is(
    tmp_path: Path, kinds: Sequence[str]
) -> None:
    import datasets

    run, pool = small_run(tmp_path / "run"), pool_of_formats(tmp_path / "pool", kinds)
    del pool.images["memory:7.png"]
    export_webdataset(run, pool, tmp_path / "out", pairs_per_shard=3)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    rows = list(loaded["train"])
    assert [row["txt"] for row in rows] == [f"a picture of thing {number}" for number in range(7)]
    assert [row["json"]["original_format"] for row in rows][1] == "jpg"
    for index, sample in enumerate(rows):
        pictures = [sample[name] for name in ("jpg", "png", "webp") if sample.get(name)]
        assert [picture.size for picture in pictures] == [(30, 20 + index)]


@pytest.mark.slow
def test_open_clip_keeps_every_sample(tmp_path: Path) -> None:
    from open_clip_train.data import filter_no_caption_or_no_image

    pool = pool_of_formats(tmp_path / "pool", FORMATS)
    export_webdataset(small_run(tmp_path / "run"), pool, tmp_path / "out")
    samples = read_plainly(tmp_path / "out", "pairs-000000.tar")
    assert len(samples) == len(FORMATS)
    assert all(map(filter_no_caption_or_no_image, samples))


def test_an_image_that_cannot_be_opened_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    pool = small_pool(tmp_path / "pool", num_rows=7)
    pool.images["memory:1.png"] = b"not an image"
    pool.images["memory:2.png"] = image_bytes(size=(40, 40))[:-20]
    del pool.images["memory:3.png"]
    result = export_webdataset(run, pool, tmp_path / "out")
    # Pair 7 is in the ledger and no longer in the pool.
    assert result.num_pairs == 4
    rejects = pq.read_table(tmp_path / "out" / MANIFESTS / "rejects.parquet").to_pylist()
    assert [(reject["pair_key"], reject["reason"]) for reject in rejects] == [
        ("00000001_t", "format_not_allowed"),
        ("00000002_t", "truncated_image"),
        ("00000003_t", "missing_image"),
        ("00000007_t", "missing_image"),
    ]
    assert result.rejects == {"format_not_allowed": 1, "truncated_image": 1, "missing_image": 2}
    assert "has no pair 00000007_t" in rejects[-1]["detail"]


def test_no_readable_image_at_all_is_bad_input_and_leaves_nothing(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    pool = small_pool(tmp_path / "pool")
    pool.images.clear()
    with pytest.raises(BadInputError, match="missing_image: 8"):
        export_webdataset(run, pool, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool", "run"]


def test_a_pool_without_images_is_told_of_the_other_formats(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    pool = small_pool(tmp_path / "pool", with_images=False)
    with pytest.raises(ConfigError, match=r"out\.json"):
        export_webdataset(run, pool, tmp_path / "out")


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    pool = small_pool(tmp_path / "pool")
    (tmp_path / "out").mkdir()
    export_webdataset(run, pool, tmp_path / "out")
    with pytest.raises(ConfigError, match="not empty"):
        export_webdataset(run, pool, tmp_path / "out")


@pytest.mark.parametrize("used", [True, False])
def test_the_best_similarity_of_several_outer_steps_is_exported(tmp_path: Path, used: bool) -> None:
    run = Run.create(tmp_path / "run", config={}, environment={})
    for step, (similarity, entry) in enumerate([(0.6, 0), (0.8, 1), (0.7, 2)]):
        item = scanned(1, outer_step=step, similarity=similarity, entry=entry, classes="abc")
        write_step(run, step, selections=[item], used=used)
    export_webdataset(run, small_pool(tmp_path / "pool"), tmp_path / "out")
    [sample] = read_plainly(tmp_path / "out", "pairs-000000.tar")
    info = sample["json"]
    assert (info["similarity"], info["metadata_text"]) == (0.8, "b")  # type: ignore[index]
    assert info["count"] == (6 if used else 3)  # type: ignore[index]


def test_a_pool_of_files_exports_as_it_was_built(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = ["image_id,image,t"]
    for index in range(8):
        (folder / f"{index}.png").write_bytes(image_bytes())
        lines.append(f"{index:08d},{index}.png,caption {index}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    columns = Columns(image="image", text=("t",))
    pool = Pool.build([folder / "table.csv"], tmp_path / "pool", columns=columns)
    result = export_webdataset(small_run(tmp_path / "run"), pool, tmp_path / "out")
    assert (result.num_pairs, result.rejects) == (8, {})
    samples = read_plainly(tmp_path / "out", "pairs-000000.tar")
    assert [sample["txt"] for sample in samples] == [f"caption {index}" for index in range(8)]


@pytest.mark.faults("Q4")
@pytest.mark.parametrize("before", [1, 4, 8])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, before: int) -> None:
    run = small_run(tmp_path / "run")
    pool = small_pool(tmp_path / "pool")

    def stop(done: int, total: int) -> None:
        if done == before:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_webdataset(run, pool, tmp_path / "out", pairs_per_shard=2, on_progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool", "run"]


@given(st.lists(st.tuples(st.text(max_size=4), st.integers(1, 2**53)), min_size=1, max_size=5))
@example([('a"b\\c', 3), ("a\u2028\x7f/é", 4)])
@example([("plain_t", 3), ("nul\0_t", 4)])
def test_lines_of_counts_are_what_json_writes(members):
    keys, counts = zip(*members, strict=True)
    lines = json_members(pa.array(keys, pa.string()), pa.array(counts, pa.int64()))
    expected = [f"{json.dumps(key, ensure_ascii=False)}: {count}" for key, count in members]
    assert lines == ",\n".join(expected)
