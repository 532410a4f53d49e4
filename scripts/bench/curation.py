"""One pass of curation over real captions, against the plain loop of `baseline.py`.

    python -m scripts.bench.curation [--repeats 3] [--json FILE] [--captions 16384] [--device cuda]

Four pools: the clip art's captions as they are, the same with tags augmented at every visit, and
two of captions that are all distinct. The selections are compared, pair by pair. On a GPU both ways
compute in float16, as the original does, and may differ in pairs that are close to the threshold.
"""

import json
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curator import Curator
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.curation.scores.scanned_texts import scanned_texts
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.text_encoder.encoder import TextEncoder, choose_device
from cit_curate.text_encoder.load import load_text_tower
from scripts.bench.baseline import curate_plainly
from scripts.bench.caption_pools import (
    caption_pool,
    clip_art_pool,
    distinct_captions,
    distinct_clip_art_captions,
)
from scripts.bench.side_by_side import Comparison, add_device, bench_parser, compare_ways, show

LABELS = Path(__file__).parents[2] / "tests" / "golden" / "labels.txt"
# The share of the kept pairs that may differ on a GPU, where the plain loop's scores are float16.
MOST_DIFFERING = 0.05
TEXT = TextTowerConfig(text_encoder="package:minilm", pooling="mean")
RULES = CurateConfig(
    threshold=0.55, min_ratio=0.003, collection="multiset", texts="every", aug_tag=False
)


def main() -> None:
    """Print the tables."""
    parser = bench_parser(__doc__)
    parser.add_argument("--captions", type=int, default=16_384, help="of the distinct ones")
    parser.add_argument("--text-encoder", default=TEXT.text_encoder)
    parser.add_argument("--packaged", action="store_true", help="fetch nothing: one pool only")
    add_device(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cit-bench-") as name:
        folder = Path(name)
        comparisons = [
            compare(title, pool, replace(RULES, aug_tag=aug_tag), folder, options)
            for title, pool, aug_tag in pools(folder, options)
        ]
    show(comparisons, options.json)


def pools(folder: Path, options: Namespace) -> Iterator[tuple[str, Pool, bool]]:
    """Each pool with its title, and whether its tags are augmented."""
    distinct = distinct_captions()[: options.captions]
    if not options.packaged:
        clip_art = clip_art_pool(folder)
        yield "clip-art captions", clip_art, False
        yield "clip-art, tags augmented", clip_art, True
    yield "distinct captions", caption_pool(folder / "distinct", distinct), False
    if not options.packaged:
        captions = distinct_clip_art_captions(folder / "visits", options.captions)
        pool = caption_pool(folder / "distinct-clip-art", captions)
        yield "distinct clip-art captions", pool, False


def compare(
    title: str, pool: Pool, rules: CurateConfig, folder: Path, options: Namespace
) -> Comparison:
    """Both ways over one pass of a pool; an error when their selections differ (see above)."""
    text = replace(TEXT, text_encoder=options.text_encoder)
    metadata = MetadataConfig(metadata=str(LABELS))
    curator = Curator(pool, metadata, rules)
    batches = list(curator.orders[0].batches(PoolCursor(), 2_048, curator.orders[0].length))
    texts = scanned_texts(rules, 0, batches).array.to_pylist()
    keys = [
        f"{image_id}_{text_key}"
        for batch in batches
        for image_id, text_key in zip(batch.rows["image_id"], batch.rows["text_key"], strict=True)
    ]
    metadata_file = folder / "metadata.json"
    metadata_file.write_text(json.dumps(list(zip(keys, texts, strict=True))), encoding="utf-8")
    device = choose_device(options.device)
    tower, tokenizer = load_text_tower(text)
    tower = tower.eval().to(device)
    kept: list[set[str]] = []

    def plain() -> None:
        with torch.autocast("cuda", torch.float16, enabled=device.type == "cuda"):
            kept.append(
                curate_plainly(
                    metadata_file,
                    [entry.name for entry in curator.entries],
                    tower,
                    tokenizer,
                    threshold=rules.threshold,
                    min_ratio=rules.min_ratio,
                    scan_batch=2_048,
                )
            )

    def ours() -> None:
        encoder = TextEncoder(*load_text_tower(text), device=device)
        fresh = Curator(pool, metadata, rules)  # nothing is left from the last turn
        scores = fresh.lane_scores(encoder, fresh.refresh(encoder))
        step = OuterStep(0, update=0, encoder=encoder.fingerprint)
        (selection,) = fresh.run(step, [PoolCursor()], scores, num_pairs=None)
        kept.append(set(selection.rows["pair_key"].to_pylist()))

    found = compare_ways(
        title,
        "captions",
        {"plain loop": plain, "cit": ours},
        len(texts),
        repeats=options.repeats,
        warm_up=device.type == "cuda",
    )
    differing = max(len(each ^ kept[0]) for each in kept)
    if differing > (MOST_DIFFERING * len(kept[0]) if device.type == "cuda" else 0):
        raise SystemExit(f"{title}: {differing} of {len(kept[0])} kept pairs differ")
    return replace(
        found,
        facts={
            "captions": len(texts),
            "distinct": f"{len(set(texts)) / len(texts):.0%}",
            "tokens each": len(TextEncoder(tower, tokenizer, device=device).tokenize(texts).ids)
            / len(texts),
            "kept": len(kept[0]),
            "differing": differing,
        },
    )


if __name__ == "__main__":
    main()
