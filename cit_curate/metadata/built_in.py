"""The built-in lists by name: each task, their union `mt`, and `imagenet21k`."""

from cit_curate.errors import ConfigError
from cit_curate.metadata.libraries import imagenet21k_lemmas
from cit_curate.metadata.lines import MetadataEntry, merge_entries
from cit_curate.metadata.tasks import TASK_NAMES, load_classes, load_prompts

__all__ = ["BUILT_IN_NAMES", "built_in_entries", "imagenet21k", "multi_task"]

BUILT_IN_NAMES = (*TASK_NAMES, "mt", "imagenet21k")


def built_in_entries(name: str, *, with_prompts: bool = False) -> list[MetadataEntry]:
    """The entries of a built-in list; classes with the same name are one entry.

    Args:
        name: One of `BUILT_IN_NAMES`.
        with_prompts: Attach to each entry the prompts of its tasks.

    Raises:
        ConfigError: The library with the names is missing, or the list has no prompts.
    """
    if name == "mt":
        return multi_task(with_prompts=with_prompts)
    if name == "imagenet21k":
        if with_prompts:
            raise ConfigError(
                "--template-metadata: imagenet21k is not a task and has no prompts; give them with "
                "--templates"
            )
        return imagenet21k()
    return merge_entries(_task_entries(name, with_prompts=with_prompts))


def multi_task(*, with_prompts: bool = False) -> list[MetadataEntry]:
    """The metadata `mt`: every name and synonym of every task, each an entry of its own.

    They are in the order of the tasks and their classes; a repeated string is one entry, at its
    first occurrence (docs/method.md, "Evaluation").

    Args:
        with_prompts: Attach to each entry the prompts of all tasks that contain it, in their order.

    Raises:
        ConfigError: The library with the names is missing.
    """
    return merge_entries(
        MetadataEntry(name, prompts=entry.prompts)
        for task in TASK_NAMES
        for entry in _task_entries(task, with_prompts=with_prompts)
        for name in entry.names
    )


def imagenet21k() -> list[MetadataEntry]:
    """The metadata `imagenet21k`: the lemmas of its 21,841 WordNet synsets, by synset id.

    An entry's name is its synset's first lemma that is not the name of an earlier entry; the other
    lemmas are synonyms. So senses of a word stay apart: the cell of biology is `cell`, that of a
    prison `jail cell | cell | prison cell`. A synset whose lemmas are all names of earlier entries
    adds no text and is left out.

    Raises:
        ConfigError: timm lacks the lists.
    """
    entries: dict[str, MetadataEntry] = {}
    for lemmas in imagenet21k_lemmas():
        name = next((lemma for lemma in lemmas if lemma not in entries), None)
        if name is not None:
            others = tuple(dict.fromkeys(lemma for lemma in lemmas if lemma != name))
            entries[name] = MetadataEntry(name, others)
    return list(entries.values())


def _task_entries(task: str, *, with_prompts: bool) -> list[MetadataEntry]:
    prompts = load_prompts(task) if with_prompts else ()
    return [MetadataEntry(entry.name, entry.synonyms, prompts) for entry in load_classes(task)]
