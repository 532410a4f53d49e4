"""Small real models and pools for training tests: seconds on a CPU."""

import csv
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from cit_train.config import RunConfig, replace_fields
from cit_train.models.timm_tower import MocoConfig, MocoModel
from cit_train.recipes import default

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "white": (250, 250, 250),
}
SHAPES = ("disc", "square", "stripe", "noise")
WORDS = [*COLOURS, *SHAPES, "a", "photo", "of", "big", "small", "very", "thing", ","]


def make_text_tower(folder: Path) -> Path:
    """A random BERT of 2 layers with a tokenizer that knows `WORDS`."""
    vocabulary = {
        word: number
        for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    }
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_vision_tower(folder: Path) -> Path:
    """A random ViT of 2 layers for pictures of 32 x 32."""
    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    return folder


def make_moco_tower(folder: Path) -> Path:
    """A random MoCo tower of timm's smallest ViT, for pictures of 32 x 32."""
    torch.manual_seed(4)
    config = MocoConfig(
        config_name="vit_tiny_patch16_224", image_size=32, projector_size=24, hidden_size=12
    )
    MocoModel(config).save_pretrained(folder)
    return folder


def picture(colour: str, shape: str, seed: int) -> bytes:
    """A PNG of a coloured shape."""
    rng = np.random.default_rng(seed)
    pixels = np.full((40, 48, 3), 128, dtype=np.uint8)
    value = COLOURS[colour]
    if shape == "disc":
        rows, columns = np.ogrid[:40, :48]
        pixels[(rows - 20) ** 2 + (columns - 24) ** 2 < 200] = value
    elif shape == "square":
        pixels[8:32, 10:34] = value
    elif shape == "stripe":
        pixels[::4] = value
    else:
        pixels[rng.random((40, 48)) < 0.5] = value
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def make_pool(folder: Path, *, num_images: int = 96, broken: tuple[int, ...] = ()) -> Path:
    """A pool of coloured shapes with title and tag; images at `broken` are cut in half."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "image", "title", "tag"])
        for number in range(num_images):
            colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
            data = picture(colour, shape, number)
            path = images / f"{number:04d}.png"
            path.write_bytes(data[: len(data) // 2] if number in broken else data)
            size = rng.choice(["big", "small", "very small"])
            row = [f"{number:04d}", f"images/{path.name}", f"a {size} {colour} {shape}"]
            writer.writerow([*row, f"{colour},{shape},thing"])
    columns = Columns(image_id="image_id", image="image", text=("title", "tag"))
    Pool.build([folder / "pairs.csv"], folder / "pool", columns=columns)
    return folder / "pool"


def make_pictures(folder: Path) -> Path:
    """An image folder: one sub-folder a colour, 4 pictures each."""
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for number, shape in enumerate(SHAPES):
            (folder / colour / f"{shape}.png").write_bytes(picture(colour, shape, 1000 + number))
    return folder


def make_config(folder: Path, **changes: object) -> RunConfig:
    """A run of 6 updates and 3 outer steps on a tiny pool, made below `folder` where missing."""
    if not (folder / "text").exists():
        make_text_tower(folder / "text")
        make_vision_tower(folder / "vision")
        make_pool(folder / "data", broken=tuple(range(0, 96, 6)))
        make_pictures(folder / "pictures")
        (folder / "classes.txt").write_text("red disc\nblue square\ngreen stripe\n")
    fields = {
        "pool": str(folder / "data" / "pool"),
        "metadata": str(folder / "classes.txt"),
        "text_encoder": str(folder / "text"),
        "vision_encoder": str(folder / "vision"),
        "threshold": 0.5,
        "min_ratio": 0.25,
        "batch_size": 8,
        "curate_every": 2,
        "max_updates": 6,
        "max_passes": 3,
        "pairs_per_shard": 8,
        "projection_dim": 16,
        "eval_data": str(folder / "pictures"),
        "eval_every": 3,
        "lr": 1e-3,
        "device": "cpu",
        "threads": 1,
        "vector_cache_bytes": 0,  # many tests share the pool, and each embeds what it needs
    }
    return replace_fields(default(), **{**fields, **changes})
