"""Studies: arms over seeds, resumed, and compared seed by seed."""

import json
from pathlib import Path
from statistics import stdev

import pytest
from tiny import make_config

from cit_curate.errors import ConfigError
from cit_curate.run.ledger import Run
from cit_train.cli import run
from cit_train.config import flat
from cit_train.studies.comparison import half_width, summaries
from cit_train.studies.run_arm import ArmResult
from cit_train.studies.study import Arm, Study, load_study


def result(arm: str, seed: int, value: float) -> ArmResult:
    return ArmResult(
        arm=arm,
        seed=seed,
        updates=6,
        scanned=100,
        kept_ratio=0.5,
        pairs=40,
        accuracy=value,
        mean_per_class=value + 1,
        seconds=2.0,
    )


def test_differences_are_paired_by_seed() -> None:
    results = [result("a", 0, 50), result("b", 0, 53), result("a", 1, 40), result("b", 1, 44)]
    results.append(result("b", 2, 90))  # a has no such seed yet
    first, second = summaries(results, reference="a", metric="accuracy")
    assert (first.value, first.difference, first.interval) == (45, None, None)
    assert second.difference == pytest.approx(3.5)
    # t of one degree of freedom; the spread of 3 and 4 is 0.707.
    assert second.interval == pytest.approx(12.706 * stdev([3, 4]) / 2**0.5)
    assert second.spread == pytest.approx(stdev([53, 44, 90]))
    assert half_width([1.0]) is None
    assert half_width([1.0, 2.0] * 20) == pytest.approx(1.96 * stdev([1, 2] * 20) / 40**0.5)


def test_a_study_is_a_function_of_a_module_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "studies_for_test.py"
    file.write_text(
        "from cit_train.recipes import default\n"
        "from cit_train.studies.study import Arm, Study\n"
        "def study():\n    return Study(default(), {'a': Arm(), 'b': Arm({'threshold': 0.6})})\n"
        "def wrong():\n    return 3\n"
    )
    found = load_study(f"{file}:study")
    assert flat(found.config_of("b", 7))["threshold"] == 0.6
    assert found.config_of("a", 7).curate.seed == 7
    for name, message in (
        ("no_colon", "file.py:function"),
        (f"{file}:absent", "has no function absent"),
        (f"{file}:wrong", "returned a int and no Study"),
        ("no.such.module:study", "cannot be imported"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_study(name)


def test_a_study_without_arms_or_with_an_unknown_reference_is_refused(world: Path) -> None:
    config = make_config(world)
    with pytest.raises(ConfigError, match="at least one arm"):
        Study(config, {})
    with pytest.raises(ConfigError, match="'c' is none of its arms: a, b"):
        Study(config, {"a": Arm(), "b": Arm()}, reference="c")


@pytest.fixture(scope="module")
def compared(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A comparison of three arms with two seeds, and the name of its study."""
    make_config(world)
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny_study.py").write_text(
        "from pathlib import Path\n"
        "from tiny import make_config\n"
        "from cit_train.studies.study import Arm, Study\n"
        "def study():\n"
        f"    config = make_config(Path({str(world)!r}), keep_ratio=0.3)\n"
        "    arms = {'uncurated': Arm({'curation': 'none'}), 'offline': Arm(offline=True),\n"
        "            'in training': Arm()}\n"
        "    return Study(config, arms, seeds=(0, 1), reference='offline')\n"
    )
    name = f"{folder / 'tiny_study.py'}:study"
    assert run(["compare", name, "--out", str(folder / "out")]) == 0
    return folder / "out", name


def test_a_comparison_has_a_run_for_each_arm_and_seed_and_its_numbers(
    compared: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, name = compared
    report = json.loads((out / "comparison.json").read_text())
    assert [each["arm"] for each in report["arms"]] == ["uncurated", "offline", "in training"]
    assert len(report["runs"]) == 6
    offline = Run.open(out / "offline-seed0")
    selected = Run.open(out / "offline-seed0-selection")
    keys = set(selected.read("selections")["pair_key"].to_pylist())
    assert set(offline.counts()) <= keys
    assert set(selected.read("selections")["reason"].to_pylist()) == {"keep_ratio"}
    by_arm = {each["arm"]: each for each in report["arms"]}
    assert by_arm["uncurated"]["kept_ratio"] == 1
    assert by_arm["offline"]["difference"] is None
    # Again: nothing is trained, and the table says the same.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert run(["compare", name, "--out", str(out), "--json"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    again = json.loads(capsys.readouterr().out)
    assert sorted(map(str, again["runs"])) == sorted(map(str, report["runs"]))


def test_some_arms_and_seeds_can_be_chosen(
    compared: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, name = compared
    args = ["compare", name, "--out", str(out), "--arms", "in training,uncurated", "--seeds", "1"]
    assert run([*args, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(each["arm"], each["seed"]) for each in report["runs"]] == [
        ("in training", 1),
        ("uncurated", 1),
    ]
    with pytest.raises(ConfigError, match="it has uncurated, offline, in training"):
        run([*args[:4], "--arms", "other"])
