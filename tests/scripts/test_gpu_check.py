"""`make gpu-check`: its table, its time, and that no check is taken for passed that was not."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest

from scripts.gpu_check import __main__ as command
from scripts.gpu_check import benches
from scripts.gpu_check.checks import CHECKS
from scripts.gpu_check.child import ended
from scripts.gpu_check.outcomes import (
    Finding,
    Outcome,
    Result,
    document,
    exit_code,
    summary,
    table,
)
from scripts.gpu_check.processes import run_check, seconds_for
from scripts.gpu_check.runs import differences
from scripts.gpu_check.setting import Check, Setting, SkippedError

CHECK = Check("environment", "benches.environment", usual_seconds=5, limit_seconds=60)
TESTS = Path(__file__).parents[1]


def test_the_table_has_what_was_measured_and_why_a_check_has_not_passed() -> None:
    shown = table(
        [
            Outcome("index", "passed", seconds=12.4, measured={"queries/s": 1234.5, "GPU": "H200"}),
            Outcome("two ranks", "failed", "loss is nan | inf", 3.0, {"pairs": 12_345}),
        ]
    )
    assert shown.splitlines()[2:] == [
        "| index | passed | 12 | queries/s 1,234; GPU H200 |  |",
        "| two ranks | failed | 3 | pairs 12,345 | loss is nan / inf |",
    ]


@pytest.mark.parametrize(
    ("results", "code"),
    [
        (["passed", "skipped"], 0),
        (["passed", "not run"], 2),
        (["failed", "not run", "passed"], 1),
        ([], 0),
    ],
)
def test_what_was_not_run_is_never_taken_for_passed(results: list[Result], code: int) -> None:
    outcomes = [Outcome(str(number), result) for number, result in enumerate(results)]
    assert exit_code(outcomes) == code
    written = json.loads(json.dumps(document(outcomes, {"device": "cpu"})))
    assert written["exit_code"] == code
    assert [check["result"] for check in written["checks"]] == results
    assert written["device"] == "cpu"
    assert all(f"{results.count(result)} {result}" in summary(outcomes) for result in results)


def test_a_check_is_begun_only_if_its_usual_time_is_left() -> None:
    assert seconds_for(CHECK, 100) == 60
    assert seconds_for(CHECK, 20) == 20
    assert seconds_for(CHECK, 5) == 5
    assert seconds_for(CHECK, 4.9) is None


def test_a_check_for_which_the_time_is_over_is_not_run(tmp_path: Path) -> None:
    outcome = run_check(CHECK, Setting("cpu", tmp_path), left=3)
    assert (outcome.result, outcome.seconds) == ("not run", 0)
    assert "3 s of the time were left" in outcome.why
    assert not list(tmp_path.iterdir())


def test_a_check_that_is_too_slow_has_failed_and_one_cut_off_by_all_was_not_run(
    tmp_path: Path,
) -> None:
    slow = Check("environment", "benches.environment", usual_seconds=0, limit_seconds=0.2)
    outcome = run_check(slow, Setting("cpu", tmp_path), left=100)
    assert outcome.result == "failed"
    assert "not done within" in outcome.why
    assert 0.2 <= outcome.seconds < 20
    cut_off = run_check(slow, Setting("cpu", tmp_path), left=0.1)
    assert cut_off.result == "not run"
    assert "the time for all checks was over" in cut_off.why


def test_a_check_whose_process_ends_by_itself_has_failed_with_its_last_line(tmp_path: Path) -> None:
    unknown = Check("no such check", "benches.environment", usual_seconds=0, limit_seconds=60)
    outcome = run_check(unknown, Setting("cpu", tmp_path), left=100)
    assert outcome.result == "failed"
    assert "ended with code 2" in outcome.why
    assert "invalid choice" in outcome.why


def test_every_way_in_which_a_check_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def end(what: Finding | Exception) -> Outcome:
        def check(setting: Setting) -> Finding:
            if isinstance(what, Exception):
                raise what
            return what

        monkeypatch.setattr(benches, "environment", check)
        return ended(CHECK, Setting("cpu", tmp_path))

    assert end(Finding({"a": 1})) == Outcome("environment", "passed", measured={"a": 1})
    wrong = end(Finding({"a": 1}, ("other bits", "too slow")))
    assert (wrong.result, wrong.why, wrong.measured) == ("failed", "other bits; too slow", {"a": 1})
    assert end(SkippedError("needs a GPU")).result == "skipped"
    raised = end(ValueError("no pool\nat all"))
    assert (raised.result, raised.why) == ("failed", "ValueError: no pool")


def test_a_failed_check_does_not_stop_the_others_and_the_file_has_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_at = []

    def one(check: Check, setting: Setting, left: float) -> Outcome:
        left_at.append(left)
        return Outcome(check.name, "failed" if check.name == "index" else "passed")

    monkeypatch.setattr(command, "run_check", one)
    options = Namespace(
        minutes=8.0, slow=1.0, json=tmp_path / "out.json", only=[c.name for c in CHECKS]
    )
    outcomes = command.run(Setting("cpu", tmp_path), options)
    assert [outcome.check for outcome in outcomes] == [check.name for check in CHECKS]
    assert left_at == sorted(left_at, reverse=True)
    assert left_at[0] <= 480
    written = json.loads(options.json.read_text())
    assert len(written["checks"]) == len(CHECKS)
    assert written["exit_code"] == 1
    assert "failed      0 s  index" in capsys.readouterr().out


def test_every_check_exists_and_all_of_them_fit_into_eight_minutes() -> None:
    assert all(callable(check.function) for check in CHECKS)
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert sum(check.usual_seconds for check in CHECKS) <= 8 * 60


def test_the_report_of_the_tests_names_those_that_failed() -> None:
    case = '<testcase name="{}">{}</testcase>'
    report = "<testsuites><testsuite>{}</testsuite></testsuites>"
    passed, failed = case.format("test_a", ""), case.format("test_b", '<failure message="1"/>')
    skipped = case.format("test_c", '<skipped message="needs a GPU"/>')
    found = benches.tests_finding(report.format(passed + failed + skipped))
    assert found == Finding({"passed": 1, "failed": 1, "skipped": 1}, ("test_b failed",))
    with pytest.raises(SkippedError, match="needs a GPU"):
        benches.tests_finding(report.format(skipped))
    with pytest.raises(SkippedError, match="no such tests"):
        benches.tests_finding(report.format(""))


def test_runs_are_compared_by_the_bytes_of_their_ledgers_and_weights(tmp_path: Path) -> None:
    for name, value in (("one", "a"), ("same", "a"), ("other", "b")):
        for file in (
            "selections/step=000000/lane=00000.parquet",
            "manifests/step=000000.json",
            "checkpoints/last/model.safetensors",
            "checkpoints/last/optimizer.safetensors",
        ):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value if "selections" in file else "a")
    assert differences(tmp_path / "one", tmp_path / "same") == ()
    (wrong,) = differences(tmp_path / "one", tmp_path / "other")
    assert wrong == "1 of 4 files differ, such as selections/step=000000/lane=00000.parquet"


def test_every_test_that_is_marked_gpu_is_in_a_file_that_the_check_runs() -> None:
    marked = {
        path.name
        for path in TESTS.rglob("test_*.py")
        if re.search(r"^(@|pytestmark = |\s+)pytest\.mark\.gpu", path.read_text(), re.MULTILINE)
    }
    assert marked
    assert all(name.endswith("_on_gpu.py") for name in marked)
