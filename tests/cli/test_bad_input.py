"""Missing things, bad tables and images, folders in use: each ends with its code and its name."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runs import (
    Cit,
    start,
    text_flags,
    train_flags,
    wait_for,
)

# Missing things


@pytest.mark.faults("G1", "E8")
def test_a_missing_pool_run_model_or_file_ends_with_2_and_is_named(
    cit: Cit, tiny: Path, run_folder: Path, tmp_path: Path
) -> None:
    no, pool = tmp_path / "nothing-here", tiny / "data/pool"
    out = ("--out", tmp_path / "out")
    for args in (
        ("pool", "info", no),
        ("pool", "verify", no),
        ("pool", "repair", no),
        ("verify", no),
        ("repair", no),
        ("pool", "build", no, *out),
        ("curate", no, *text_flags(tiny), *out),
        ("curate", pool, *text_flags(tiny), "--metadata", no, *out),
        ("curate", pool, *text_flags(tiny), "--text-encoder", no, *out),
        ("train", "default", *train_flags(tiny, str(no)), *out),
        ("train", "default", *train_flags(tiny), "--vision-encoder", no, *out),
        ("train", "default", *train_flags(tiny), "--eval-data", no, *out),
        ("eval", no, "--data", tiny / "pictures"),
        ("eval", tiny / "run", "--data", no),
        ("query", no, "SELECT 1"),
        ("query", run_folder, "SELECT 1", "--pool", no),
        ("export", no, tmp_path / "counts.json"),
        ("report", no),
    ):
        ended = cit(*args)
        assert (ended.code, ended.out) == (2, ""), args
        # Above it there may be the line that says which classes were read.
        assert ended.err.splitlines()[-1].startswith("error: "), args
        assert str(no) in ended.err.splitlines()[-1], args
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir()), args


@pytest.mark.faults("G1")
def test_no_out_and_no_pool_are_said(cit: Cit, tiny: Path) -> None:
    ended = cit("curate", tiny / "data/pool", *text_flags(tiny))
    assert (ended.code, ended.err[:20]) == (2, "error: --out is miss")
    ended = cit("train", "default")
    assert (ended.code, ended.err[:21]) == (2, "error: --pool is miss")


# Bad tables


@pytest.mark.faults("G1")
def test_a_missing_column_is_named_with_those_that_are_there(cit: Cit, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("id,title\n1,a red disc\n", encoding="utf-8")
    flags = ("--image-id", "sku", "--text", "title", "--out", tmp_path / "p")
    ended = cit("pool", "build", tmp_path / "pairs.csv", *flags)
    assert ended.code == 2
    assert "'sku'" in ended.err
    assert "id, title" in ended.err
    assert "pairs.csv" in ended.err
    assert not (tmp_path / "p").exists()


@pytest.mark.faults("P11", "C1")
@pytest.mark.parametrize("rows", ["", "1,\n2,\n", "1,   \n"])
def test_an_empty_table_ends_with_3(cit: Cit, tmp_path: Path, rows: str) -> None:
    (tmp_path / "pairs.csv").write_text(f"image_id,title\n{rows}", encoding="utf-8")
    ended = cit("pool", "build", tmp_path / "pairs.csv", "--text", "title", "--out", tmp_path / "p")
    assert ended.code == 3
    assert ended.err.startswith("error: ")
    assert not (tmp_path / "p").exists()


@pytest.mark.faults("C1")
def test_an_empty_caption_is_counted_with_its_reason_and_does_no_harm(
    cit: Cit, tmp_path: Path
) -> None:
    rows = "".join(f"{number},a red disc\n" for number in range(200))
    (tmp_path / "pairs.csv").write_text(f"image_id,title\n{rows}200,\n", encoding="utf-8")
    args = ("--text", "title", "--out", tmp_path / "p", "--json")
    ended = cit("pool", "build", tmp_path / "pairs.csv", *args)
    assert ended.code == 0
    summary = json.loads(ended.out)
    assert summary["num_pairs"] == 200
    assert summary["rejects"] == {"empty_text": 1}


@pytest.mark.faults("P3")
@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_damaged_parquet_file_ends_with_4_and_is_named(
    cit: Cit, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"image_id": ["1"], "title": ["a red disc"]}), path)
    path.write_bytes(path.read_bytes()[:-8] if damage == "cut" else b"")
    ended = cit("pool", "build", path, "--text", "title", "--out", tmp_path / "p")
    assert ended.code == 4
    assert str(path) in ended.err
    assert not (tmp_path / "p").exists()


@pytest.mark.faults("P3")
def test_a_damaged_pool_ends_with_4_and_names_the_part(
    cit: Cit, tiny: Path, tmp_path: Path
) -> None:
    from tiny import make_pool

    pool = make_pool(tmp_path / "data", num_images=4)
    part = next((pool / "pairs").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    for args in (
        ("pool", "verify", pool),
        ("curate", pool, *text_flags(tiny), "--out", tmp_path / "out", "--max-pairs", "2"),
    ):
        ended = cit(*args)
        assert (ended.code, ended.out) == (4, ""), args
        assert part.name in ended.err


def hashes(folder: Path) -> dict[Path, str]:
    """Everything below a folder, with the SHA-256 of each file."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def write_tables(folder: Path, *names: str) -> list[Path]:
    paths = [folder / f"{name}.parquet" for name in names]
    for path in paths:
        ids = [f"{path.stem}-{row}" for row in range(300)]
        pq.write_table(pa.table({"image_id": ids, "title": ["a red disc"] * 300}), path)
    return paths


@pytest.mark.faults("P3")
def test_a_parquet_source_cut_anywhere_ends_with_4_and_no_other_file_changes(
    cit: Cit, tmp_path: Path
) -> None:
    whole, cut = write_tables(tmp_path, "whole", "cut")
    args = ("pool", "build", whole, cut, "--text", "title", "--out")
    assert cit(*args, tmp_path / "pool").code == 0
    content = cut.read_bytes()
    for size in range(0, len(content), len(content) // 12):
        cut.write_bytes(content[:size])
        before = hashes(tmp_path)
        for out in ((tmp_path / "pool", "--overwrite"), (tmp_path / "new",)):
            ended = cit(*args, *out)
            assert (ended.code, ended.out) == (4, ""), size
            assert f"{cut} ({size:,} bytes) is damaged or still being written" in ended.err
            assert str(whole) not in ended.err
            assert hashes(tmp_path) == before
    cut.write_bytes(content)
    assert cit(*args, tmp_path / "new").code == 0
    assert cit("pool", "verify", tmp_path / "pool").code == 0


@pytest.mark.faults("P3")
def test_a_parquet_source_damaged_inside_ends_with_4_and_no_other_file_changes(
    cit: Cit, tmp_path: Path
) -> None:
    whole, broken = write_tables(tmp_path, "whole", "broken")
    args = ("pool", "build", whole, broken, "--text", "title", "--out", tmp_path / "pool")
    assert cit(*args).code == 0
    content = broken.read_bytes()
    broken.write_bytes(content[:4] + bytes(200) + content[204:])
    before = hashes(tmp_path)
    ended = cit(*args, "--overwrite")
    assert (ended.code, ended.out) == (4, "")
    assert f"{broken} ({len(content):,} bytes) is damaged or still being written" in ended.err
    assert before.items() <= hashes(tmp_path).items()
    assert cit("pool", "verify", tmp_path / "pool").code == 0


# Two at once


@pytest.mark.faults("P9")
@pytest.mark.slow
def test_the_second_of_two_builds_of_a_pool_ends_with_5_until_the_first_is_killed(
    tmp_path: Path,
) -> None:
    (tmp_path / "pairs.csv").write_text("image_id,title\n1,a red disc\n", encoding="utf-8")
    pool, lock = tmp_path / "pool", tmp_path / ".pool.lock"
    args = ("pool", "build", tmp_path / "pairs.csv", "--text", "title", "--out", pool)
    first = start(*args, CIT_FAIL_AT="pool_part.start:1:sleep")
    try:
        wait_for(lock, first)
        while str(first.pid) not in lock.read_text():
            assert first.poll() is None, first.communicate()
            time.sleep(0.02)
        second = start(*args)
        out, err = second.communicate(timeout=60)
        assert (second.returncode, out) == (5, "")
        owner = f"process {first.pid} on {os.uname().nodename}"
        assert err.startswith(f"error: {lock} is held by {owner}; ")
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert not pool.exists()
    third = start(*args)
    third.communicate(timeout=60)
    assert third.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.csv", "pool"]
    verified = start("pool", "verify", pool)
    verified.communicate(timeout=60)
    assert verified.returncode == 0


# Output folders


@pytest.mark.faults("G2c")
def test_an_output_folder_that_is_not_empty_ends_with_2_and_is_left_alone(
    cit: Cit, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    out = ("--out", tmp_path / "out")
    for args in (
        ("pool", "build", tiny / "data/pairs.csv", "--text", "title", *out),
        ("curate", tiny / "data/pool", *text_flags(tiny), *out),
        ("curate", tiny / "data/pool", *text_flags(tiny), *out, "--overwrite"),
        ("train", "default", *train_flags(tiny), *out),
        ("train", "default", *train_flags(tiny), *out, "--overwrite"),
        ("train", "default", *train_flags(tiny), *out, "--resume"),
    ):
        ended = cit(*args)
        assert ended.code == 2, args
        assert str(tmp_path / "out") in ended.err, args
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"], args


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither towers nor sessions are opened."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("cit_curate.curation.curate.TextEncoder.load", never)
    monkeypatch.setattr("cit_train.outer_loop.open_session", never)


def writing(verb: str, tiny: Path, out: Path) -> list[object]:
    """The arguments of `cit curate` or `cit train` into a folder."""
    args = {
        "curate": ["curate", tiny / "data/pool", *text_flags(tiny)],
        "train": ["train", "default", *train_flags(tiny)],
    }
    return [*args[verb], "--out", out]


@pytest.mark.faults("L9")
@pytest.mark.parametrize("verb", ["curate", "train"])
@pytest.mark.usefixtures("no_work")
def test_a_folder_that_takes_no_bytes_ends_with_5_before_any_work(
    cit: Cit, tiny: Path, tmp_path: Path, verb: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        ended = cit(*writing(verb, tiny, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (ended.code, ended.out) == (5, "")
    assert "File too large; free some space or raise the limit" in ended.err
    assert not list(tmp_path.iterdir())


def as_a_user(args: Sequence[object]) -> list[str]:
    """A command for which the modes of files hold, though the tests may be run as root."""
    plain = [sys.executable, "-m", "cit_train.cli", *map(str, args)]
    drop = ["setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override"]
    return plain if os.geteuid() else [*drop, *plain]


@pytest.mark.faults("L9")
@pytest.mark.parametrize(
    ("verb", "out"),
    [
        ("curate", "closed/run"),
        pytest.param("train", "closed/run", marks=pytest.mark.slow),
        pytest.param("train", "closed", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_folder_that_may_not_be_written_to_ends_with_5_and_nothing_is_written(
    tiny: Path, tmp_path: Path, verb: str, out: str
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    command = as_a_user(writing(verb, tiny, tmp_path / out))
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        closed.chmod(0o755)
    assert (ended.returncode, ended.stdout) == (5, ""), ended.stderr
    *before, error = ended.stderr.splitlines()
    assert all("classes.txt: 2 classes" in line for line in before)
    assert error.startswith(f"error: [Errno 13] Permission denied: '{closed}/")
    assert error.endswith("choose a folder that you may write to, and run the command again")
    assert list(tmp_path.rglob("*")) == [closed]


@pytest.mark.faults("L9")
@pytest.mark.parametrize("verb", ["curate", "train"])
@pytest.mark.usefixtures("no_work")
def test_a_read_only_disk_ends_with_5_before_any_work(
    cit: Cit, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def read_only(path: Path, _: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_bytes", read_only)
    ended = cit(*writing(verb, tiny, tmp_path / "run"))
    assert (ended.code, ended.out) == (5, "")
    assert f"Read-only file system: '{tmp_path}/" in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.faults("G2c")
def test_a_run_is_replaced_only_when_asked(cit: Cit, tiny: Path, run_folder: Path) -> None:
    args = ("curate", tiny / "data/pool", *text_flags(tiny), "--threshold", "-1")
    ended = cit(*args, "--max-pairs", "12", "--out", run_folder)
    assert ended.code == 2
    assert "is not empty" in ended.err
    assert "--overwrite" in ended.err
    ended = cit("train", "default", *train_flags(tiny), "--out", run_folder, "--resume")
    assert ended.code == 2


@pytest.mark.faults("K8")
def test_a_resume_of_a_finished_run_says_so_and_changes_nothing(
    cit: Cit, tiny: Path, tmp_path: Path
) -> None:
    args = ("train", "default", *train_flags(tiny), "--out", tmp_path / "run")
    ended = cit(*args)
    assert ended.code == 0
    assert "already" not in ended.err
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    ended = cit(*args, "--resume")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.splitlines()[1].startswith("already finished: 2 updates; ")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before


@pytest.mark.faults("K5")
@pytest.mark.slow
def test_a_changed_setting_ends_with_2_and_the_flag_that_goes_on(
    cit: Cit, tiny: Path, tmp_path: Path
) -> None:
    args = ("train", "default", *train_flags(tiny), "--out", tmp_path / "run")
    assert cit(*args).code == 0
    more = (*args, "--max-updates", "3", "--seed", "7", "--resume")
    ended = cit(*more)
    assert (ended.code, ended.out) == (2, "")
    assert "max_updates: 2 then, 3 now; seed: 0 then, 7 now" in ended.err
    assert ended.err.endswith("--allow-change max_updates seed\n")
    ended = cit(*more, "--allow-change", "max_updates", "seed")
    assert ended.code == 0, ended.err
    assert "\nfinished: 3 updates" in f"\n{ended.err}"
    assert cit(*args, "--allow-change", "seed").code == 2


# Nothing passes


@pytest.mark.faults("L1")
@pytest.mark.parametrize("verb", ["curate", "train"])
def test_nothing_passing_ends_with_3_the_best_similarity_and_a_suggestion(
    cit: Cit, tiny: Path, tmp_path: Path, verb: str
) -> None:
    rules = ["--threshold", "1", "--min-ratio", "0", "--out", tmp_path / "out"]
    if verb == "curate":
        ended = cit("curate", tiny / "data/pool", *text_flags(tiny), "--max-pairs", "4", *rules)
    else:
        ended = cit("train", "default", *train_flags(tiny), *rules)
    assert (ended.code, ended.out) == (3, "")
    error = ended.err.splitlines()[-1]
    assert "the best similarity seen is 1.000" in error
    assert "--threshold 0.99 would have kept enough" in error


# Bad images


@pytest.mark.faults("I1", "I2", "I3")
def test_a_pair_whose_image_cannot_be_opened_gives_way_to_the_next(
    cit: Cit, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # 13 of the 16 images can be opened, and the one update needs all of them.
    sizes = ("--batch-size", "13", "--max-updates", "1", "--out", out, "--json")
    ended = cit("train", "default", *train_flags(tiny, "bad/pool"), *sizes)
    assert ended.code == 0
    assert json.loads(ended.out)["updates"] == 1
    query = "SELECT pair_key, reason, detail FROM rejects ORDER BY 1"
    rejects = json.loads(cit("query", out, query, "--json").out)
    assert [(row["pair_key"][:4], row["reason"]) for row in rejects] == [
        ("0002", "truncated_image"),
        ("0005", "format_not_allowed"),
        ("0009", "too_many_pixels"),
    ]
    assert "21000" in rejects[2]["detail"]
    for view in ("used", "selections"):
        count = f"SELECT count(DISTINCT split_part(pair_key, '_', 1)) AS images FROM {view}"
        assert json.loads(cit("query", out, count, "--json").out) == [{"images": 13}]


# Images on the web


def test_a_pool_of_web_addresses_says_so_how_many_and_what_fetches_them(
    cit: Cit, tiny: Path, tmp_path: Path
) -> None:
    rows = [f"{n},https://example.org/{n // 2}.jpg,a blue square no {n}" for n in range(8)]
    table = "\n".join(["id,url,title", *rows, "8,,a red disc without a picture"])
    (tmp_path / "web.csv").write_text(table, encoding="utf-8")
    pool = tmp_path / "web"
    columns = ("--image-id", "id", "--image", "url", "--text", "title")
    assert cit("pool", "build", tmp_path / "web.csv", *columns, "--out", pool).code == 0
    said = f"8 images are web addresses in {pool}"
    ended = cit("train", "default", *train_flags(tiny, str(pool)), "--out", tmp_path / "run")
    assert ended.code == 2
    assert said in ended.err
    assert "img2dataset" in ended.err
    out = ("--threshold", "-1", "--max-pairs", "all", "--out", tmp_path / "picked")
    ended = cit("curate", pool, *text_flags(tiny), *out)
    assert ended.code == 0
    assert said in ended.err
    assert "img2dataset" in ended.err
    ended = cit("export", tmp_path / "picked", tmp_path / "shards")
    assert ended.code == 2
    assert said in ended.err
    assert "img2dataset" in ended.err
    assert cit("export", tmp_path / "picked", tmp_path / "picked.parquet").code == 0
