import ast
from pathlib import Path

import pytest

import cit_train
from cit_curate.errors import ConfigError
from cit_train.recipes import RECIPES
from cit_train.resolve import one_pool_flag, resolve
from cit_train.sweeps import SWEEPS


def test_flags_win_over_the_recipe_and_the_rest_of_it_stays() -> None:
    config = resolve(RECIPES["laptop"](), ["--lr", "0.5", "--pool", "P"], prog="cit train laptop")
    assert (config.train.lr, config.pool) == (0.5, "P")
    assert config.curate == RECIPES["laptop"]().curate


def test_without_flags_it_is_the_recipe() -> None:
    for recipe in RECIPES.values():
        assert resolve(recipe(), [], prog="cit train") == recipe()


def test_several_pools_are_one_flag() -> None:
    assert one_pool_flag(["--pool", "A", "--lr", "1", "--pool=B"]) == (
        ["--lr", "1", "--pool", "A", "B"]
    )
    args = ["--pool", "A=0.5", "--pool", "B=0.5"]
    assert resolve(RECIPES["laptop"](), args, prog="cit train laptop").pool == ("A=0.5", "B=0.5")


def test_values_that_do_not_fit_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ConfigError, SystemExit)):
        resolve(RECIPES["laptop"](), ["--batch-size", "many"], prog="cit train laptop")
    assert "--batch-size" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--max-sample is 0"):
        resolve(RECIPES["laptop"](), ["--max-sample", "0"], prog="cit train laptop")


def test_a_sweep_has_all_its_runs_or_those_that_are_chosen() -> None:
    sweep = SWEEPS["alltask_5k_mr005"]
    config = sweep.base()
    assert sweep.chosen(config, "") == sweep.runs(config)
    assert list(sweep.chosen(config, "pets, food101")) == ["pets", "food101"]
    with pytest.raises(ConfigError, match="no run 'petz'; did you mean pets"):
        sweep.chosen(config, "petz")


def test_the_launcher_imports_no_other_command() -> None:
    folder = Path(cit_train.__file__).parent / "launch"
    for path in folder.glob("*.py"):
        names = {
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert not [name for name in names if "train_command" in name], path
