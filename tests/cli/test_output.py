"""What commands show: to machines, on small terminals, to readers that leave; and after Ctrl-C."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runs import (
    Cit,
    on_terminal,
    start,
    start_fresh,
    text_flags,
    train_flags,
    wait_for,
)

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
def test_the_c_locale_shows_what_its_encoding_lacks_escaped(run_folder: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "COLUMNS": "20"}
    sql = "SELECT 'caf' || chr(233) || ' ' || chr(29483) AS caption"
    process = start_fresh("query", run_folder, sql, "--csv", **plain)
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
@pytest.mark.slow
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
        {},  # as they are here
        {"PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "OMP_NUM_THREADS": "2"}
        | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONHASHSEED": "99", "LC_ALL": "tr_TR.UTF-8", "TZ": "XXX+11", "OMP_NUM_THREADS": "3"},
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
        begin = start_fresh if environment else start
        process = begin("curate", *args, cwd=tmp_path / str(number), **environment)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        run = tmp_path / str(number) / "run"
        # Of what is not the same: the versions and the command, and how many seconds it took.
        left_out = {"environment.json", "metrics.jsonl"}
        paths = (path for path in run.rglob("*") if path.is_file() and path.name not in left_out)
        runs.append({str(path.relative_to(run)): path.read_bytes() for path in paths})
    assert "selections/step=000000/lane=00000.parquet" in runs[0]
    assert runs[1:] == runs[:1] * 2


@pytest.mark.faults("L8")
@pytest.mark.slow
def test_a_training_is_the_same_whatever_the_hash_seed_locale_time_zone_and_number_of_threads(
    tiny: Path, tmp_path: Path
) -> None:
    from tiny_runs import assert_same_run

    (tmp_path / "classes.txt").write_text("red disc\nblue square\ngrün\n", encoding="utf-8")
    settings = [
        {},  # as they are here
        {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONHASHSEED": "99", "LC_ALL": "tr_TR.UTF-8", "TZ": "XXX+11", "OMP_NUM_THREADS": "3"},
    ]
    flags = ("--metadata", tmp_path / "classes.txt", "--threshold", "0.5", "--min-ratio", "0.25")
    for number, environment in enumerate(settings):
        args = (*train_flags(tiny), *flags, "--out", tmp_path / str(number))
        begin = start_fresh if environment else start
        process = begin("train", "default", *args, **environment)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert_same_run(tmp_path / "0", tmp_path / "1")
    assert_same_run(tmp_path / "0", tmp_path / "2")


# Ctrl-C


@pytest.mark.faults("G4c")
@pytest.mark.slow
def test_ctrl_c_ends_cit_curate_with_130_and_no_traceback(tiny: Path, tmp_path: Path) -> None:
    endless = ("--max-passes", "1000000", "--threshold", "1", "--min-ratio", "0")
    out = ("--out", tmp_path / "out")
    args = ("curate", tiny / "data/pool", *text_flags(tiny), *endless, *out)
    with on_terminal(*args) as (process, shown):
        text, is_sent = "", False
        for piece in shown:
            text += piece
            if not is_sent and "curating" in text:
                process.send_signal(signal.SIGINT)
                is_sent = True
        assert process.wait(timeout=60) == 130
    assert "Traceback" not in text
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.faults("G4c")
@pytest.mark.slow
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
