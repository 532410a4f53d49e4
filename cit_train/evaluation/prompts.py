"""The choice of prompts for the class names of a task."""

from collections.abc import Mapping, Sequence
from typing import Any

from cit_curate.metadata.tasks import IMAGENET_EXTRA_PROMPTS, Task

__all__ = ["DEFAULT_PROMPTS", "NAME_ONLY", "choose_prompts", "prompts_of_run"]

DEFAULT_PROMPTS = ("a photo of a {}",)
# `use_template` off: the class name alone.
NAME_ONLY = ("{}",)


def choose_prompts(
    task: Task | None,
    *,
    requested: Sequence[str] = (),
    stored: Sequence[str] = (),
    use_template: bool = True,
    extra_prompts: bool = False,
) -> tuple[str, ...]:
    """The prompts of a task: the requested ones, else the built-in ones, else the stored ones.

    Args:
        task: The built-in task; None = a task of the user's own.
        requested: The prompts that the user requests.
        stored: The prompts that lie beside the images of a user's own task.
        use_template: False = the class name alone, which overrides all other prompts.
        extra_prompts: Whether to add two ImageNet prompts (docs/method.md, "Evaluation").
    """
    if not use_template:
        return NAME_ONLY
    prompts = tuple(requested) or (task.prompts if task else tuple(stored)) or DEFAULT_PROMPTS
    further = IMAGENET_EXTRA_PROMPTS if extra_prompts else ()
    return (*prompts, *(prompt for prompt in further if prompt not in prompts))


def prompts_of_run(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The prompts of a run's evaluations on an image folder; empty = unknown.

    Args:
        settings: The run's `config.json`.
    """
    return tuple(settings.get("prompts", ())) if settings.get("use_template", True) else NAME_ONLY
