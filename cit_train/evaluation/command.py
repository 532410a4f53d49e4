"""`cit eval`: zero-shot evaluation of a saved model on tasks, or on an image folder."""

import difflib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from cit_curate.errors import BadInputError, CitError, ConfigError, DamagedError, ResourceError
from cit_curate.printing import print_json
from cit_curate.text_encoder.hub import HUB_PREFIX, hub_folder
from cit_train.config import VisionEngine
from cit_train.recipes import EVAL_RECIPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cit_train.evaluation.suite import SuiteOptions, TaskResult
    from cit_train.evaluation.zero_shot import Evaluation

_logger = logging.getLogger(__name__)
_ERRORS: dict[int, type[CitError]] = {2: ConfigError, 3: BadInputError, 4: DamagedError}


def evaluate(
    model: tyro.conf.Positional[str],
    *,
    data: Path,
    tasks: str = "",
    limit: int | None = None,
    classes: Path | None = None,
    prompts: tuple[str, ...] = (),
    no_template: bool = False,
    extra_prompts: Literal["auto", "on", "off"] = "auto",
    tokenizer: str = "",
    max_text_length: int | None = None,
    batch_size: int | None = None,
    num_threads: int | None = None,
    device: str = "auto",
    vision_engine: VisionEngine = "auto",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Classify pictures by the names of their classes: built-in tasks, or a folder of your own.

    A task's data lie in ROOT/TASK: an image folder (class folders, also below test or val), a file
    list (labels.csv), a WebDataset or Parquet export of CLIP benchmark (also as ROOT/wds_TASK), or
    what torchvision unpacked into ROOT or ROOT/TASK. A task without data is reported and skipped.

        cit eval RUN --data pictures --prompts "a photo of a {}" "a drawing of a {}"
        cit eval RUN --tasks all --data ROOT --out results.json
        cit eval RUN --tasks imagenet,cifar10,my-folder --data ROOT --limit 500
        cit eval eval_yfcc15m_in1k_mocob16 --data ROOT

    Args:
        model: A run (its best checkpoint, else its last), a checkpoint's folder, a checkpoint of
            the original (directory, .tar or .pth), hf://org/name, or an evaluation recipe.
        data: With --tasks the folder of the tasks' data; without, a folder with one sub-folder of
            pictures for each class, or with a labels.csv of paths and labels.
        tasks: all or mt (the 26 built-in tasks), or names separated by commas; a name that is not a
            built-in task is an image folder in --data.
        limit: Pictures of each task, spread evenly over it; all by default.
        classes: File of class names, when the sub-folders are named otherwise. One a line: matched
            by name, numbered folders by number, others in the order of the sorted sub-folders; or
            a CSV with columns folder, class.
        prompts: Templates of the class names; several are averaged. By default the task's own; for
            a folder of your own, the run's or "a photo of a {}".
        no_template: Use the class names alone.
        extra_prompts: Two further prompts for ImageNet; auto = when it is the only task and has its
            own prompts.
        tokenizer: Tokenizer to use instead of the model's own: a directory or hf://org/name.
        max_text_length: Maximum tokens of a prompt; by default the run's, or 32.
        batch_size: Pictures that are decoded and encoded together; by default as the device allows.
        num_threads: Threads that decode pictures; one a core by default.
        device: auto = the first GPU, else the CPU; cpu, cuda or cuda:N.
        vision_engine: What runs the vision tower: torch, or openvino on a CPU; auto = openvino on a
            CPU if it is installed and can run this tower.
        out: JSON file for the results of --tasks; rewritten after each task.
        json: Print one JSON document instead of a table.
    """
    from cit_curate.run.ledger import Run
    from cit_train.evaluation.open_task import task_names
    from cit_train.evaluation.prompts import prompts_of_run

    if model in EVAL_RECIPES and not Path(model).exists():
        recipe = EVAL_RECIPES[model]()
        if not Path(recipe.model).exists():
            raise ConfigError(
                f"the recipe {model} evaluates {recipe.model}, which does not exist; train it with "
                f"`cit train {Path(recipe.model).name}`, or name a model: `cit eval MODEL --tasks "
                f"{tasks or recipe.tasks}`"
            )
        model, tasks = recipe.model, tasks or recipe.tasks
    elif not model.startswith(HUB_PREFIX) and not Path(model).exists():
        close = difflib.get_close_matches(model, EVAL_RECIPES, n=1)
        hint = f"; did you mean the recipe {close[0]}?" if close else ""
        raise ConfigError(
            f"there is no {model}; a model is a run, a checkpoint's folder or file, a model of the "
            f"hub as hf://org/name, or an evaluation recipe{hint}"
        )
    path = hub_folder(model) if model.startswith(HUB_PREFIX) else Path(model)
    is_run = (path / "manifests").is_dir()
    settings = Run.open(path).config if is_run else {}
    names = task_names(tasks, data) if tasks else ()
    # Explicit prompts are used as they are, without the extra ones.
    is_imagenet_alone = extra_prompts == "auto" and names == ("imagenet",) and not prompts
    if classes is not None and len(names) > 1:
        raise ConfigError("--classes names the classes of one task; give one with --tasks")
    if not tasks and (limit is not None or out is not None):
        flag = "--limit" if limit is not None else "--out"
        raise ConfigError(f"{flag} is for --tasks; add --tasks NAME with --data at its parent")
    if not names and not no_template:
        prompts = prompts or prompts_of_run(settings)
    from cit_train.evaluation.suite import SuiteOptions  # imports torch; the names are valid by now

    options = SuiteOptions(
        limit=limit,
        prompts=prompts,
        use_template=not no_template,
        extra_prompts=extra_prompts == "on" or is_imagenet_alone,
        classes=classes,
        max_text_length=max_text_length or int(settings.get("max_text_length", 32)),
        batch_size=batch_size,
        num_threads=num_threads,
        vision_engine=vision_engine,
    )
    if names:
        _evaluate_tasks(
            path, names, data, options, tokenizer_name=tokenizer, device=device, out=out, json=json
        )
    else:
        _evaluate_folder(path, data, options, tokenizer_name=tokenizer, device=device, json=json)


def _evaluate_tasks(
    model: Path,
    names: "Sequence[str]",
    root: Path,
    options: "SuiteOptions",
    *,
    tokenizer_name: str,
    device: str,
    out: Path | None,
    json: bool,
) -> None:
    from cit_curate.storage.durable import write_json
    from cit_curate.terminal import draw
    from cit_curate.text_encoder.encoder import choose_device
    from cit_train.evaluation.display import SuiteProgress, suite_table
    from cit_train.evaluation.suite import run_suite, suite_report
    from cit_train.models.load import load_dual_encoder

    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}")
    encoder, tokenizer = load_dual_encoder(
        model,
        device=str(choose_device(device)),
        tokenizer=tokenizer_name or None,
        max_text_length=options.max_text_length,
    )
    results: list[TaskResult] = []
    facts: dict[str, Any] = {"model": str(model), "data": str(root), "limit": options.limit}
    with SuiteProgress() as progress:
        for result in run_suite(
            encoder, tokenizer, names, root, options=options, on_images=progress.update
        ):
            results.append(result)
            progress.finish(result)
            if out is not None:
                write_json(out, suite_report(results, **facts))
    if json:
        print_json(suite_report(results, **facts))
    else:
        draw(suite_table(results, title=f"zero-shot, {model}"))
    _raise_first_failure(results)


def _raise_first_failure(results: "Sequence[TaskResult]") -> None:
    """Raise the error of the worst failed task; missing data is an error only if all is missing.

    Damaged data outranks bad input, and both outrank configuration errors.
    """
    failed = [result for result in results if result.status == "failed"]
    if failed:
        worst = max(failed, key=lambda result: result.exit_code)
        error = _ERRORS.get(worst.exit_code, ResourceError)
        raise error(f"{len(failed)} of {len(results)} tasks failed; {worst.task}: {worst.reason}")
    if all(result.status == "no data" for result in results):
        raise ConfigError(f"none of the {len(results)} tasks has data; {results[0].reason}")


def _evaluate_folder(
    model: Path,
    data: Path,
    options: "SuiteOptions",
    *,
    tokenizer_name: str,
    device: str,
    json: bool,
) -> None:
    from cit_curate.terminal import print_line
    from cit_curate.text_encoder.encoder import choose_device
    from cit_train.evaluation.open_folder import open_folder
    from cit_train.evaluation.pooled_images import frozen_vision, pooled_images
    from cit_train.evaluation.prompts import choose_prompts
    from cit_train.evaluation.zero_shot import evaluate as evaluate_folder
    from cit_train.models.load import load_dual_encoder

    images = open_folder(data, classes=options.classes)
    if images.naming:
        print_line(images.naming, stderr=True)
    for note in images.notes:
        _logger.warning("%s", note)
    encoder, tokenizer = load_dual_encoder(
        model,
        device=str(choose_device(device)),
        tokenizer=tokenizer_name or None,
        max_text_length=options.max_text_length,
    )
    pooled = pooled_images(
        encoder,
        images.images,
        batch_size=options.batch_size,
        num_threads=options.num_threads,
        vision=frozen_vision(encoder, options.vision_engine, options.batch_size),
    )
    result = evaluate_folder(
        encoder,
        tokenizer,
        pooled,
        images,
        prompts=choose_prompts(None, requested=options.prompts, use_template=options.use_template),
        max_text_length=options.max_text_length,
    )
    if json:
        _show_folder_json(result, model, data, images.notes)
    else:
        _print_folder_table(result, data)


def _show_folder_json(
    result: "Evaluation", model: Path, data: Path, notes: "Sequence[str]"
) -> None:
    value = {
        "model": str(model),
        "data": str(data),
        "num_images": result.num_images,
        "num_classes": result.num_classes,
        "num_rejected": result.num_rejected,
        "accuracy": result.accuracy,
        "interval": list(result.interval),
        "mean_per_class": result.mean_per_class,
        "chance": result.chance,
        "notes": list(notes),
        "per_class": {
            name: {"num_images": row.num_images, "accuracy": row.accuracy}
            for name, row in result.per_class.items()
        },
    }
    print_json(value)


def _print_folder_table(result: "Evaluation", data: Path) -> None:
    from rich.table import Table

    from cit_curate.terminal import add_row, draw, inert, print_line

    table = Table(title=inert(f"zero-shot on {data}"), title_justify="left")
    table.add_column("class")
    table.add_column("pictures", justify="right")
    table.add_column("accuracy %", justify="right")
    for name, row in result.per_class.items():
        add_row(table, name, f"{row.num_images:,}", f"{row.accuracy:.1f}")
    table.add_section()
    add_row(table, "accuracy", f"{result.num_images:,}", f"{result.accuracy:.1f}")
    low, high = result.interval
    add_row(table, "95 % interval", "", f"{low:.1f} - {high:.1f}")
    add_row(table, "mean per class", f"{result.num_classes:,}", f"{result.mean_per_class:.1f}")
    add_row(table, "chance", "", f"{result.chance:.1f}")
    draw(table)
    if result.num_rejected:
        print_line(f"{result.num_rejected} pictures could not be opened", stderr=True)
