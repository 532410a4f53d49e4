"""Evaluation on many tasks, one after another: the result of each, or why there is none."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase, VisionTextDualEncoderModel

from cit_curate.errors import CitError, ConfigError, NotFiniteError, ResourceError
from cit_curate.metadata.tasks import TASK_NAMES, Metric, load_task
from cit_train.config import VisionEngine
from cit_train.evaluation.metrics import Interval
from cit_train.evaluation.open_task import NoDataError, open_task
from cit_train.evaluation.pooled_images import frozen_vision, pooled_images
from cit_train.evaluation.prompts import choose_prompts
from cit_train.evaluation.readers.labelled_images import spread_rows
from cit_train.evaluation.zero_shot import evaluate
from cit_train.models.pooled_vision import PooledVision

__all__ = ["SuiteOptions", "TaskResult", "mean_value", "run_suite", "suite_report"]

Status = Literal["done", "no data", "failed"]
# Called with the images done so far, and with their total.
OnImages = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """The settings that all tasks share.

    Attributes:
        limit: The maximum number of images of a task; None = all.
        prompts: The prompts of all tasks; empty = each task's own.
        use_template: False = the class names alone.
        extra_prompts: Whether to add two prompts to ImageNet's.
        classes: The file with the class names of an image folder; None = the folders' names.
        max_text_length: The maximum number of tokens of a prompt.
        batch_size: The images that are decoded and encoded together; None = as the device allows.
        num_threads: The threads that decode; None = one a core.
        vision_engine: What runs the vision tower, see `choose_engine`; auto falls back to PyTorch.
    """

    limit: int | None = None
    prompts: tuple[str, ...] = ()
    use_template: bool = True
    extra_prompts: bool = False
    classes: Path | None = None
    max_text_length: int = 32
    batch_size: int | None = None
    num_threads: int | None = None
    vision_engine: VisionEngine = "auto"

    def __post_init__(self) -> None:
        for name in ("limit", "max_text_length", "batch_size", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {value}; it must be at least 1")
        for prompt in self.prompts:
            if prompt.count("{}") != 1:
                raise ConfigError(f"--prompts: {prompt!r} needs {{}} once, for the class name")


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The result of a task, in percent, or the reason why there is none.

    Attributes:
        task: The name of the task.
        metric: The metric of `value`.
        status: `done`, `no data`, or `failed` when the data cannot be used.
        value: The value of the metric; None unless done.
        interval: The 95 % interval of the metric.
        accuracy: The plain accuracy, for any metric.
        chance: The accuracy of guessing.
        num_images: The images that were classified.
        num_found: The images of the data; `limit` and broken images make `num_images` smaller.
        num_rejected: The images that could not be read.
        num_classes: The classes to choose from.
        is_partial: Whether `limit` left images out, which makes the value a rough one.
        seconds: The wall-clock time of reading, encoding and scoring.
        source: The reader of the data.
        prompts: The prompts of the class names.
        notes: Remarks that a person needs to interpret the value.
        reason: The reason why there is no value.
        exit_code: The exit code of the failure; 0 = none.
    """

    task: str
    metric: Metric
    status: Status
    value: float | None = None
    interval: Interval | None = None
    accuracy: float | None = None
    chance: float | None = None
    num_images: int = 0
    num_found: int = 0
    num_rejected: int = 0
    num_classes: int = 0
    is_partial: bool = False
    seconds: float = 0.0
    source: str = ""
    prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""
    exit_code: int = 0


def run_suite(
    model: VisionTextDualEncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    root: Path,
    *,
    options: SuiteOptions,
    on_images: Callable[[str, int, int], None] | None = None,
) -> Iterator[TaskResult]:
    """Evaluate a model on tasks, in order; the failure of a task is a result and not an exception.

    Args:
        model: The dual encoder, on any device.
        tokenizer: The text tower's tokenizer.
        names: The tasks, from `task_names`.
        root: The folder of the tasks' data.
        options: The settings of all tasks.
        on_images: Called after each batch with the task, its images so far and their total.

    Raises:
        ConfigError: The vision engine cannot be used.
        NotFiniteError: The model is broken, so that every task would fail.
    """
    vision = frozen_vision(model, options.vision_engine, options.batch_size)
    for name in names:
        metric: Metric = load_task(name).metric if name in TASK_NAMES else "accuracy"
        start = time.monotonic()

        def report(done: int, total: int, name: str = name) -> None:
            if on_images is not None:
                on_images(name, done, total)

        try:
            result = _run_task(model, vision, tokenizer, name, root, metric, options, report)
        except NotFiniteError:
            raise
        except NoDataError as error:
            result = TaskResult(
                task=name, metric=metric, status="no data", reason=str(error), exit_code=2
            )
        except CitError as error:
            result = TaskResult(
                task=name,
                metric=metric,
                status="failed",
                reason=str(error),
                exit_code=error.exit_code,
            )
        except OSError as error:
            result = TaskResult(
                task=name,
                metric=metric,
                status="failed",
                reason=f"its data cannot be read: {error}",
                exit_code=ResourceError.exit_code,
            )
        yield dataclasses.replace(result, seconds=time.monotonic() - start)


def mean_value(results: Sequence[TaskResult]) -> float | None:
    """The mean of the tasks' values, each by its own metric; None when no task has one."""
    values = [result.value for result in results if result.value is not None]
    return float(np.mean(values)) if values else None


def suite_report(results: Sequence[TaskResult], **facts: Any) -> dict[str, Any]:
    """A JSON document with the facts, one object a task, and the mean."""
    return {
        **facts,
        "mean": mean_value(results),
        "num_done": sum(result.status == "done" for result in results),
        "num_tasks": len(results),
        "tasks": [_row(result) for result in results],
    }


def _run_task(
    model: VisionTextDualEncoderModel,
    vision: PooledVision,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    root: Path,
    metric: Metric,
    options: SuiteOptions,
    on_images: OnImages,
) -> TaskResult:
    images = open_task(name, root, classes=options.classes)
    task = load_task(name) if name in TASK_NAMES else None
    prompts = choose_prompts(
        task,
        requested=options.prompts,
        stored=images.prompts,
        use_template=options.use_template,
        extra_prompts=options.extra_prompts and name == "imagenet",
    )
    num_found = len(images.targets)
    rows = spread_rows(num_found, options.limit)
    on_images(0, len(rows))
    pooled = pooled_images(
        model,
        images.images,
        rows=rows,
        batch_size=options.batch_size,
        num_threads=options.num_threads,
        on_batch=lambda done: on_images(done, len(rows)),
        vision=vision,
    )
    evaluation = evaluate(
        model,
        tokenizer,
        pooled,
        images,
        prompts=prompts,
        max_text_length=options.max_text_length,
        metric=metric,
    )
    return TaskResult(
        task=name,
        metric=metric,
        status="done",
        value=evaluation.value,
        interval=evaluation.interval,
        accuracy=evaluation.accuracy,
        chance=evaluation.chance,
        num_images=evaluation.num_images,
        num_found=num_found,
        num_rejected=evaluation.num_rejected,
        num_classes=evaluation.num_classes,
        is_partial=len(rows) < num_found,
        source=images.reader,
        prompts=prompts,
        notes=(*([images.naming] if images.naming else []), *images.notes),
    )


def _row(result: TaskResult) -> dict[str, Any]:
    row = dataclasses.asdict(result)
    row["interval"] = list(result.interval) if result.interval else None
    return row
