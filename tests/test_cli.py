"""The contract of the command line: exit codes, and one message that a tired person can act on."""

import json
import logging
import os
import pty
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cit_train import cli

sys.path.insert(0, str(Path(__file__).parent / "cit_train"))


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Cit = Callable[..., Ended]


@pytest.fixture
def cit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cit:
    """Runs `cit` in this process, whole: from sys.argv to the exit code."""

    def run(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cit", *map(str, args)])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as end:
                cli.main()
        finally:
            logging.captureWarnings(False)
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, *capsys.readouterr())

    monkeypatch.setenv("COLUMNS", "120")
    return run


def start(*args: object, cwd: Path | None = None, **settings: str) -> "subprocess.Popen[str]":
    """Starts `cit` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cit_train.cli", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **settings},
    )


@contextmanager
def on_terminal(*args: object) -> Iterator[tuple["subprocess.Popen[bytes]", Iterator[str]]]:
    """`cit` with a terminal of 20 columns as its stderr, and what it shows there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cit_train.cli", *map(str, args)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "20", "TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(theirs)

    def shown() -> Iterator[str]:
        while select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                return
            yield piece.decode(errors="replace")

    try:
        yield process, shown()
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    """Until a running command has made a file."""
    limit = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, f"{path} was not made in 60 s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny towers, pictures, and pools: `data/pool` of 24 images, `bad/pool` with 3 bad ones."""
    from tiny import make_pictures, make_pool, make_text_tower, make_vision_tower

    folder = tmp_path_factory.mktemp("cli")
    make_text_tower(folder / "text")
    make_vision_tower(folder / "vision")
    make_pictures(folder / "pictures")
    make_pool(folder / "data", num_images=24)
    make_pool(folder / "bad", num_images=16, broken=(2,))
    (folder / "bad" / "images" / "0005.png").write_bytes(b"<html>404 not found</html>")
    (folder / "bad" / "images" / "0009.png").write_bytes(png_with_header(21_000, 11_000))
    (folder / "classes.txt").write_text("red disc\nblue square\n", encoding="utf-8")
    return folder


def png_with_header(width: int, height: int) -> bytes:
    """A PNG of some 80 bytes whose header says what one likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def text_flags(tiny: Path) -> list[object]:
    return ["--metadata", tiny / "classes.txt", "--text-encoder", tiny / "text"]


def train_flags(tiny: Path, pool: str = "data/pool") -> list[object]:
    return [
        *text_flags(tiny),
        *("--pool", tiny / pool, "--vision-encoder", tiny / "vision", "--projection-dim", "8"),
        *("--batch-size", "4", "--curate-every", "1", "--max-updates", "2", "--threshold", "-1"),
    ]


@pytest.fixture(scope="module")
def run_folder(tiny: Path) -> Path:
    """A run of `cit curate`."""
    out = tiny / "run"
    args = ["curate", tiny / "data/pool", *text_flags(tiny), "--threshold", "-1", "--out", out]
    assert cli.run([*map(str, args), "--max-pairs", "12"]) == 0
    return out


# Usage


@pytest.mark.parametrize("verb", [*cli.VERBS, "train default", "train laptop"])
def test_the_help_of_every_verb_shows_an_example(cit: Cit, verb: str) -> None:
    ended = cit(*verb.split(), "--help")
    assert ended.code == 0
    usage, *lines = ended.out.splitlines()
    assert usage.startswith(f"usage: cit {verb}")
    command = "cit train RECIPE" if verb.startswith("train ") else f"cit {verb}"
    assert [line for line in lines if line.strip().startswith(command)]
    assert not ended.err


def test_help_and_version_end_with_0_and_no_command_with_2(cit: Cit) -> None:
    assert cit("--help").code == 0
    ended = cit("pool", "--help")
    assert ended.code == 0
    assert "cit pool verify" in ended.out
    assert cit("pull", "--help").out.startswith("usage: cit pull [-h]")
    assert cit("--version").out.startswith("cit ")
    assert cit().code == 2


@pytest.mark.faults("G1")
@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("trian", "did you mean `cit train`?"),
        ("quarry RUN", "did you mean `cit query`?"),
        ("pool biuld x.csv", "did you mean `cit pool build`?"),
        (
            "pool",
            "`cit pool` needs one of: pool build, pool tokenize, pool info, pool verify, "
            "pool repair",
        ),
        ("xyzzy", "there is no command `cit xyzzy`; `cit --help` lists them"),
        ("train laptpo", "there is no recipe 'laptpo'"),
        ("train laptpo", "did you mean laptop?"),
        ("train laptop --threshhold 0.5", "--threshold FLOAT"),
        ("curate POOL --treshold 0.5", "--threshold FLOAT"),
        ("report RUN --outt page.html", "--out PATH"),
        ("train laptop --batch-size many", "Error parsing --batch-size"),
        ("train laptop --loss l2", "invalid choice 'l2'"),
        ("curate", "Missing"),
        ("query RUN", "SQL"),
        ("pool build x.csv", "--out"),
    ],
)
def test_an_unknown_word_ends_with_2_and_the_nearest_spelling(
    cit: Cit, line: str, match: str
) -> None:
    ended = cit(*line.split())
    assert ended.code == 2
    assert match.lower() in ended.err.lower()
    assert not ended.out
    assert "Traceback" not in ended.err


@pytest.mark.faults("G1")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("curate POOL --threshold 7", "--threshold is 7; it is a cosine, from -1 to 1"),
        ("train default --threshold 7", "--threshold is 7; it is a cosine, from -1 to 1"),
        ("curate POOL --threshold nan", "--threshold is nan; it is a cosine, from -1 to 1"),
        ("train default --min-ratio 2", "--min-ratio is 2; it is a share, from 0 to 1"),
        ("train default --batch-size 0", "--batch-size is 0; it must be at least 1"),
        ("train default --lr 0", "--lr is 0.0; it is a rate above 0"),
        ("train default --prompts photo", "--prompts: 'photo' needs {} once, for the class name"),
        ("curate POOL --max-pairs 0", "--max-pairs is 0; it is at least 1, or all"),
        ("demo --updates 0", "--updates is 0; it must be at least 1"),
        ("demo --seeds a,b", "--seeds is 'a,b'; give whole numbers separated by commas: 0,1,2"),
        ("query RUN SELECT --csv --json", "--csv, --json and --parquet exclude each other"),
        ("export RUN OUT --pairs-per-shard 0", "--pairs-per-shard is 0; it must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_limit(cit: Cit, line: str, message: str) -> None:
    ended = cit(*line.split())
    assert ended.code == 2
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1
    assert not ended.out


@pytest.mark.faults("G1")
def test_a_misspelt_suffix_of_an_export_makes_no_folder(
    cit: Cit, run_folder: Path, tmp_path: Path
) -> None:
    ended = cit("export", run_folder, tmp_path / "counts.jsn")
    assert ended.code == 2
    assert "did you mean" in ended.err
    assert "counts.json?" in ended.err.replace("\n", "")
    assert not list(tmp_path.iterdir())


def test_debug_adds_a_traceback_and_keeps_the_code(cit: Cit) -> None:
    ended = cit("curate", "POOL", "--threshold", "7", "--debug")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: --threshold is 7")


def test_a_bug_ends_with_1_and_names_the_file_of_its_traceback(
    cit: Cit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> None:
        raise KeyError("lost")

    monkeypatch.setattr("cit_curate.commands.report", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = cit("report")
    assert ended.code == 1
    assert ended.err.startswith("error: this is a bug in cit: KeyError: 'lost'; the traceback is")
    assert "KeyError" in next(tmp_path.glob("cit-error-*.log")).read_text()


NASTY = "\x1b]0;owned\x07\x1b[31m\u202egnp[/red]"


@pytest.mark.faults("C3")
def test_an_error_that_quotes_hostile_text_is_inert(
    cit: Cit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = cit("pool", "info", tmp_path / NASTY)
    assert ended.code == 2

    def broken() -> None:
        raise KeyError(NASTY)

    monkeypatch.setattr("cit_curate.commands.report", broken)
    for err in (ended.err, cit("report").err):
        assert not {"\x1b", "\x07", "\u202e"} & {*err}
        assert "gnp[/red]" in err


@pytest.mark.faults("C3")
def test_a_warning_that_quotes_hostile_text_is_inert(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from cit_train import cli\n"
        "cli.run = lambda args: logging.warning(args[0]) or 0\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", code, NASTY]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr == "WARNING: \ufffd]0;owned\ufffd\ufffd[31m\ufffdgnp[/red]\n"
    assert ended.returncode == 0


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
        assert ended.err.startswith("error: "), args
        assert str(no) in ended.err, args
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
    ended = cit("pool", "build", tmp_path / "pairs.csv", "--text", "title", "--out", tmp_path / "p")
    assert ended.code == 2
    assert "image_id" in ended.err
    assert "title" in ended.err
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


@pytest.mark.faults("L9")
@pytest.mark.parametrize("verb", ["curate", "train"])
def test_a_folder_that_takes_no_bytes_ends_with_5_before_any_work(
    cit: Cit, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("cit_curate.curation.embedder", never)
    monkeypatch.setattr("cit_train.outer_loop.open_session", never)
    out = ("--out", tmp_path / "run")
    args = {
        "curate": ("curate", tiny / "data/pool", *text_flags(tiny), *out),
        "train": ("train", "default", *train_flags(tiny), *out),
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        ended = cit(*args[verb])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (ended.code, ended.out) == (5, "")
    assert "File too large; free some space or raise the limit" in ended.err
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
    assert ended.err.startswith("already finished: 2 updates; ")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before


@pytest.mark.faults("K5")
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


# Output for machines and for small terminals


@pytest.mark.faults("G3", "X4")
def test_json_is_one_document_on_stdout_and_nothing_else(
    cit: Cit, tiny: Path, run_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    nothing_passes = ("--threshold", "1", "--min-ratio", "0")
    small = ("--threshold", "-1", "--max-pairs", "4", "--out", tmp_path / "out")
    for args in (
        ("pool", "info", tiny / "data/pool"),
        ("pool", "verify", tiny / "data/pool"),
        ("pool", "repair", tiny / "data/pool"),
        ("verify", tiny / "data/pool"),
        ("repair", tiny / "data/pool"),
        ("curate", tiny / "data/pool", *text_flags(tiny), "--dry-run"),
        ("curate", tiny / "data/pool", *text_flags(tiny), "--dry-run", *nothing_passes),
        ("curate", tiny / "data/pool", *text_flags(tiny), *small),
        ("train", "default", *train_flags(tiny), "--out", model),
        ("verify", model),
        ("repair", model, "--dry-run"),
        ("eval", model, "--data", tiny / "pictures"),
        ("query", run_folder, "SELECT 1 AS one"),
        ("export", run_folder, tmp_path / "counts.json"),
        ("export", run_folder, tmp_path / "shards"),
        ("report", run_folder),
    ):
        ended = cit(*args, "--json")
        assert ended.code == 0, ended.err
        json.loads(ended.out, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
        assert "━" not in ended.err, "a progress bar where nobody sees it"
        assert "\n\n" not in f"\n{ended.err}", "a progress bar leaves an empty line"


@pytest.mark.faults("G3")
def test_a_narrow_ascii_terminal_gets_every_answer_without_a_traceback(
    cit: Cit, monkeypatch: pytest.MonkeyPatch, tiny: Path, run_folder: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    for args in (
        ("query", run_folder, "SELECT * FROM selections"),
        ("pool", "info", tiny / "data/pool"),
        ("curate", tiny / "data/pool", *text_flags(tiny), "--dry-run"),
        ("curate", "--help"),
    ):
        ended = cit(*args)
        assert ended.code == 0, ended.err
        assert ended.out


@pytest.mark.faults("G3")
def test_the_c_locale_shows_what_its_encoding_lacks_escaped(run_folder: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "COLUMNS": "20"}
    sql = "SELECT 'caf' || chr(233) || ' ' || chr(29483) AS caption"
    process = start("query", run_folder, sql, "--csv", **plain)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out == "caption\ncaf\\xe9 \\u732b\n"


@pytest.mark.faults("G3")
@pytest.mark.parametrize("verb", ["query", "help", "info"])
def test_a_reader_that_leaves_is_no_error(tiny: Path, run_folder: Path, verb: str) -> None:
    args: tuple[object, ...] = ("train", "laptop", "--help")
    if verb == "query":
        args = ("query", run_folder, "SELECT * FROM selections")
    elif verb == "info":
        args = ("pool", "verify", tiny / "data/pool")
    process = start(*args)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), err) == (0, "")


@pytest.mark.faults("G3")
def test_closed_streams_are_no_error() -> None:
    command = f"{sys.executable} -m cit_train.cli pool nothing >&- 2>&-"
    assert subprocess.run(["sh", "-c", command]).returncode == 2
    command = f"{sys.executable} -m cit_train.cli --help >&- 2>&-"
    assert subprocess.run(["sh", "-c", command]).returncode == 0


@pytest.mark.faults("G3")
def test_a_terminal_of_20_columns_shows_progress_and_no_traceback(
    tiny: Path, tmp_path: Path
) -> None:
    args = ("--threshold", "-1", "--max-pairs", "4", "--out", tmp_path / "out")
    with on_terminal("curate", tiny / "data/pool", *text_flags(tiny), *args) as (process, shown):
        text = "".join(shown)
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in text
    assert "cit report" in text.replace("\r\n", "")
    assert not re.search(r"\x1b\[[0-9;]*[349][0-7]m", text), "a colour, though NO_COLOR is set"


@pytest.mark.faults("L8")
@pytest.mark.slow
def test_a_run_is_the_same_bytes_whatever_the_hash_seed_locale_time_zone_and_threads(
    tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("red disc\nblue square\ngrün\n", encoding="utf-8")
    settings = [
        {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC", "OMP_NUM_THREADS": "1"},
        {"PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "OMP_NUM_THREADS": "2"},
        {"PYTHONHASHSEED": "99", "LC_ALL": "tr_TR.UTF-8", "TZ": "XXX+11", "OMP_NUM_THREADS": "3"},
        {"PYTHONHASHSEED": "5", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ]
    flags = ("--metadata", "classes.txt", "--text-encoder", tiny / "text", "--max-pairs", "all")
    runs = []
    for number, environment in enumerate(settings):
        (tmp_path / str(number)).mkdir()
        shutil.copy(tmp_path / "classes.txt", tmp_path / str(number))
        args = (
            tiny / "data/pool",
            *flags,
            "--threshold",
            "0.5",
            "--min-ratio",
            "0",
            "--out",
            "run",
        )
        process = start("curate", *args, cwd=tmp_path / str(number), **environment)
        assert process.communicate(timeout=120)
        assert process.returncode == 0
        run = tmp_path / str(number) / "run"
        # Of what is not the same: the versions and the command, and how many seconds it took.
        left_out = {"environment.json", "metrics.jsonl"}
        paths = (path for path in run.rglob("*") if path.is_file() and path.name not in left_out)
        runs.append({str(path.relative_to(run)): path.read_bytes() for path in paths})
    assert "selections/step=000000/lane=00000.parquet" in runs[0]
    assert runs[1:] == runs[:1] * 3


# Ctrl-C


@pytest.mark.faults("G4c")
def test_ctrl_c_ends_cit_curate_with_130_and_no_traceback(tiny: Path, tmp_path: Path) -> None:
    endless = ("--max-passes", "1000000", "--threshold", "1", "--min-ratio", "0")
    out = ("--out", tmp_path / "out")
    args = ("curate", tiny / "data/pool", *text_flags(tiny), *endless, *out)
    with on_terminal(*args) as (process, shown):
        text = ""
        for piece in shown:
            if "curating" in piece and "curating" not in text:
                process.send_signal(signal.SIGINT)
            text += piece
        assert process.wait(timeout=60) == 130
    assert "Traceback" not in text
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.faults("G4c")
def test_ctrl_c_ends_cit_train_with_75_and_the_command_to_go_on(
    cit: Cit, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    long = ("--max-updates", "100000", "--out", out)
    process = start("train", "default", *train_flags(tiny), *long)
    wait_for(out / "checkpoints" / "last", process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (75, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped by SIGINT; ")
    assert err.splitlines()[-1].endswith("--resume")
    assert cit("query", out, "SELECT count(*) FROM used").code == 0
