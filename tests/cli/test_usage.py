"""The contract of the command line: exit codes, and one message that a tired person can act on."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import Cit

from cit_train import cli


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
        ("train default --lr 0", "--lr is 0.0; it must be above 0 and below 10"),
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

    monkeypatch.setattr("cit_curate.run.commands.report", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = cit("report")
    assert ended.code == 1
    assert ended.err.startswith("error: this is a bug in cit: KeyError: 'lost'; the traceback is")
    (log,) = tmp_path.glob("cit-error-*.log")
    assert str(log) in ended.err
    assert "KeyError" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothing"))
    ended = cit("report")
    assert ended.code == 1
    assert "KeyError: 'lost'; the traceback is above" in ended.err.splitlines()[-1]
    assert ended.err.startswith("Traceback")


@pytest.mark.faults("S8")
def test_a_lack_of_memory_ends_with_5_and_a_next_step(
    cit: Cit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 TB\nframe #0")

    monkeypatch.setattr("cit_curate.run.commands.report", full)
    ended = cit("report")
    assert ended.code == 5
    assert ended.err.startswith("error: out of memory (DefaultCPUAllocator: can't allocate")
    assert "lower --micro-batch or --batch-size" in ended.err
    assert ended.err.count("\n") == 1


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

    monkeypatch.setattr("cit_curate.run.commands.report", broken)
    for err in (ended.err, cit("report").err, cit("report", "--debug").err):
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
