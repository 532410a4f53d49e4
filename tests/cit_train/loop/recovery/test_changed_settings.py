"""A run that is taken up with other settings: refused, or allowed and written down."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from faults import plant
from tiny import make_config, make_pool
from tiny_runs import weights

from cit_curate.errors import ConfigError
from cit_curate.run.ledger import Run
from cit_train.outer_loop import train
from cit_train.ranks.stopping import StoppedError

pytestmark = pytest.mark.faults("K5")

# 1 outer step of 2 updates, and of as many again.
FIELDS: dict[str, Any] = {"max_updates": 2, "eval_data": ""}
MORE: dict[str, Any] = {**FIELDS, "max_updates": 4}


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(make_config(world, **FIELDS), out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def change(key: str, then: Any, now: Any, *, outer_step: int = 1, update: int = 2) -> Any:
    return {"outer_step": outer_step, "update": update, "key": key, "then": then, "now": now}


@pytest.mark.slow
def test_another_setting_goes_on_once_it_is_allowed_and_is_written_down(
    world: Path, out: Path
) -> None:
    config = make_config(world, **MORE, threshold=0.6)
    before = (out / "config.json").read_bytes()
    for allowed in ((), ("threshold",), ("max_updates", "seed")):
        with pytest.raises(ConfigError, match=" then, ") as caught:
            train(config, out, resume=True, allow_change=allowed)
        told = str(caught.value)
        assert ("threshold: 0.5 then, 0.6 now" in told) == ("threshold" not in allowed)
        assert ("max_updates: 2 then, 4 now" in told) == ("max_updates" not in allowed)
        assert (out / "config.json").read_bytes() == before
    assert "--allow-change threshold" in told
    run = train(config, out, resume=True, allow_change=("max_updates", "threshold"))
    assert run.commits()[-1].update == 4
    assert run.read("rounds")["threshold"].to_pylist() == [0.5, 0.6]
    changes = [change("max_updates", 2, 4), change("threshold", 0.5, 0.6)]
    assert run.config["changes"] == changes
    assert run.config["threshold"] == 0.6
    # From now on these are its settings, and another change is one more.
    train(config, out, resume=True)
    train(make_config(world, **MORE), out, resume=True, allow_change=("threshold",))
    changes.append(change("threshold", 0.6, 0.5, outer_step=2, update=4))
    assert run.config["changes"] == changes


@pytest.mark.parametrize("num_images", [24, 120])
@pytest.mark.slow
def test_a_pool_that_was_built_again_is_noticed_and_may_be_gone_on_with(
    world: Path, tmp_path: Path, num_images: int
) -> None:
    pool = make_pool(tmp_path / "data")
    out, fields = tmp_path / "run", {"pool": str(pool), "on_shortfall": "train"}
    train(make_config(world, **FIELDS, **fields), out)
    then = Run.open(out).config["pool_fingerprint"]
    shutil.rmtree(tmp_path / "data")
    make_pool(tmp_path / "data", num_images=num_images)
    config = make_config(world, **MORE, **fields)
    with pytest.raises(ConfigError, match="pool_fingerprint: "):
        train(config, out, resume=True, allow_change=("max_updates",))
    run = train(config, out, resume=True, allow_change=("max_updates", "pool_fingerprint"))
    assert run.commits()[-1].update == 4
    assert change("pool_fingerprint", then, run.config["pool_fingerprint"]) in run.config["changes"]


def test_other_class_names_may_be_gone_on_with(world: Path, tmp_path: Path) -> None:
    classes, out = tmp_path / "classes.txt", tmp_path / "run"
    classes.write_text("red disc\nblue square\n")
    train(make_config(world, **FIELDS, metadata=str(classes)), out)
    classes.write_text("green stripe\nred disc\n")
    allowed = ("max_updates", "metadata_fingerprint")
    run = train(
        make_config(world, **MORE, metadata=str(classes)), out, resume=True, allow_change=allowed
    )
    texts = [entry["name"] for entry in json.loads((out / "metadata.json").read_text())]
    assert texts == ["green stripe", "red disc"]
    assert [each["key"] for each in run.config["changes"]] == ["max_updates", allowed[1]]


def test_another_version_of_this_package_is_noticed(
    world: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == "cit" else known(name))
    config = make_config(world, **FIELDS)
    with pytest.raises(ConfigError, match=r"cit_version: '.*' then, '99' now"):
        train(config, out, resume=True)
    run = train(config, out, resume=True, allow_change=("cit_version",))
    assert run.config["changes"] == [change("cit_version", known("cit"), "99")]


def test_a_run_of_before_the_version_was_a_setting_has_it_in_its_environment(
    world: Path, out: Path
) -> None:
    for name, version in (("config.json", None), ("environment.json", "0.0.1")):
        value = json.loads((out / name).read_text())
        if version is None:
            del value["cit_version"]
        else:
            value["packages"]["cit"] = version
        (out / name).write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=r"cit_version: '0\.0\.1' then"):
        train(make_config(world, **FIELDS), out, resume=True)


@pytest.mark.slow
def test_the_middle_of_an_outer_step_is_made_again_with_the_new_setting(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        plant({"moment": "train", "update": 0, "act": "SIGTERM"}, patch.setattr)
        with pytest.raises(StoppedError):
            train(make_config(world, **FIELDS), out)
    assert (out / "mid_step.json").exists()
    config = make_config(world, **FIELDS, threshold=0.6, batch_size=4)
    train(config, out, resume=True, allow_change=("threshold", "batch_size"))
    train(config, tmp_path / "whole")
    first, second = weights(out), weights(tmp_path / "whole")
    assert all(first[name].equal(second[name]) for name in second)
    assert Run.open(out).counts() == Run.open(tmp_path / "whole").counts()


def test_what_cannot_change_and_what_there_is_not_are_said(world: Path, out: Path) -> None:
    config = make_config(world, **FIELDS, lanes=2)
    with pytest.raises(ConfigError, match="lanes: 1 then, 2 now") as caught:
        train(config, out, resume=True, allow_change=("lanes",))
    assert "--allow-change" not in str(caught.value)
    with pytest.raises(ConfigError, match="did you mean threshold"):
        train(make_config(world, **FIELDS), out, resume=True, allow_change=("treshold",))


@pytest.mark.faults("K4")
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"batch_size": 4}, "batch_size: 8 then, 4 now"),
        ({"batch_size": 4, "accumulate": 2}, "accumulate: 1 then, 2 now; batch_size: 8 then, 4"),
        ({"lanes": 2, "batch_size": 4}, "batch_size: 8 then, 4 now; lanes: 1 then, 2 now"),
    ],
)
def test_another_global_batch_is_refused_with_both_values(
    world: Path, out: Path, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        train(make_config(world, **FIELDS, **fields), out, resume=True)
    assert caught.value.exit_code == 2
