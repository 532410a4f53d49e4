"""What `cit eval` does: zero-shot accuracy of a saved model on an image folder."""

import json as json_format
import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cit_curate.errors import ConfigError
from cit_curate.ledger import Run


def evaluate(
    model: tyro.conf.Positional[Path],
    *,
    data: Path,
    classes: Path | None = None,
    prompts: tuple[str, ...] = (),
    max_text_length: int | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Classify the pictures of a folder by the names of its classes.

        cit eval RUN --data pictures --prompts "a photo of a {}" "a drawing of a {}"

    Args:
        model: A checkpoint's folder, or a run (its best checkpoint, else its last).
        data: Folder with one sub-folder of pictures for each class.
        classes: File of the classes' names, when the sub-folders' names are not.
            One a line, in the order of the sorted sub-folders; or a CSV with columns folder, class.
        prompts: Templates of the class names; several are averaged. Left out, those of the run,
            or "a photo of a {}".
        max_text_length: Prompts are cut to this many tokens; left out, as in the run, or 32.
        device: auto = the first GPU, else the CPU; cpu, cuda or cuda:N.
        json: Print one JSON document instead of a table.
    """
    from cit_curate.text_encoder import choose_device
    from cit_train.evaluation.image_folder import ImageFolder
    from cit_train.evaluation.zero_shot import evaluate as evaluate_folder
    from cit_train.evaluation.zero_shot import pooled_images
    from cit_train.models.load import load_dual_encoder

    is_run = (model / "manifests").is_dir()
    settings = Run.open(model).config if is_run else {}
    prompts = prompts or tuple(settings.get("prompts", ("a photo of a {}",)))
    tokens = max_text_length or int(settings.get("max_text_length", 32))
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise ConfigError(f"--prompts: {prompt!r} needs {{}} once, for the class name")
    folder = ImageFolder.open(data, classes)
    encoder, tokenizer = load_dual_encoder(model, device=str(choose_device(device)))
    pooled = pooled_images(encoder, folder.paths)
    result = evaluate_folder(
        encoder, tokenizer, pooled, folder, prompts=prompts, max_text_length=tokens
    )
    if json:
        value = {
            "model": str(model),
            "data": str(data),
            "num_images": result.num_images,
            "num_classes": result.num_classes,
            "num_rejected": result.num_rejected,
            "accuracy": result.accuracy,
            "mean_per_class": result.mean_per_class,
            "chance": result.chance,
            "per_class": {
                name: {"num_images": each.num_images, "accuracy": each.accuracy}
                for name, each in result.per_class.items()
            },
        }
        sys.stdout.write(json_format.dumps(value) + "\n")
        return
    table = Table(title=f"zero-shot on {data}", title_justify="left")
    table.add_column("class")
    table.add_column("pictures", justify="right")
    table.add_column("accuracy %", justify="right")
    for name, each in result.per_class.items():
        table.add_row(Text(name), f"{each.num_images:,}", f"{each.accuracy:.1f}")
    table.add_section()
    table.add_row("accuracy", f"{result.num_images:,}", f"{result.accuracy:.1f}")
    table.add_row("mean per class", f"{result.num_classes:,}", f"{result.mean_per_class:.1f}")
    table.add_row("chance", "", f"{result.chance:.1f}")
    Console().print(table)
    if result.num_rejected:
        Console(stderr=True).print(f"{result.num_rejected} pictures could not be opened")
