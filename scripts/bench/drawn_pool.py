"""A pool of drawn pictures, for machines to which nothing can be fetched.

Every second picture has a caption about something else (the definitions of ImageNet's synsets, from
an installed package), so that curation has something to leave out.
"""

import csv
import io
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from cit_train.config import RunConfig, replace_fields
from cit_train.recipes import laptop

COLOURS = {
    "red": (210, 30, 30),
    "green": (30, 170, 40),
    "blue": (40, 60, 210),
    "yellow": (240, 220, 40),
    "white": (245, 245, 245),
    "purple": (130, 40, 160),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZE = (160, 120)


def definitions() -> list[str]:
    """What ImageNet's synsets mean: about 21,000 distinct texts."""
    lines = files("timm.data").joinpath("_info/imagenet_synset_to_definition.txt").read_text()
    return list(dict.fromkeys(line.partition("\t")[2] for line in lines.splitlines()))


def draw(colour: str, shape: str, rng: np.random.Generator) -> bytes:
    """A JPEG of one shape on a noisy ground."""
    ground = rng.integers(90, 150, (*SIZE[::-1], 3)).astype(np.uint8)
    image = Image.fromarray(ground)
    canvas, side = ImageDraw.Draw(image), int(rng.integers(40, 90))
    left, upper = (int(rng.integers(0, length - side)) for length in SIZE)
    box = (left, upper, left + side, upper + side)
    middle = (left + side // 2, upper + side // 2)
    value = COLOURS[colour]
    if shape == "circle":
        canvas.ellipse(box, fill=value)
    elif shape == "square":
        canvas.rectangle(box, fill=value)
    elif shape == "triangle":
        canvas.polygon([(middle[0], upper), (left, box[3]), (box[2], box[3])], fill=value)
    else:
        canvas.line([(left, upper), (box[2], box[3])], fill=value, width=side // 4)
        canvas.line([(left, box[3]), (box[2], upper)], fill=value, width=side // 4)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def draw_pool(folder: Path, num_images: int) -> Pool:
    """A pool in `folder/pool`, the same every time; an existing one is opened.

    Args:
        folder: A folder of its own.
        num_images: The pictures, each with a title and tags.
    """
    if (folder / "pool").exists():
        return Pool.open(folder / "pool")
    rng, others = np.random.default_rng(0), definitions()
    (folder / "images").mkdir(parents=True)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image_id", "image", "title", "tag"))
        for number in range(num_images):
            colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
            path = f"images/{number:06d}.jpg"
            (folder / path).write_bytes(draw(colour, shape, rng))
            size = rng.choice(("small", "large", "very large"))
            texts = (f"a {size} {colour} {shape}, no. {number}", f"{colour},{shape},drawing")
            if number % 2:
                other = others[number % len(others)]
                texts = (other, ",".join(other.split()[:3]))
            writer.writerow((f"{number:06d}", path, *texts))
    columns = Columns(image_id="image_id", image="image", text=("title", "tag"))
    return Pool.build([folder / "pairs.csv"], folder / "pool", columns=columns)


def draw_classes(folder: Path, each: int) -> None:
    """The class names in `folder/classes.txt`, and `folder/pictures` with a folder for each class.

    Existing ones stay.

    Args:
        folder: A folder of its own.
        each: Pictures of a class.
    """
    if (folder / "classes.txt").exists():
        return
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    rng = np.random.default_rng(1)
    for colour, shape in names:
        own = folder / "pictures" / f"{colour} {shape}"
        own.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (own / f"{number}.jpg").write_bytes(draw(colour, shape, rng))
    text = "".join(f"{colour} {shape}\n" for colour, shape in names)
    (folder / "classes.txt").write_text(text, encoding="utf-8")


def drawn_config(folder: Path, num_images: int) -> RunConfig:
    """The recipe `laptop` on drawn pictures, which are made in a folder if they are not there."""
    pool = draw_pool(folder, num_images)
    draw_classes(folder, each=2)
    return replace_fields(
        laptop(),
        pool=str(pool.path),
        metadata=str(folder / "classes.txt"),
        eval_data=str(folder / "pictures"),
    )
