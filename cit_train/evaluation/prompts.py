"""Which prompts the class names of a task are put into."""

from collections.abc import Mapping, Sequence
from typing import Any

from cit_curate.metadata.tasks import IMAGENET_EXTRA_PROMPTS, Task

__all__ = ["DEFAULT_PROMPTS", "NAME_ONLY", "choose_prompts", "prompts_of_run"]

DEFAULT_PROMPTS = ("a photo of a {}",)
# `use_template` off: the class name as it is.
NAME_ONLY = ("{}",)


def choose_prompts(
    task: Task | None,
    *,
    given: Sequence[str] = (),
    beside: Sequence[str] = (),
    use_template: bool = True,
    extra_prompts: bool = False,
) -> tuple[str, ...]:
    """The prompts of a task: those given, else the built-in ones, else those beside the data.

    Args:
        task: The built-in task; None = one of one's own.
        given: Asked for by a person.
        beside: That lie beside the images of a task of one's own.
        use_template: Off = the class name alone, whatever else is asked for.
        extra_prompts: Add ImageNet's two further ones (docs/method.md, "Evaluation").
    """
    if not use_template:
        return NAME_ONLY
    prompts = tuple(given) or (task.prompts if task else tuple(beside)) or DEFAULT_PROMPTS
    further = IMAGENET_EXTRA_PROMPTS if extra_prompts else ()
    return (*prompts, *(prompt for prompt in further if prompt not in prompts))


def prompts_of_run(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The prompts that a run was evaluated with on a folder of one's own; empty = not known.

    Args:
        settings: The run's `config.json`.
    """
    return tuple(settings.get("prompts", ())) if settings.get("use_template", True) else NAME_ONLY
