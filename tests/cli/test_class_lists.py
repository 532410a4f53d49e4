"""What commands say about the class names that they read: once, on stderr, and in the report."""

import json
import re
from pathlib import Path

import pytest
from cli_runs import Cit, start, train_flags

from cit_train import cli

NAMES = ["red disc", "blue square", "green stripe", "white dot"]
SAID = "names.json: 4 classes: red disc, blue square, green stripe, …"


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(NAMES))
    return path


@pytest.fixture(scope="module")
def model(tiny: Path) -> Path:
    out = tiny / "named-model"
    assert cli.run([*map(str, ("train", "default", *train_flags(tiny), "--out", out))]) == 0
    return out


def test_showing_a_list_says_what_was_read_beside_its_document(cit: Cit, names: Path) -> None:
    shown = cit("metadata", "show", names, "--json")
    assert json.loads(shown.out)["num_entries"] == 4
    assert shown.err.count(SAID) == 1
    shown = cit("metadata", "show", "stl10", "--limit", "1")
    assert "stl10: 10 classes: airplane, bird, car, …" in shown.err


def test_a_list_in_one_line_is_shown_with_a_warning(cit: Cit, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("red disc, blue square, green stripe\n")
    shown = cit("metadata", "show", tmp_path / "one.txt", "--json")
    assert (shown.code, json.loads(shown.out)["num_entries"]) == (0, 1)
    assert re.search(r"^WARNING: .*one\.txt: one class whose name holds 2 commas", shown.err, re.M)


@pytest.mark.parametrize("content", ["names:\n  - red disc\n", "['red disc',\n 'blue square']\n"])
def test_a_list_of_another_language_ends_with_2_before_anything_is_written(
    cit: Cit, tiny: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "names.txt").write_text(content)
    flags = ("--metadata", tmp_path / "names.txt", "--text-encoder", tiny / "text")
    for command in (
        ("metadata", "show", tmp_path / "names.txt"),
        ("curate", tiny / "data/pool", *flags, "--out", tmp_path / "run"),
        ("train", "laptop", "--pool", tiny / "data/pool", *flags, "--out", tmp_path / "run"),
    ):
        ended = cit(*command)
        assert ended.code == 2, ended.err
        assert "names.txt" in ended.err
        assert content.splitlines()[0] in ended.err
        assert not (tmp_path / "run").exists()


def test_a_dry_run_and_a_curation_say_it_once(
    cit: Cit, tiny: Path, names: Path, tmp_path: Path
) -> None:
    flags = (tiny / "data/pool", "--metadata", names, "--text-encoder", tiny / "text")
    dry = cit("curate", *flags, "--dry-run", "--json")
    assert dry.err.count(SAID) == 1
    assert json.loads(dry.out)["num_entries"] == 4
    out = ("--threshold", "-1", "--max-pairs", "12", "--out", tmp_path / "run")
    curated = cit("curate", *flags, *out, "--json")
    assert curated.err.count(SAID) == 1
    assert json.loads(curated.out)["selected"] == 12


def test_the_report_says_which_classes_were_curated_for(
    cit: Cit, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("red disc, blue square\n")
    flags = ("--metadata", tmp_path / "one.txt", "--text-encoder", tiny / "text")
    out = ("--threshold", "-1", "--max-pairs", "12", "--out", tmp_path / "run")
    assert cit("curate", tiny / "data/pool", *flags, *out).code == 0
    assert cit("report", tmp_path / "run").code == 0
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "one.txt: 1 class: red disc, blue square" in page
    assert "one class whose name holds 1 comma; put one name a line" in page


@pytest.mark.slow
def test_a_training_says_it_once_and_again_when_it_resumes(
    cit: Cit, tiny: Path, names: Path, tmp_path: Path
) -> None:
    folders = sorted(path.name for path in (tiny / "pictures").iterdir())
    (tmp_path / "classes.txt").write_text("\n".join(f"a {name}" for name in folders))
    evaluation = ("--eval-data", tiny / "pictures", "--eval-classes", tmp_path / "classes.txt")
    args = ("train", "default", *train_flags(tiny), "--metadata", names, *evaluation)
    trained = cit(*args, "--out", tmp_path / "run", "--json")
    assert trained.code == 0, trained.err
    assert trained.err.count(SAID) == 1
    assert trained.err.count(f"classes.txt: {len(folders)} classes: a {folders[0]}") == 1
    assert json.loads(trained.out)["outer_steps"] > 0
    resumed = cit(*args, "--out", tmp_path / "run", "--resume")
    assert resumed.err.count(SAID) == 1


@pytest.mark.slow
def test_ranks_say_it_once(tiny: Path, names: Path, tmp_path: Path) -> None:
    lanes = ("--lanes", "2", "--nproc", "2", "--out", tmp_path / "run")
    process = start("train", "default", *train_flags(tiny), "--metadata", names, *lanes)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert err.count(SAID) == 1


@pytest.mark.slow
def test_a_prediction_and_an_evaluation_say_it(
    cit: Cit, tiny: Path, model: Path, names: Path, tmp_path: Path
) -> None:
    predicted = cit("predict", model, "--image", tiny / "pictures", "--labels", names, "--json")
    assert predicted.code == 0, predicted.err
    assert predicted.err.count(SAID) == 1
    assert json.loads(predicted.out)["num_classes"] == 4
    (tmp_path / "table.csv").write_text("id;name\n0;red disc\n1;blue square\n")
    asked = cit("predict", model, "--image", tiny / "pictures", "--labels", tmp_path / "table.csv")
    assert asked.code == 2
    assert "--labels-column" in asked.err
    folders = sorted(path.name for path in (tiny / "pictures").iterdir())
    (tmp_path / "classes.json").write_text(
        json.dumps({str(at): f"a {name}" for at, name in enumerate(folders)})
    )
    flags = ("--data", tiny / "pictures", "--classes", tmp_path / "classes.json", "--json")
    evaluated = cit("eval", model, *flags)
    assert evaluated.code == 0, evaluated.err
    assert f"classes.json: {len(folders)} classes: a {folders[0]}, " in evaluated.err
    assert json.loads(evaluated.out)["num_classes"] == len(folders)
