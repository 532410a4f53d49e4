"""Pools of real captions that benchmarks read, without images: of packages, and of any list."""

import csv
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from cit_curate.config import CurateConfig
from cit_curate.curation.scores.scanned_texts import scanned_texts
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.sources.columns import Columns
from cit_curate.storage.cache_folder import cache_folder
from cit_train.demo.assets import fetch_deb
from cit_train.demo.clipart import write_clipart_table


def clip_art_pool(folder: Path) -> Pool:
    """All texts of the clip art that `cit demo` fetches: 14,904 captions of 6,897 pictures."""
    roots = [
        fetch_deb(name, cache_folder(), lambda line: None)
        for name in ("openclipart-png", "openclipart-svg")
    ]
    table = folder / "clipart.csv"
    write_clipart_table(roots[0], roots[1], table)
    columns = Columns(image_id="image_id", image=None, text=("title", "desc", "tag"))
    return Pool.build([table], folder / "clipart", columns=columns)


def distinct_captions() -> list[str]:
    """Distinct real captions: of the clip art in `tests/golden`, and definitions of synsets."""
    golden = Path(__file__).parents[2] / "tests" / "golden" / "captions.csv"
    with golden.open(newline="", encoding="utf-8") as stream:
        clip_art = [row["caption"] for row in csv.DictReader(stream)]
    lines = files("timm.data").joinpath("_info/imagenet_synset_to_definition.txt").read_text()
    definitions = [line.partition("\t")[2] for line in lines.splitlines()]
    return list(dict.fromkeys([*clip_art, *definitions]))


def distinct_clip_art_captions(folder: Path, count: int) -> list[str]:
    """The clip art's captions, as visit after visit with tags augmented anew gives them, each once.

    Args:
        folder: Where the pool is built.
        count: How many; a visit gives about 2,000 that were not there before.
    """
    folder.mkdir(exist_ok=True)
    pool = clip_art_pool(folder)
    rules = CurateConfig(texts="every", aug_tag=True)
    order = MixedOrder(PoolMixture.of(pool), seed=0, texts="every")
    captions: dict[str, None] = {}
    for batch in order.batches(PoolCursor(), 2_048, None):
        captions |= dict.fromkeys(scanned_texts(rules, 0, [batch]).array.to_pylist())
        if len(captions) >= count:
            break
    return list(captions)[:count]


def caption_pool(folder: Path, captions: Sequence[str]) -> Pool:
    """A pool with one caption an image."""
    folder.mkdir(exist_ok=True)
    table = folder / "captions.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image_id", "title"))
        writer.writerows((f"{row:08d}", caption) for row, caption in enumerate(captions))
    columns = Columns(image_id="image_id", image=None, text=("title",))
    return Pool.build([table], folder / "captions", columns=columns)
