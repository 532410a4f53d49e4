"""Several captions of one image: each has a text key of its own, and none is lost but repeats."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro
from hypothesis import example, given, settings
from hypothesis import strategies as st
from long_tables import LONG, bytes_of, pairs_in, rejects_in, write_long
from run_fixtures import image_bytes

from cit_curate.config import EngineConfig
from cit_curate.engines.engine import Engine
from cit_curate.pool import commands
from cit_curate.pool.build import ingest, reading
from cit_curate.pool.pool import Pool
from cit_curate.sources import rows as source_rows
from cit_curate.sources.columns import Columns

THINGS = ("a brass kettle", "a red canoe", "a sleepy hen", "a bent fork", "a paper moon")


def built(capsys: pytest.CaptureFixture[str], out: Path, *words: object) -> dict[str, Any]:
    """What `cit pool build … --json` prints."""
    tyro.cli(commands.build, args=[*map(str, words), "--out", str(out), "--overwrite", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def counts(found: dict[str, Any]) -> tuple[int, int, dict[str, int]]:
    return found["num_pairs"], found["num_images"], found["rejects"]


def caption(image: int, number: int) -> str:
    return f"{THINGS[number]} no {image}"


def captions_csv(path: Path, *, repeated: bool = False) -> Path:
    """Eight images with five captions each; if `repeated`, the fourth equals the first."""
    lines = ["image,caption"]
    for image in range(8):
        numbers = [0, 1, 2, 0 if repeated else 3, 4]
        lines += [f"{image:02d}.png,{caption(image, number)}" for number in numbers]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (path.parent / "photos").mkdir()
    for image in range(8):
        (path.parent / f"photos/{image:02d}.png").write_bytes(image_bytes())
    return path


def write_tar(path: Path, samples: Sequence[tuple[str, dict[str, Any], str | None]]) -> Path:
    """Samples are (key, fields of the .json, .txt)."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (key, fields, text) in enumerate(samples):
            members = {
                "png": image_bytes(size=(8, 9 + number)),
                "json": json.dumps(fields).encode(),
            }
            if text is not None:
                members["txt"] = text.encode()
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


BY_IMAGE = ("--image-id", "image", "--image", "image", "--caption", "caption", "--image-root")


def test_five_captions_of_each_image_have_five_text_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = captions_csv(tmp_path / "c.csv")
    found = built(capsys, tmp_path / "p", path, *BY_IMAGE, tmp_path / "photos")
    assert counts(found) == (40, 8, {})
    assert found["num_with_image"] == 40
    keys = ["caption", *(f"caption-{number}" for number in range(2, 6))]
    assert found["text_keys"] == dict.fromkeys(keys, 8)
    assert found["num_captions_numbered"] == 32
    assert found["warnings"] == []
    assert any(note.startswith("32 captions numbered") for note in found["notes"])
    pairs = pairs_in(Pool.open(tmp_path / "p"))
    assert pairs[5:10] == [("01.png", key, caption(1, number)) for number, key in enumerate(keys)]


@pytest.mark.faults("P4")
def test_an_exact_repeat_is_listed_and_takes_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = captions_csv(tmp_path / "c.csv", repeated=True)
    found = built(capsys, tmp_path / "p", path, *BY_IMAGE, tmp_path / "photos")
    assert counts(found) == (32, 8, {"duplicate_pair": 8})
    assert list(found["text_keys"]) == ["caption", "caption-2", "caption-3", "caption-4"]
    assert found["warnings"] == []
    rejects = pq.read_table(tmp_path / "p/rejects").to_pylist()
    assert [reject["row"] for reject in rejects] == [5 + 5 * image for image in range(8)]
    assert rejects[0]["detail"] == "its text is that of 00.png_caption, from c.csv row 2"


def test_samples_of_one_image_id_are_captions_of_one_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [
        (f"{image}{number}", {"image_id": image}, caption(image, number))
        for image in range(4)
        for number in range(5)
    ]
    path = write_tar(tmp_path / "t.tar", samples)
    assert counts(built(capsys, tmp_path / "p", path)) == (20, 4, {})


def shard(path: Path, first: int) -> Path:
    """A shard as img2dataset writes it: names count from 0 in each, without ids of images."""
    samples = [
        (f"{number:05d}", {"key": f"{number:05d}"}, caption(first + number, number))
        for number in range(5)
    ]
    return write_tar(path, samples)


def test_equal_names_in_two_downloads_are_two_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(tmp_path / "may/0.tar", 0)
    shard(tmp_path / "june/0.tar", 40)
    found = built(capsys, tmp_path / "p", tmp_path / "may", tmp_path / "june")
    assert counts(found) == (10, 10, {})
    assert found["num_images_renamed"] == 5
    assert "num_captions_numbered" not in found
    assert any("5 images in 1 source" in n and "june/0.tar/00000" in n for n in found["notes"])
    ids = [f"{number:05d}" for number in range(5)]
    pairs = pairs_in(Pool.open(tmp_path / "p"))
    assert [pair[0] for pair in pairs] == [*ids, *(f"june/0.tar/{name}" for name in ids)]
    assert {pair[1] for pair in pairs} == {"caption"}
    assert found["num_with_image"] == 10


def test_shards_that_number_anew_keep_all_their_pairs(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"all/{number}.tar", 10 * number)
    pool = Pool.build([tmp_path / "all"], tmp_path / "p")
    assert (pool.num_pairs, pool.num_images, pool.manifest.rejects) == (15, 15, {})
    assert pairs_in(pool)[14][0] == "all/2.tar/00004"


def test_one_path_named_twice_is_the_same_picture_twice(tmp_path: Path) -> None:
    may = shard(tmp_path / "may/0.tar", 0)
    other = shard(tmp_path / "june/0.tar", 40)
    (tmp_path / "link.tar").symlink_to(may)
    pool = Pool.build([may, tmp_path / "link.tar"], tmp_path / "p")
    assert (pool.num_pairs, pool.manifest.rejects) == (5, {"duplicate_pair": 5})
    pool = Pool.build([other, may, tmp_path / "link.tar", other], tmp_path / "q")
    assert (pool.num_pairs, pool.num_images) == (10, 10)
    assert pool.manifest.rejects == {"duplicate_pair": 10}


def test_ids_of_a_column_or_of_a_json_are_of_the_same_image_in_every_source(tmp_path: Path) -> None:
    for name in ("a", "b"):
        samples = [(name, {"image_id": "x"}, f"{name} kettle")]
        write_tar(tmp_path / f"{name}.tar", samples)
    pool = Pool.build([tmp_path / "a.tar", tmp_path / "b.tar"], tmp_path / "p")
    assert pairs_in(pool) == [("x", "caption", "a kettle"), ("x", "caption-2", "b kettle")]
    tables = [write_long(tmp_path / f"{n}.csv", [("x", "t", f"hen {n}")]) for n in range(3)]
    pool = Pool.build(tables, tmp_path / "q", columns=LONG)
    assert pairs_in(pool) == [("x", "t", "hen 0"), ("x", "t-2", "hen 1"), ("x", "t-3", "hen 2")]


def test_a_name_gives_way_to_the_id_of_an_earlier_source_and_to_nothing_else(
    tmp_path: Path,
) -> None:
    samples = [("x", {"alt": "a hen"}), ("y", {"image_id": "z", "alt": "a fork"})]
    tar = write_tar(tmp_path / "n.tar", [(*sample, None) for sample in samples])
    table = tmp_path / "t.jsonl"
    table.write_text("".join(f'{{"image_id": "{n}", "alt": "a moon"}}\n' for n in "xz"))
    columns = Columns(caption="alt")
    pool = Pool.build([table, tar], tmp_path / "p", columns=columns)
    assert pairs_in(pool) == [
        ("x", "alt", "a moon"),
        ("z", "alt", "a moon"),
        ("z", "alt-2", "a fork"),
        ("n.tar/x", "alt", "a hen"),
    ]
    pool = Pool.build([tar, table], tmp_path / "q", columns=columns)
    assert [pair[:2] for pair in pairs_in(pool)] == [
        ("x", "alt"),
        ("x", "alt-2"),
        ("z", "alt"),
        ("z", "alt-2"),
    ]


def folder(path: Path, names: Sequence[str]) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        content = image_bytes() if not name.endswith(".txt") else f"of {path.name}/{name}".encode()
        (path / name).write_bytes(content)
    return path


def test_a_new_id_is_never_one_that_another_image_has(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", ["x.png", "x.txt", "two/x.png", "two/x.txt"])
    two = folder(tmp_path / "two", ["x.png", "x.txt"])
    pool = Pool.build([one, two], tmp_path / "p")
    assert [pair[0] for pair in pairs_in(pool)] == ["x", "two/x", "two/two/x"]
    assert pool.num_images == 3


def test_an_image_keeps_its_id_where_a_new_one_would_be_too_long(tmp_path: Path) -> None:
    long = "/".join(["x" * 60] * 4)
    names = [f"{long}.png", f"{long}.txt"]
    sources = [folder(tmp_path / name, names) for name in ("one", "two" * 5)]
    pool = Pool.build(sources, tmp_path / "p")
    assert [pair[:2] for pair in pairs_in(pool)] == [(long, "caption"), (long, "caption-2")]


def test_pictures_of_one_name_in_a_folder_are_two_images(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "a.png.webp", "a.png.txt", "a.txt", "b/a.png", "b/a.txt"]
    pool = Pool.build([folder(tmp_path / "f", names)], tmp_path / "p")
    assert pairs_in(pool) == [
        ("a", "caption", "of f/a.txt"),
        ("a.png", "caption", "of f/a.txt"),
        ("a.png.webp", "caption", "of f/a.png.txt"),
        ("b/a", "caption", "of f/b/a.txt"),
    ]
    table = pq.read_table(pool.path / "pairs")
    assert table["image_uri"].to_pylist() == ["a.jpg", "a.png", "a.png.webp", "b/a.png"]


LISTS = [[caption(image, number) for number in range(5)] for image in range(8)]
LISTS_WITH_GAPS: list[list[str | None]] = [list(texts) for texts in LISTS]
LISTS_WITH_GAPS[3][1], LISTS_WITH_GAPS[3][4] = None, LISTS[3][0]
KEY_COUNTS = {"": 8, "-2": 8, "-3": 8, "-4": 7, "-5": 7}


def list_table(path: Path) -> Path:
    ids, images = [str(n) for n in range(8)], [f"{n}.png" for n in range(8)]
    if path.suffix == ".parquet":
        kind = pa.list_(pa.string())
        columns = {"id": ids, "image": images, "captions": pa.array(LISTS_WITH_GAPS, kind)}
        pq.write_table(pa.table(columns), path)
    else:
        rows = zip(ids, images, LISTS_WITH_GAPS, strict=True)
        lines = [json.dumps({"id": a, "image": b, "captions": c}) for a, b, c in rows]
        path.write_text("\n".join(lines) + "\n")
    return folder(path.parent, images) / path.name


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
@pytest.mark.parametrize(("flag", "key"), [("--text", "captions"), ("--caption", "caption")])
def test_a_list_gives_its_texts_numbered_keys(
    name: str, flag: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = list_table(tmp_path / name)
    columns = ("--image-id", "id", "--image", "image", flag, "captions")
    found = built(capsys, tmp_path / "p", path, *columns)
    assert counts(found) == (38, 8, {"duplicate_pair": 1})
    assert found["num_with_image"] == 38
    assert found["text_keys"] == {f"{key}{number}": n for number, n in KEY_COUNTS.items()}
    assert found["warnings"] == []
    of_third = [pair[1:] for pair in pairs_in(Pool.open(tmp_path / "p")) if pair[0] == "3"]
    assert of_third == [
        (key, caption(3, 0)),
        (f"{key}-2", caption(3, 2)),
        (f"{key}-3", caption(3, 3)),
    ]


def test_a_list_in_a_json_of_a_tar_gives_its_texts_numbered_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [(f"{n:03d}", {"caption": texts}, None) for n, texts in enumerate(LISTS_WITH_GAPS)]
    found = built(capsys, tmp_path / "p", write_tar(tmp_path / "t.tar", samples))
    assert counts(found) == (38, 8, {"duplicate_pair": 1})
    assert found["text_keys"] == {f"caption{number}": n for number, n in KEY_COUNTS.items()}


def test_a_number_never_makes_a_key_that_the_image_has(tmp_path: Path) -> None:
    lines = [
        {"image_id": "1", "caption": list("abcd"), "caption-2": "e", "caption-4": ["f", "g"]},
        {"image_id": "2", "caption": list("ab"), "caption-2": None, "caption-4": "c"},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    columns = Columns(text=("caption", "caption-2", "caption-4"))
    pool = Pool.build([path], tmp_path / "p", columns=columns)
    assert [pair[1:] for pair in pairs_in(pool)] == [
        ("caption", "a"),
        ("caption-3", "b"),
        ("caption-5", "c"),
        ("caption-6", "d"),
        ("caption-2", "e"),
        ("caption-4", "f"),
        ("caption-4-2", "g"),
        ("caption", "a"),
        ("caption-2", "b"),
        ("caption-4", "c"),
    ]


def test_values_of_a_text_key_column_are_numbered_when_they_repeat(tmp_path: Path) -> None:
    rows = [("1", "Alt", "a hen"), ("1", "alt", "a moon"), ("1", "alt", "a hen"), ("1", "t", "o")]
    pool = Pool.build([write_long(tmp_path / "a.csv", rows)], tmp_path / "p", columns=LONG)
    expected = [("1", "alt", "a hen"), ("1", "alt-2", "a moon"), ("1", "t", "o")]
    assert pairs_in(pool) == expected
    assert rejects_in(pool) == [("a.csv", 4, "duplicate_pair")]


def test_an_image_with_more_than_a_thousand_captions_of_one_key_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("same", "t", f"hen {number}") for number in range(1_001)]
    path = write_long(tmp_path / "a.csv", rows)
    words = ("--text-key", "key", "--caption", "caption")
    found = built(capsys, tmp_path / "p", path, *words)
    assert found["num_pairs"] == 1_001
    (warning,) = found["warnings"]
    assert "same_t stands for 1,001 captions" in warning
    assert "--image-id" in warning
    commands.info(tmp_path / "p")
    shown = " ".join(capsys.readouterr().out.split())
    assert "text keys: t 1, t-2 1, t-3 1" in shown
    assert "t-20 1, and 981 more" in shown


@contextmanager
def engine_of_two(*_: object, **__: object) -> Iterator[Engine]:
    """Two workers' share of the work, in this process."""
    yield Engine(map, 2)  # type: ignore[arg-type]


ids = st.sampled_from(["1", "2", "3", "10", "a b"])
keys = st.sampled_from(["caption", "caption-2", "caption-3", "caption-02", "t"])
texts = st.sampled_from(["kettle", "canoe", "hen", "fork", "moon", " "])


def numbered(rows: Sequence[tuple[str, str, str]]) -> tuple[list[tuple[str, str, str]], int]:
    """The pairs that come of rows, and the number of exact repeats; caption by caption."""
    rows = [row for row in rows if row[2].strip()]
    taken = {(image, key) for image, key, _ in rows}
    found: dict[tuple[str, str], dict[str, str]] = {}
    images: dict[str, list[tuple[str, str, str]]] = {}
    repeats = 0
    for image, key, text in rows:
        of_key = found.setdefault((image, key), {})
        if text in of_key:
            repeats += 1
            continue
        free = (f"{key}-{n}" for n in range(2, 100))
        of_key[text] = (
            next(k for k in free if (image, k) not in taken and k not in of_key.values())
            if of_key
            else key
        )
        images.setdefault(image, []).append((image, of_key[text], text))
    return [pair for pairs in images.values() for pair in pairs], repeats


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(ids, keys, texts), max_size=25), st.booleans())
@example([("1", "caption", "hen"), ("2", "caption", "hen"), ("2", "caption", "moon")], True)
def test_every_text_is_a_pair_or_a_repeat_whoever_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], rising: bool
) -> None:
    place = tmp_path_factory.mktemp("rows")
    rows = [*(sorted(rows, key=lambda row: (len(row[0]), row[0])) if rising else rows)]
    rows.append(("last", "t", "so that the pool is not empty"))
    path = write_long(place / "a.csv", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_rows, "ROWS_PER_BATCH", 3)
        patch.setattr(reading, "BLOCK_BATCHES", 2)
        patch.setattr(reading, "BYTES_PER_WORKER", 1)
        one = Pool.build([path], place / "one", columns=LONG)
        patch.setattr(ingest, "open_engine", engine_of_two)
        two = Pool.build([path], place / "two", columns=LONG)
    expected, repeats = numbered(rows)
    assert pairs_in(one) == expected
    assert one.manifest.rejects.get("duplicate_pair", 0) == repeats
    assert len({pair[:2] for pair in expected}) == one.num_pairs == len(expected)
    assert bytes_of(one.path) == bytes_of(two.path)


cells = st.none() | texts | st.lists(st.none() | texts, max_size=5)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(ids, cells, cells), min_size=1, max_size=12))
@example([("1", ["hen", "moon"], "fork"), ("2", ["hen", None, "hen"], None)])
def test_every_text_of_a_list_is_a_pair_or_a_repeat(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, Any, Any]]
) -> None:
    place = tmp_path_factory.mktemp("lists")
    rows = [*rows, ("last", "so that the pool is not empty", None)]
    lines = [json.dumps({"image_id": a, "caption": b, "caption-2": c}) for a, b, c in rows]
    (place / "a.jsonl").write_text("\n".join(lines) + "\n")
    kind = pa.list_(pa.string())

    def as_list(value: Any) -> list[str | None]:
        return value if isinstance(value, list) else [value]

    names = ("image_id", "caption", "caption-2")
    by_column = dict(zip(names, zip(*rows, strict=True), strict=True))
    lists = {name: pa.array(map(as_list, by_column[name]), kind) for name in names[1:]}
    pq.write_table(pa.table({"image_id": by_column["image_id"], **lists}), place / "a.parquet")
    flat = [
        (image, key, text)
        for image, *both in rows
        for key, value in zip(names[1:], both, strict=True)
        for text in as_list(value)
        if text is not None
    ]
    expected, repeats = numbered(flat)
    for name in ("a.jsonl", "a.parquet"):
        columns = Columns(text=names[1:])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source_rows, "ROWS_PER_BATCH", 3)
            pool = Pool.build([place / name], place / f"pool of {name}", columns=columns)
        assert pairs_in(pool) == expected
        assert pool.manifest.rejects.get("duplicate_pair", 0) == repeats


@pytest.mark.slow
def test_spawned_processes_number_captions_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(str(n * 7 % 300), "t", f"hen {n % 1_700}") for n in range(20_000)]
    path = write_long(tmp_path / "a.csv", rows)
    monkeypatch.setattr(reading, "BYTES_PER_WORKER", 1_000)
    build = {"columns": LONG, "name": "pool"}
    one = Pool.build([path], tmp_path / "one", **build)
    two = Pool.build([path], tmp_path / "two", **build, engine=EngineConfig(workers=2))
    assert one.manifest.rejects["duplicate_pair"] > 1_000
    assert one.manifest == two.manifest
    assert bytes_of(one.path) == bytes_of(two.path)
