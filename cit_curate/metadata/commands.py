"""The commands `cit metadata list` and `cit metadata show`."""

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import tyro
from rich.table import Table

from cit_curate.config import MetadataConfig
from cit_curate.errors import ConfigError
from cit_curate.metadata.built_in import imagenet21k, multi_task
from cit_curate.metadata.entries import read_metadata
from cit_curate.metadata.lines import MetadataEntry, format_entry
from cit_curate.metadata.task_facts import FACTS, TaskFacts
from cit_curate.metadata.tasks import load_prompts
from cit_curate.printing import print_json
from cit_curate.terminal import add_row, draw, print_document, print_line

__all__ = ["list_built_in", "show"]


@dataclass(frozen=True, kw_only=True)
class ListedMetadata:
    """One line of `cit metadata list`; a number that needs a missing library is None."""

    name: str
    title: str
    entries: int | None
    prompts: int | None
    metric: str | None
    source: str


def list_built_in(*, json: bool = False) -> None:
    """List the built-in class names: the 26 tasks, their union mt, and imagenet21k.

    Entries are classes; for lists without a metric, distinct names. Source is where the names come
    from: cit itself or a library.

        cit metadata list
        cit train default --metadata mt ...

    Args:
        json: Print one JSON document instead of the table.
    """
    listed = [*map(_listed_task, FACTS), *_listed_unions()]
    if json:
        print_json([asdict(metadata) for metadata in listed])
        return
    _print_table(listed)
    if any(each.entries is None or each.prompts is None for each in listed):
        sys.stderr.write("? = with the library that ships it: pip install 'cit[tasks]'\n")


def show(
    metadata: tyro.conf.Positional[str],
    *,
    metadata_column: str = "",
    prompts: bool = False,
    limit: int | None = None,
    json: bool = False,
) -> None:
    """Print the class names of a built-in list or a file, as a metadata file.

    One entry a line, synonyms after |, and comments: redirect it to a file to get a metadata file
    of your own to edit. Entries with the same name are merged, as for curation.

        cit metadata show imagenet --limit 5
        cit metadata show cifar10 --prompts
        cit metadata show mt > classes.txt

    Args:
        metadata: A name of `cit metadata list`, or a file.
        metadata_column: Column that holds the entries of a CSV, a TSV or JSON objects.
        prompts: Show the prompts that --template-metadata would use, as comments.
        limit: Print this many entries only.
        json: Print one JSON document instead.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be at least 1")
    classes = read_metadata(
        MetadataConfig(
            metadata=metadata, metadata_column=metadata_column, template_metadata=prompts
        )
    )
    for line in classes.lines:
        print_line(line, stderr=True)
    entries = list(classes.entries)
    shown = entries[:limit]
    if json:
        print_json(_as_json(metadata, shown, num_entries=len(entries), with_prompts=prompts))
        return
    title = " ".join(metadata.split())
    lines = [f"# {title}: {len(entries):,} entries", *_entry_lines(shown)]
    if len(shown) < len(entries):
        lines.append(f"# and {len(entries) - len(shown):,} more, without --limit")
    print_document("\n".join(lines) + "\n")


def _entry_lines(entries: list[MetadataEntry]) -> list[str]:
    """The lines of the entries; a change of prompts is announced by comments."""
    lines = []
    last: tuple[str, ...] = ()
    for entry in entries:
        if entry.prompts != last:
            lines += [f"# prompt: {prompt}" for prompt in entry.prompts]
        last = entry.prompts
        lines.append(format_entry(entry))
    return lines


def _as_json(
    name: str, shown: list[MetadataEntry], *, num_entries: int, with_prompts: bool
) -> dict[str, object]:
    keys = ("name", "synonyms", "prompts") if with_prompts else ("name", "synonyms")
    described = [{key: getattr(entry, key) for key in keys} for entry in shown]
    return {"metadata": name, "num_entries": num_entries, "entries": described}


def _print_table(listed: Sequence[ListedMetadata]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("name", "title", "entries", "prompts", "metric", "source"):
        justify: Literal["left", "right"] = "right" if heading in ("entries", "prompts") else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for each in listed:
        numbers = ["?" if n is None else f"{n:,}" for n in (each.entries, each.prompts)]
        add_row(table, each.name, each.title, *numbers, each.metric or "", each.source)
    # Whole lines for `| grep`.
    draw(table, width=None if sys.stdout.isatty() else 120)


def _listed_task(facts: TaskFacts) -> ListedMetadata:
    return ListedMetadata(
        name=facts.name,
        title=facts.title,
        entries=facts.num_classes,
        prompts=_count(lambda: load_prompts(facts.name)),
        metric=facts.metric,
        source=facts.names_source,
    )


def _listed_unions() -> list[ListedMetadata]:
    multi = ListedMetadata(
        name="mt",
        title="all the tasks",
        entries=_count(multi_task),
        prompts=_count(lambda: {prompt for facts in FACTS for prompt in load_prompts(facts.name)}),
        metric=None,
        source="the tasks",
    )
    words = ListedMetadata(
        name="imagenet21k",
        title="WordNet lemmas",
        entries=_count(imagenet21k),
        prompts=0,
        metric=None,
        source="timm",
    )
    return [multi, words]


def _count(load: Callable[[], Collection[object]]) -> int | None:
    try:
        return len(load())
    except ConfigError:  # a library is missing; the list says so in a line of its own
        return None
