"""The recipes of the paper against the table of its settings, and the sweep over the tasks."""

import json

import pytest

from cit_curate.errors import ConfigError
from cit_curate.metadata.tasks import TASK_NAMES
from cit_train import train_command
from cit_train.config import RunConfig, flat, replace_fields
from cit_train.launch import sweep_command
from cit_train.recipes import EVAL_RECIPES, RECIPES
from cit_train.sweeps import SWEEPS

# What the paper's recipes have in common: encoders, loss, optimizer, schedule, evaluation.
COMMON = {
    "text_encoder": "princeton-nlp/unsup-simcse-bert-base-uncased",
    "pooling": "pooler",
    "max_text_length": 32,
    "project_embeddings": False,
    "templates": ["{}"],
    "template_metadata": False,
    "projection_dim": 512,
    "train_vision": "head",
    "train_text": "all",
    "loss": "cit",
    "lr": 5e-4,
    "min_lr": 1e-5,
    "text_lr": None,
    "projection_lr": None,
    "weight_decay": 0.2,
    "projection_weight_decay": 1.0,
    "warmup_div": 25.0,
    "clip_grad": None,
    "accumulate": 1,
    "curate_every": 100,
    "max_updates": 5_000,
    "curation": "exact",
    "skip_until": 0,
    "texts": "one",
    "aug_tag": None,
    "order": "shuffled",
    "eval_every": 500,
    "use_template": True,
    "selection": "",
    "max_sample": None,
    "vision_features": "live",
    "vision_encoder": "models/moco-v3-vit-b16",
}
# recipe -> threshold, min_ratio, collection, batch size per lane, lanes, metadata, extra prompts
TABLE = {
    "yfcc15m_in1k_mocob16": (0.55, 0.003, "unique", 1_024, 16, "imagenet", True),
    "yfcc100m_in1k_mocob16": (0.7, 0.01, "multiset", 1_024, 16, "imagenet", True),
}
COLUMNS = (
    "threshold",
    "min_ratio",
    "collection",
    "batch_size",
    "lanes",
    "metadata",
    "extra_prompts",
)


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    command = sweep_command if args[0] in SWEEPS else train_command
    command.main([*args, "--print-config"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("recipe", TABLE)
def test_a_recipe_prints_the_settings_of_the_paper(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = printed([recipe], capsys)
    assert {name: values[name] for name in COMMON} == COMMON
    assert tuple(values[name] for name in COLUMNS) == TABLE[recipe]
    assert values["eval_task"] == "imagenet"
    assert RECIPES[recipe]().curate.augments_tags
    assert RECIPES[recipe]().train.warmup_updates == 200
    assert RECIPES[recipe]().budget == 102_400


def test_lanes_stand_for_the_world_size_of_the_original(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = printed(["yfcc15m_in1k_mocob16", "--lanes", "1"], capsys)
    assert (values["lanes"], values["batch_size"]) == (1, 1_024)


def test_the_sweep_has_a_run_for_each_task_with_the_settings_of_the_paper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = printed(["alltask_5k_mr005"], capsys)
    assert tuple(runs) == TASK_NAMES
    assert len(runs) == 26
    expected = (0.45, 0.05, "multiset", 1_536, 1)
    for task, values in runs.items():
        assert tuple(values[name] for name in COLUMNS[:5]) == expected
        assert values["metadata"] == values["eval_task"] == task
        assert {name: values[name] for name in COMMON} == COMMON


def test_a_flag_of_a_sweep_holds_for_all_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["alltask_5k_mr005", "--max-updates", "7", "--only", "pets,food101"]
    runs = printed(args, capsys)
    assert list(runs) == ["pets", "food101"]
    assert {values["max_updates"] for values in runs.values()} == {7}
    with pytest.raises(ConfigError, match="did you mean food101"):
        sweep_command.main(["alltask_5k_mr005", "--only", "food11", "--print-config"])


def test_the_evaluation_recipe_is_of_all_tasks() -> None:
    recipe = EVAL_RECIPES["eval_yfcc15m_in1k_mocob16"]()
    assert recipe.tasks == "all"
    assert recipe.model == "runs/yfcc15m_in1k_mocob16"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("eval_yfcc15m_in1k_mocob16", "cit eval"),
        ("alltask_5k_mr005", "cit sweep"),
        ("yfcc15m_in1k_mocob61", "did you mean yfcc15m_in1k_mocob16"),
    ],
)
def test_what_is_not_trained_says_how_it_is_run(name: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        train_command.main([name])


def test_every_field_of_a_run_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_command.main(["default", "--help"])
    shown = capsys.readouterr().out
    for name, value in flat(RunConfig()).items():
        flag = f"{'no-' if value is True else ''}{name.replace('_', '-')}"
        assert f"--{flag}" in shown, name


def test_other_modes_of_the_original_are_flags_away() -> None:
    base = RECIPES["yfcc15m_in1k_mocob16"]()
    assert base.evaluate_as.extra_prompts
    for union in ("mt", "imagenet21k"):
        evaluation = replace_fields(base, metadata=union).evaluate_as
        assert (evaluation.eval_task, evaluation.extra_prompts) == ("imagenet", False)
    assert replace_fields(base, selection="runs/picked").curate_as.curation == "none"
    assert replace_fields(base, curation="none").curate_as.curation == "none"
    assert replace_fields(base, accumulate=4).budget == 4 * 102_400
