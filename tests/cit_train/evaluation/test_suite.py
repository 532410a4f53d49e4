"""`cit eval --tasks`: which data are found, what is reported, and with which exit code."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_layouts import (
    LABELS,
    cifar_binary,
    file_list,
    image_bytes,
    image_folder,
    parquet_export,
    webdataset_export,
)
from tiny import COLOURS, SHAPES, make_pictures, make_text_tower, make_vision_tower
from transformers import AutoTokenizer, VisionTextDualEncoderModel

from cit_curate.errors import BadInputError, ConfigError, DamagedError, NotFiniteError
from cit_curate.metadata.tasks import TASK_NAMES, load_task
from cit_train.cli import run
from cit_train.config import EvaluationConfig, ModelConfig
from cit_train.evaluation import open_task as open_task_module
from cit_train.evaluation import zero_shot
from cit_train.evaluation.evaluator import Evaluator
from cit_train.evaluation.open_task import NoDataError, open_task, task_names
from cit_train.evaluation.pooled_images import pooled_images, project
from cit_train.evaluation.prompts import DEFAULT_PROMPTS, choose_prompts, prompts_of_run
from cit_train.evaluation.suite import SuiteOptions, TaskResult, mean_value, run_suite
from cit_train.models.freeze import freeze
from cit_train.models.pooled_vision import PooledVision

CIFAR_NAMES = ("airplane", "automobile", "bird")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random dual encoder in a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("model")
    text = make_text_tower(folder / "text")
    torch.manual_seed(0)
    model = VisionTextDualEncoderModel.from_vision_text_pretrained(
        str(make_vision_tower(folder / "vision")), str(text)
    )
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(text).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def model(model_folder: Path) -> VisionTextDualEncoderModel:
    return VisionTextDualEncoderModel.from_pretrained(model_folder).eval()


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> object:
    return AutoTokenizer.from_pretrained(model_folder)


# --- where data are found


@pytest.mark.parametrize("place", ["cifar10", "wds_cifar10", "vtab-cifar10", "wds_vtab-cifar10"])
def test_a_tasks_folder_may_have_the_name_that_clip_benchmark_gives_it(
    place: str, tmp_path: Path
) -> None:
    webdataset_export(tmp_path / place)
    assert open_task("cifar10", tmp_path).reader == "WebDataset export"


def test_other_names_of_tasks_are_known(tmp_path: Path) -> None:
    for task, place in (
        ("aircraft", "wds_fgvc_aircraft"),
        ("patch_camelyon", "wds_vtab-pcam"),
        ("clevr_counts", "wds_vtab-clevr_count_all"),
        ("imagenet", "wds_imagenet1k"),
    ):
        webdataset_export(tmp_path / place, [0, 1])
        assert open_task(task, tmp_path).targets.tolist() == [0, 1]


@pytest.mark.parametrize("below", ["", "test", "val"])
def test_an_image_folder_may_have_splits(below: str, tmp_path: Path) -> None:
    image_folder(tmp_path / "cifar10" / below, CIFAR_NAMES)
    if below:
        image_folder(tmp_path / "cifar10" / "train", ("ant", "bee", "cat"))
    images = open_task("cifar10", tmp_path)
    assert images.reader == "image folder"
    assert images.targets.tolist() == list(LABELS)
    assert images.classes == load_task("cifar10").classes


def test_a_class_file_beside_the_folders_names_them(tmp_path: Path) -> None:
    image_folder(tmp_path / "cifar10", ("a", "b", "c"))
    (tmp_path / "cifar10" / "classes.csv").write_text(
        "folder,class\na,bird\nb,airplane\nc,automobile\n"
    )
    assert open_task("cifar10", tmp_path).targets.tolist() == [2, 2, 0, 0, 0, 1]


def test_every_layout_gives_the_same_labels(tmp_path: Path) -> None:
    names = [entry.name for entry in load_task("cifar10").classes or ()]
    roots = {kind: tmp_path / kind for kind in ("folder", "list", "wds", "parquet", "binary")}
    image_folder(roots["folder"] / "cifar10", names)
    file_list(roots["list"] / "cifar10", LABELS)
    webdataset_export(roots["wds"] / "wds_vtab-cifar10", names=names)
    parquet_export(roots["parquet"] / "cifar10", names=names)
    cifar_binary(roots["binary"])
    sources = set()
    for root in roots.values():
        images = open_task("cifar10", root)
        assert images.targets.tolist() == list(LABELS)
        assert images.classes == load_task("cifar10").classes
        sources.add(images.reader)
    assert len(sources) == 5


def test_absent_data_are_reported_with_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(NoDataError) as absent:
        open_task("stl10", tmp_path)
    assert str(tmp_path / "stl10") in str(absent.value)
    assert load_task("stl10").how_to_get in str(absent.value)
    (tmp_path / "stl10").mkdir()
    (tmp_path / "stl10" / "README").write_text("later")
    with pytest.raises(NoDataError, match="nothing that can be read: add class folders"):
        open_task("stl10", tmp_path)


def test_task_names_are_all_mt_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    assert task_names("all", tmp_path) == task_names("mt", tmp_path) == TASK_NAMES
    assert len(TASK_NAMES) == 26
    assert task_names(" imagenet, own,imagenet", tmp_path) == ("imagenet", "own")
    with pytest.raises(ConfigError, match="did you mean 'imagenet'"):
        task_names("imagnet", tmp_path)
    for name in ("..", "own/../..", ".", ".git"):
        with pytest.raises(ConfigError, match="neither a built-in task nor a folder"):
            task_names(name, tmp_path)
    with pytest.raises(ConfigError, match="empty"):
        task_names(" ,", tmp_path)


# --- prompts


def test_prompts_are_those_given_else_the_tasks_else_those_beside_the_data() -> None:
    imagenet = load_task("imagenet")
    assert choose_prompts(imagenet, stored=("x {}",)) == imagenet.prompts
    assert choose_prompts(imagenet, requested=("y {}",)) == ("y {}",)
    assert choose_prompts(None, stored=("x {}",)) == ("x {}",)
    assert choose_prompts(None) == DEFAULT_PROMPTS
    assert choose_prompts(imagenet, requested=("y {}",), use_template=False) == ("{}",)
    extra = choose_prompts(imagenet, extra_prompts=True)
    assert extra == (*imagenet.prompts, "A photo of a {}", "{}")
    assert len(extra) == 9


# --- running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Colours as a task of one's own, and CIFAR-10; STL-10 damaged, EuroSAT absent."""
    make_pictures(tmp_path / "colours")
    (tmp_path / "colours" / "prompts.txt").write_text("# mine\na big {}\na small {}\n")
    image_folder(tmp_path / "cifar10", CIFAR_NAMES)
    webdataset_export(tmp_path / "stl10")
    (tmp_path / "stl10" / "test" / "1.tar").write_bytes(b"x")
    return tmp_path


def results(
    model: VisionTextDualEncoderModel, tokenizer: object, root: Path, *names: str, **options: object
) -> list[TaskResult]:
    return list(run_suite(model, tokenizer, names, root, options=SuiteOptions(**options)))


def test_what_cannot_be_evaluated_is_reported_and_the_others_go_on(
    model: VisionTextDualEncoderModel, tokenizer: object, root: Path
) -> None:
    found = results(model, tokenizer, root, "eurosat", "stl10", "cifar10", "colours")
    assert [result.status for result in found] == ["no data", "failed", "done", "done"]
    assert [result.exit_code for result in found] == [2, 4, 0, 0]
    assert "1.tar" in found[1].reason
    assert found[2].num_images == 6
    assert found[2].num_classes == 10
    assert found[2].prompts == load_task("cifar10").prompts
    assert found[3].prompts == ("a big {}", "a small {}")
    values = [result.value for result in found if result.value is not None]
    assert mean_value(found) == pytest.approx(sum(values) / 2)
    assert mean_value(found[:2]) is None


def test_a_value_is_that_of_a_plain_evaluation(
    model: VisionTextDualEncoderModel, tokenizer: object, root: Path
) -> None:
    (result,) = results(model, tokenizer, root, "colours", prompts=("a photo of a {}",))
    images = open_task("colours", root)
    evaluation = zero_shot.evaluate(
        model,
        tokenizer,
        pooled_images(model, images.images),
        images,
        prompts=("a photo of a {}",),
    )
    assert (result.value, result.interval) == (evaluation.accuracy, evaluation.interval)
    assert result.metric == "accuracy"


def test_a_limit_takes_some_of_every_class_and_says_so(
    model: VisionTextDualEncoderModel, tokenizer: object, root: Path
) -> None:
    (result,) = results(model, tokenizer, root, "colours", limit=4)
    assert (result.num_images, result.num_found, result.is_partial) == (4, 16, True)
    (whole,) = results(model, tokenizer, root, "colours", limit=16)
    assert not whole.is_partial


@pytest.mark.parametrize(
    ("task", "classes", "metric"),
    [
        ("hateful_memes", 2, "roc_auc"),
        ("kinetics700_frames", 700, "mean_top1_top5"),
        ("flowers", 102, "mean_per_class"),
        ("mnist", 10, "accuracy"),
    ],
)
def test_a_task_has_its_own_metric(
    task: str,
    classes: int,
    metric: str,
    model: VisionTextDualEncoderModel,
    tokenizer: object,
    tmp_path: Path,
) -> None:
    file_list(tmp_path / task, [0, 1, 1, 0, classes - 1])
    # The 48 prompts of Kinetics take seconds.
    (result,) = results(model, tokenizer, tmp_path, task, use_template=False)
    assert (result.status, result.metric, result.num_classes) == ("done", metric, classes)
    assert result.value is not None
    assert result.interval is not None
    assert result.interval.low <= result.value <= result.interval.high


def test_roc_auc_of_one_class_is_a_failure_of_the_task(
    model: VisionTextDualEncoderModel, tokenizer: object, tmp_path: Path
) -> None:
    file_list(tmp_path / "hateful_memes", [1, 1])
    (result,) = results(model, tokenizer, tmp_path, "hateful_memes")
    assert (result.status, result.exit_code) == ("failed", 3)
    assert "class 0 and of class 1" in result.reason


def test_data_that_may_not_be_read_fail_the_task(
    model: VisionTextDualEncoderModel,
    tokenizer: object,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "cifar10")

    monkeypatch.setattr(open_task_module.ImageFolder, "open", denied)
    (result,) = results(model, tokenizer, root, "cifar10")
    assert (result.status, result.exit_code) == ("failed", 5)
    assert "Permission denied" in result.reason


def test_unreadable_images_over_the_limit_fail_the_task(
    model: VisionTextDualEncoderModel, tokenizer: object, root: Path
) -> None:
    (root / "cifar10" / "bird" / "5.png").write_bytes(image_bytes(0)[:60])
    failed, done = results(model, tokenizer, root, "cifar10", "colours")
    assert (failed.status, failed.exit_code, done.status) == ("failed", 3, "done")
    assert "5.png" in failed.reason


def test_class_texts_are_encoded_in_one_pass(
    model: VisionTextDualEncoderModel,
    tokenizer: object,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = []
    hook = model.text_model.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["input_ids"])),
        with_kwargs=True,
    )
    results(model, tokenizer, root, "cifar10", limit=1)
    hook.remove()
    assert rows == [10 * len(load_task("cifar10").prompts)]


def test_a_broken_model_is_an_error_and_no_row(
    model_folder: Path, tokenizer: object, root: Path
) -> None:
    broken = VisionTextDualEncoderModel.from_pretrained(model_folder)
    with torch.no_grad():
        broken.text_projection.weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError):
        results(broken, tokenizer, root, "cifar10")


@pytest.mark.parametrize("name", ["limit", "batch_size", "num_threads", "max_text_length"])
def test_counts_of_zero_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is 0"):
        SuiteOptions(**{name: 0})


def test_memory_holds_a_few_batches_of_pixels(
    model: VisionTextDualEncoderModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are read no further ahead of the tower than two batches."""
    image_folder(tmp_path / "cifar10", CIFAR_NAMES)
    images = open_task("cifar10", tmp_path).images
    read: list[int] = []

    class Counted:
        def __len__(self) -> int:
            return 50

        def read(self, row: int) -> object:
            read.append(row)
            return images.read(row % 6)

        def title(self, row: int) -> str:
            return str(row)

    ahead: list[int] = []

    def vision(self: PooledVision, views: torch.Tensor) -> torch.Tensor:
        ahead.append(len(read))
        return torch.zeros(len(views), 32)

    monkeypatch.setattr(PooledVision, "__call__", vision)
    pooled_images(model, Counted(), batch_size=5, num_threads=2)
    assert len(ahead) == 10
    assert all(count <= 5 * (batch + 3) for batch, count in enumerate(ahead))


# --- the command


def cit_eval(model: Path, root: Path, *args: str) -> int:
    return run(["eval", str(model), "--data", str(root), "--device", "cpu", *args])


def test_the_command_prints_one_json_document(
    model_folder: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = root / "results.json"
    args = ("--tasks", "cifar10,eurosat,colours", "--limit", "5", "--json", "--out", str(out))
    assert cit_eval(model_folder, root, *args) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out, parse_constant=pytest.fail)
    assert document == json.loads(out.read_text())
    assert (document["num_done"], document["num_tasks"], document["limit"]) == (2, 3, 5)
    cifar10, eurosat, colours = document["tasks"]
    assert cifar10["source"] == "image folder"
    assert cifar10["is_partial"] is True
    assert cifar10["interval"][0] <= cifar10["value"] <= cifar10["interval"][1]
    assert cifar10["seconds"] > 0
    assert eurosat["status"] == "no data"
    assert "EuroSAT" in eurosat["reason"]
    assert document["mean"] == pytest.approx((cifar10["value"] + colours["value"]) / 2)
    assert "eurosat: no data" in printed.err


def test_every_engine_evaluates_alike(
    model_folder: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines: list[str | None] = []
    prepared = PooledVision._prepared

    def seen(self: PooledVision, views: torch.Tensor) -> object:
        engines.append(self._engine)
        return prepared(self, views)

    monkeypatch.setattr(PooledVision, "_prepared", seen)
    told = []
    for engine in ("torch", "openvino", "auto"):
        flags = ("--vision-engine", engine, "--json")
        assert cit_eval(model_folder, root, "--tasks", "colours", *flags) == 0
        (row,) = json.loads(capsys.readouterr().out)["tasks"]
        told.append({**row, "seconds": 0})
    assert engines == ["torch", "openvino", "openvino"]
    assert told[0] == told[1] == told[2]


def test_the_table_has_a_row_a_task_and_the_mean(
    model_folder: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "[red]mine").mkdir()
    make_pictures(root / "[red]mine" / "test")
    assert cit_eval(model_folder, root, "--tasks", "[red]mine,eurosat", "--limit", "8") == 0
    printed = capsys.readouterr().out
    assert "[red]mine" in printed
    assert "8*" in printed
    assert "1 of 2 tasks" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_exit_codes_are_those_of_the_worst_task(model_folder: Path, root: Path) -> None:
    with pytest.raises(DamagedError, match="1 of 2 tasks failed; stl10"):
        cit_eval(model_folder, root, "--tasks", "cifar10,stl10", "--limit", "2")
    for path in (root / "cifar10").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(BadInputError, match="1 of 1 tasks failed; cifar10"):
        cit_eval(model_folder, root, "--tasks", "cifar10")
    with pytest.raises(ConfigError, match="none of the 2 tasks has data"):
        cit_eval(model_folder, root, "--tasks", "eurosat,gtsrb")


def test_imagenet_alone_has_two_more_prompts(
    model_folder: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file_list(root / "imagenet", [0, 9])
    imagenet = load_task("imagenet")
    # The texts of all 1,000 classes would take seconds each time.
    few = dataclasses.replace(imagenet, classes=(imagenet.classes or ())[:10])
    monkeypatch.setattr(
        open_task_module, "load_task", lambda name: few if name == "imagenet" else load_task(name)
    )

    def num_prompts(*args: str, task: int = 0) -> int:
        cit_eval(model_folder, root, "--json", *args)
        return len(json.loads(capsys.readouterr().out)["tasks"][task]["prompts"])

    assert num_prompts("--tasks", "imagenet") == 9
    assert num_prompts("--tasks", "imagenet,colours") == 7
    assert num_prompts("--tasks", "imagenet", "--extra-prompts", "off") == 7
    assert num_prompts("--tasks", "imagenet,colours", "--extra-prompts", "on") == 9
    others = [
        num_prompts("--tasks", "imagenet,colours", "--extra-prompts", which, task=1)
        for which in ("on", "off")
    ]
    assert others[0] == others[1]
    assert num_prompts("--tasks", "imagenet", "--no-template") == 1
    assert num_prompts("--tasks", "imagenet", "--prompts", "a {}") == 1
    assert num_prompts("--tasks", "imagenet", "--prompts", "a {}", "--extra-prompts", "on") == 3


def test_the_prompts_of_a_run_are_those_that_it_was_evaluated_with() -> None:
    prompts = ["my {}", "your {}"]
    assert prompts_of_run({"prompts": prompts}) == ("my {}", "your {}")
    assert prompts_of_run({"prompts": prompts, "use_template": False}) == ("{}",)
    assert prompts_of_run({}) == ()


def test_a_misspelt_recipe_is_told_before_the_data_are_looked_for(root: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean the recipe eval_yfcc15m_in1k_mocob16"):
        cit_eval(Path("eval_yfcc15m_in1k_mocob1"), root / "nowhere")


def test_a_recipe_without_its_run_says_what_to_do(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"`cit train yfcc15m_in1k_mocob16`, or .*--tasks all"):
        cit_eval(Path("eval_yfcc15m_in1k_mocob16"), root)


def test_flags_of_tasks_need_tasks(model_folder: Path, root: Path) -> None:
    with pytest.raises(ConfigError, match="--limit is for --tasks"):
        cit_eval(model_folder, root / "colours", "--limit", "5")
    with pytest.raises(ConfigError, match="--classes names the classes of one task"):
        cit_eval(model_folder, root, "--tasks", "cifar10,colours", "--classes", str(root / "x"))
    with pytest.raises(ConfigError, match="--out: there is no folder"):
        cit_eval(model_folder, root, "--tasks", "cifar10", "--out", str(root / "no" / "x.json"))


def test_an_own_folder_is_evaluated_as_before(
    model_folder: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "colours" / "prompts.txt").unlink()
    assert cit_eval(model_folder, root / "colours", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_images"] == len(COLOURS) * len(SHAPES)
    assert list(document["per_class"]) == sorted(COLOURS)
    assert document["interval"][0] <= document["accuracy"] <= document["interval"][1]


# --- while training


def test_an_evaluator_takes_a_tasks_classes_prompts_and_metric(
    model: VisionTextDualEncoderModel, tokenizer: object, tmp_path: Path
) -> None:
    file_list(tmp_path / "flowers", [0, 0, 0, 101])
    config = EvaluationConfig(eval_data=str(tmp_path), eval_task="flowers")
    evaluator = Evaluator.open(config, 32)
    assert evaluator is not None
    assert evaluator.prompts == load_task("flowers").prompts
    evaluation = evaluator(model, tokenizer)
    assert evaluation.metric == "mean_per_class"
    assert evaluator.best_value(evaluation) == evaluation.value == evaluation.mean_per_class
    assert evaluation.num_classes == 102


def test_an_evaluator_of_imagenet_takes_the_extra_prompts_when_asked(tmp_path: Path) -> None:
    file_list(tmp_path / "imagenet", [0])

    def prompts(**changes: object) -> int:
        config = EvaluationConfig(eval_data=str(tmp_path), eval_task="imagenet", **changes)
        evaluator = Evaluator.open(config, 32)
        assert evaluator is not None
        return len(evaluator.prompts)

    assert prompts() == 7
    assert prompts(extra_prompts=True) == 9
    assert prompts(use_template=False) == 1
    assert prompts(prompts=("my {}", "your {}")) == 2


def test_an_own_folder_is_judged_by_the_configs_metric(
    model: VisionTextDualEncoderModel, tokenizer: object, root: Path
) -> None:
    shutil.rmtree(root / "colours" / "red")
    make_pictures(root / "more")
    shutil.copytree(root / "more" / "red", root / "colours" / "red")
    (root / "colours" / "red" / "disc.png").unlink()
    for metric in ("accuracy", "mean_per_class"):
        config = EvaluationConfig(eval_data=str(root / "colours"), best_metric=metric)
        evaluator = Evaluator.open(config, 32)
        assert evaluator is not None
        evaluation = evaluator(model, tokenizer)
        assert evaluator.best_value(evaluation) == getattr(evaluation, metric)
    assert Evaluator.open(EvaluationConfig(), 32) is None


def test_a_trained_head_is_applied_anew_and_pixels_are_seen_once(
    model: VisionTextDualEncoderModel, tokenizer: object, root: Path
) -> None:
    evaluator = Evaluator.open(EvaluationConfig(eval_data=str(root / "colours")), 32)
    assert evaluator is not None
    seen = []

    def frozen_features(pixel_values: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixel_values))
        return pixel_values.mean(dim=(2, 3))

    torch.manual_seed(3)
    headed = copy.deepcopy(model)
    headed.vision_model.has_trainable_head = True
    headed.vision_model.frozen_features = frozen_features
    headed.vision_model.head = torch.nn.Linear(3, 32)
    freeze(headed, ModelConfig())
    first = evaluator(headed, tokenizer)
    assert sum(seen) == 16
    pooled = pooled_images(headed, evaluator.images.images)
    before = project(headed, pooled)
    torch.nn.init.normal_(headed.vision_model.head.weight)
    second = evaluator(headed, tokenizer)
    assert sum(seen) == 32, "16 of them in the call above"
    after = project(headed, pooled)
    assert not np.allclose(before, after)
    head = headed.vision_model.head
    expected = headed.visual_projection(head(pooled.vectors)).detach()
    torch.testing.assert_close(after, expected / expected.norm(dim=-1, keepdim=True))
    assert first.num_images == second.num_images == 16


def test_patience_counts_evaluations_since_the_best_one(root: Path) -> None:
    def stops(update: int, best_update: int, patience: int = 2) -> bool:
        config = EvaluationConfig(
            eval_data=str(root / "colours"), eval_every=100, patience=patience
        )
        evaluator = Evaluator.open(config, 32)
        assert evaluator is not None
        return evaluator.is_out_of_patience(update=update, best_update=best_update)

    assert not stops(100, 100)
    assert not stops(200, 100)
    assert stops(300, 100)
    assert not stops(10_000, 100, patience=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": -1}, "--patience is -1"),
        ({"patience": 2}, "--patience counts evaluations; give --eval-data"),
        ({"eval_task": "imagenet"}, "needs --eval-data"),
        ({"extra_prompts": True}, "--extra-prompts are ImageNet's"),
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**changes)


def test_a_task_that_does_not_exist_is_refused_with_the_nearest(tmp_path: Path) -> None:
    config = EvaluationConfig(eval_data=str(tmp_path), eval_task="imagenett")
    with pytest.raises(ConfigError, match="did you mean 'imagenet'"):
        Evaluator.open(config, 32)


# --- a folder of one's own


def test_the_folder_of_all_splits_ends_with_code_2_and_its_split_is_evaluated(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        image_folder(tmp_path / split, ("red", "green", "blue"))
    with pytest.raises(ConfigError, match=f"train and val hold.*--data {tmp_path / 'val'}") as got:
        cit_eval(model_folder, tmp_path)
    assert got.value.exit_code == 2
    assert cit_eval(model_folder, tmp_path / "val", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["num_classes"], document["num_images"], document["notes"]) == (3, 6, [])


def test_notes_are_warnings_and_a_class_list_is_described(
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    image_folder(tmp_path / "data", ("0", "1", "10"))
    assert cit_eval(model_folder, tmp_path / "data", "--json") == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert "the class names are numbers (0, 1, 10)" in note
    assert note in caplog.text
    (tmp_path / "names.txt").write_text(
        "".join(f"{word}\n" for word in (*COLOURS, *SHAPES, *"xyz"))
    )
    args = ("--classes", str(tmp_path / "names.txt"), "--json")
    assert cit_eval(model_folder, tmp_path / "data", *args) == 0
    captured = capsys.readouterr()
    assert "names.txt: 11 classes: red, green, blue" in captured.err
    assert list(json.loads(captured.out)["per_class"]) == ["red", "green", "z"]
