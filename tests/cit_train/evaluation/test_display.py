import io
from dataclasses import replace

import pytest
from rich.console import Console

from cit_train.evaluation.display import SuiteProgress, suite_table
from cit_train.evaluation.metrics import Interval
from cit_train.evaluation.suite import TaskResult

DONE = TaskResult(
    task="imagenet",
    metric="accuracy",
    status="done",
    value=44.25,
    interval=Interval(43.8, 44.7),
    num_images=49_990,
    num_found=50_000,
    num_rejected=10,
    num_classes=1_000,
    seconds=61.26,
    source="image folder",
    notes=("a note",),
)
ABSENT = TaskResult(
    task="[b]own", metric="accuracy", status="no data", reason="get it", exit_code=2
)


def test_a_line_tells_what_a_task_gave_or_why_it_gave_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SuiteProgress() as progress:
        progress.update("imagenet", 0, 50_000)
        progress.finish(DONE)
        progress.finish(ABSENT)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "imagenet: accuracy 44.2 % (49,990 pictures, 10 unreadable, 1,000 classes, image folder, "
        "61.3 s; a note)",
        "[b]own: no data: get it",
    ]


def test_a_terminal_shows_the_task_and_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=80)
    monkeypatch.setattr("cit_curate.terminal.Console", lambda **_: terminal)
    with SuiteProgress() as progress:
        progress.update("[b]own", 0, 500)
        progress.update("[b]own", 250, 500)
        progress.finish(DONE)
        progress.update("next", 1, 2)
    shown = stream.getvalue()
    assert "[b]own" in shown
    assert "of 500 pictures" in shown
    assert "next" in shown


@pytest.mark.faults("C3")
def test_hostile_names_and_reasons_are_inert_in_lines_bars_and_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr("cit_curate.terminal.Console", lambda **_: terminal)
    hostile = "a\x1b]0;owned\x07\x1b[31mred\u202egnp"
    done = replace(DONE, task=hostile, source=hostile, notes=(hostile,))
    absent = replace(ABSENT, task=hostile, reason=f"there is\n  no {hostile}")
    with SuiteProgress() as progress:
        progress.update(hostile, 1, 2)
        for result in (done, absent):
            progress.finish(result)
    terminal.print(suite_table([done, absent], title=hostile))
    inert = "a\ufffd]0;owned\ufffd\ufffd[31mred\ufffdgnp"
    shown = stream.getvalue()
    assert shown.count(inert) >= 8  # a bar, 3 and 2 in the lines, and 3 in the table
    assert f"{inert}: no data: there is no {inert}" in shown
    assert not {"\x07", "\u202e"} & {*shown}
    assert "\x1b]" not in shown
    assert "\x1b[31m" not in shown


def test_a_table_without_a_value_has_no_mean() -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(suite_table([ABSENT], title="[i]title"))
    assert "[b]own" in stream.getvalue()
    assert "[i]title" in stream.getvalue()
    assert "mean" not in stream.getvalue()
