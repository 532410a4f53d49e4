"""`cit predict`: the most probable classes of pictures, by a saved model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.table import Table

from cit_curate.config import MetadataConfig
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.printing import print_json
from cit_curate.terminal import add_row, count_and_rate, draw, print_line, progress_bar
from cit_curate.text_encoder.hub import HUB_PREFIX, hub_folder

if TYPE_CHECKING:  # imports torch, which `--help` must not wait for
    from cit_train.evaluation.class_mapping import ClassLabels
    from cit_train.evaluation.pooled_images import RejectedImage
    from cit_train.evaluation.predict import Prediction


def predict(
    model: tyro.conf.Positional[str],
    *,
    image: tuple[Path, ...],
    labels: str,
    labels_column: str = "",
    top: int = 5,
    prompts: tuple[str, ...] = (),
    mapping: Path | None = None,
    tokenizer: str = "",
    max_text_length: int | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Classify pictures by class names, without training on those classes.

    The similarity is the cosine of picture and class text; the probability is the softmax over all
    classes of the model's logit scale times the cosine. A class mapping renames classes or groups
    several under one label: then probabilities are summed and the best similarity is shown.
    Pictures that cannot be opened are listed; the exit code is 3 when none can.

        cit predict RUN --image cat.jpg dog.jpg --labels classes.txt
        cit predict RUN --image pictures/ --labels classes.txt --mapping coarse.csv --json

    Args:
        model: A run (its best checkpoint, else its last), a checkpoint's folder, or hf://org/name.
        image: Picture files, or folders of them.
        labels: The classes, in any form that --metadata takes, such as a file with one a line.
        labels_column: Column of the classes, when --labels is a CSV, a TSV or JSON objects.
        top: Maximum labels of a picture.
        prompts: Templates of the class names; several are averaged. By default the run's,
            or "a photo of a {}".
        mapping: CSV or TSV with the columns class (name, or number from 0) and label; or JSON: an
            object {class: label}, or a list of labels.
        tokenizer: Tokenizer to use instead of the model's own: a directory or hf://org/name.
        max_text_length: Maximum tokens of a prompt; by default the run's, or 32.
        device: auto = the first GPU, else the CPU; cpu, cuda or cuda:N.
        json: Print one JSON document instead of tables.
    """
    from cit_curate.metadata.entries import read_metadata

    prompts, tokens = _settings(model, prompts, max_text_length, top)
    read = read_metadata(
        MetadataConfig(metadata=labels, metadata_column=labels_column), flag="--labels"
    )
    for line in read.lines:
        print_line(line, stderr=True)
    classes = read.entries
    # These import torch, which takes seconds.
    from cit_curate.text_encoder.encoder import choose_device
    from cit_train.evaluation.class_mapping import map_classes, plain_labels
    from cit_train.evaluation.predict import Prediction, find_images, predict_images
    from cit_train.evaluation.zero_shot import class_features
    from cit_train.models.load import load_dual_encoder

    class_labels = map_classes(classes, mapping) if mapping else plain_labels(classes)
    paths, rejected = find_images(image)
    _check_some(paths, rejected)
    folder = hub_folder(model) if model.startswith(HUB_PREFIX) else Path(model)
    encoder, text_tokenizer = load_dual_encoder(
        folder, device=str(choose_device(device)), tokenizer=tokenizer or None
    )
    vectors = class_features(encoder, text_tokenizer, classes, prompts, max_text_length=tokens)
    predictions: list[Prediction] = []
    with progress_bar() as progress:
        bar = progress.add_task("predicting", total=len(paths), numbers="")

        def on_image(done: int) -> None:
            seconds = progress.tasks[bar].elapsed
            numbers = count_and_rate(done, len(paths), seconds, "pictures")
            progress.update(bar, completed=done, numbers=numbers)

        for result in predict_images(
            encoder, paths, vectors, class_labels, top=top, on_image=on_image
        ):
            if isinstance(result, Prediction):
                predictions.append(result)
            else:
                rejected.append(result)
    _check_some(predictions, rejected)
    if json:
        _show_json(model, class_labels, predictions, rejected)
    else:
        _print_tables(predictions)
    _print_warnings(class_labels, mapping, rejected)


def _settings(
    model: str, prompts: tuple[str, ...], max_text_length: int | None, top: int
) -> tuple[tuple[str, ...], int]:
    """The prompts and the maximum text length: the flags', else the run's, else the defaults."""
    from cit_curate.run.ledger import Run
    from cit_train.evaluation.prompts import DEFAULT_PROMPTS, prompts_of_run

    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1")
    is_run = (Path(model) / "manifests").is_dir()
    settings = Run.open(model).config if is_run else {}
    prompts = prompts or prompts_of_run(settings) or DEFAULT_PROMPTS
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise ConfigError(f"--prompts: {prompt!r} needs {{}} once, for the class name")
    tokens = (
        int(settings.get("max_text_length", 32)) if max_text_length is None else max_text_length
    )
    if tokens < 4:
        raise ConfigError(f"--max-text-length is {tokens}; it must be at least 4")
    return prompts, tokens


def _check_some(usable: Sequence[object], rejected: Sequence["RejectedImage"]) -> None:
    """Raise when no picture is left."""
    if not usable:
        shown = "; ".join(map(_line, rejected[:3]))
        more = f"; and {len(rejected) - 3:,} more" if len(rejected) > 3 else ""
        raise BadInputError(f"--image: none of the pictures can be opened: {shown}{more}")


def _line(rejected: "RejectedImage") -> str:
    return f"{rejected.title}: {rejected.reason} ({rejected.detail})"


def _show_json(
    model: str,
    labels: "ClassLabels",
    predictions: Sequence["Prediction"],
    rejected: Sequence["RejectedImage"],
) -> None:
    value = {
        "model": model,
        "num_classes": len(labels.label_of),
        "num_labels": len(labels.labels),
        "images": [
            {
                "image": str(prediction.path),
                "predictions": [
                    {
                        "rank": rank,
                        "label": guess.label,
                        "similarity": guess.similarity,
                        "probability": guess.probability,
                    }
                    for rank, guess in enumerate(prediction.guesses, 1)
                ],
            }
            for prediction in predictions
        ],
        "rejected": [
            {"image": image.title, "reason": image.reason, "detail": image.detail}
            for image in rejected
        ],
    }
    print_json(value)


def _print_tables(predictions: Sequence["Prediction"]) -> None:
    for prediction in predictions:
        table = Table()
        table.add_column("rank", justify="right")
        table.add_column("label", overflow="fold")
        table.add_column("similarity", justify="right")
        table.add_column("probability %", justify="right")
        for rank, guess in enumerate(prediction.guesses, 1):
            add_row(
                table,
                str(rank),
                guess.label,
                f"{guess.similarity:.3f}",
                f"{100 * guess.probability:.1f}",
            )
        print_line(str(prediction.path))
        draw(table)


def _print_warnings(
    labels: "ClassLabels", mapping: Path | None, rejected: Sequence["RejectedImage"]
) -> None:
    """Print the rejected pictures and the mismatches of a mapping to stderr."""
    lines = [f"not classified: {_line(image)}" for image in rejected]
    if labels.unmatched:
        lines.append(f"{mapping} names unknown classes: {_some(labels.unmatched)}")
    if labels.unmapped:
        lines.append(f"not in {mapping}, so under their own names: {_some(labels.unmapped)}")
    for line in lines:
        print_line(line, stderr=True)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + rest
