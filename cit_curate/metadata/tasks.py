"""The 26 tasks of the evaluation: their classes, prompts, metrics and data sources.

Names and prompts come from clip-benchmark where it ships those of the CLIP paper; the other names
are in `names/`, the other prompts in prompts.py.
"""

import difflib
from dataclasses import dataclass
from importlib import resources

from cit_curate.errors import ConfigError
from cit_curate.metadata.libraries import clip_benchmark_names, clip_benchmark_prompts
from cit_curate.metadata.lines import MetadataEntry, parse_entries
from cit_curate.metadata.prompts import IMAGENET_EXTRA_PROMPTS, PROMPTS
from cit_curate.metadata.task_facts import FACTS, TASK_NAMES, Metric, TaskFacts

__all__ = [
    "IMAGENET_EXTRA_PROMPTS",
    "TASK_NAMES",
    "Metric",
    "Task",
    "load_classes",
    "load_prompts",
    "load_task",
]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task for curation or evaluation.

    Attributes:
        name: The name on the command line.
        title: The name in papers.
        metric: The reported metric.
        num_classes: The number of classes.
        num_test: The number of test images in CLIP's protocol.
        prompts: Texts with `{}` for the class name.
        how_to_get: One sentence: the data set, its source and the split.
        classes: The classes in the order of the class index, which is the data set's own label or
            torchvision's (CLEVR: counts from 3 up; FER2013: the CSV's number). Different classes
            with the same name stay apart. None = the names are known only from the data.
    """

    name: str
    title: str
    metric: Metric
    num_classes: int
    num_test: int
    prompts: tuple[str, ...]
    how_to_get: str
    classes: tuple[MetadataEntry, ...] | None


def load_task(name: str) -> Task:
    """A task with its classes and prompts.

    Raises:
        ConfigError: There is no such task (the message suggests the closest name), or the library
            with its names is missing (the message has the pip command).
    """
    facts = _known(name)
    return Task(
        name=facts.name,
        title=facts.title,
        metric=facts.metric,
        num_classes=facts.num_classes,
        num_test=facts.num_test,
        prompts=load_prompts(name),
        how_to_get=facts.how_to_get,
        classes=load_classes(name),
    )


def load_classes(name: str) -> tuple[MetadataEntry, ...]:
    """The classes of a task, in the order of the class index.

    Raises:
        ConfigError: As `load_task`, or the library has a different number of names.
    """
    facts = _known(name)
    if facts.names_key:
        entries = [MetadataEntry(name) for name in clip_benchmark_names(facts.names_key)]
    else:
        file = resources.files("cit_curate.metadata") / "names" / f"{name}.txt"
        entries = parse_entries(file.read_text(encoding="utf-8").splitlines())
    if len(entries) != facts.num_classes:
        raise ConfigError(
            f"{name} has {facts.num_classes} classes, but {facts.names_source} as installed names "
            f"{len(entries)}; run: pip install --force-reinstall 'cit[tasks]'"
        )
    return tuple(entries)


def load_prompts(name: str) -> tuple[str, ...]:
    """The prompts of a task.

    Raises:
        ConfigError: As `load_task`.
    """
    facts = _known(name)
    return tuple(clip_benchmark_prompts(facts.prompts_key)) if facts.prompts_key else PROMPTS[name]


def _known(name: str) -> TaskFacts:
    for facts in FACTS:
        if facts.name == name:
            return facts
    close = difflib.get_close_matches(name.lower(), TASK_NAMES, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(TASK_NAMES)}"
    raise ConfigError(f"there is no task {name!r}{hint}")
