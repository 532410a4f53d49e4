"""One pass of curation over real captions, against the plain loop of `baseline.py`.

    python -m scripts.bench.curation [--repeats 3] [--json FILE] [--captions 16384] [--device cuda]

Four pools: the clip art's captions as they are, the same with tags augmented at every visit, and
two of captions that are all distinct. The selections are compared, pair by pair.
"""

import json
import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

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
TEXT = TextTowerConfig(text_encoder="package:minilm", pooling="mean")
RULES = CurateConfig(
    threshold=0.55, min_ratio=0.003, collection="multiset", texts="every", aug_tag=False
)


def main() -> None:
    """Print the tables."""
    parser = bench_parser(__doc__)
    parser.add_argument("--captions", type=int, default=16_384, help="of the distinct ones")
    parser.add_argument("--text-encoder", default=TEXT.text_encoder)
    add_device(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cit-bench-") as name:
        folder = Path(name)
        clip_art = clip_art_pool(folder)
        distinct = caption_pool(folder / "distinct", distinct_captions()[: options.captions])
        captions = distinct_clip_art_captions(folder / "visits", options.captions)
        distinct_clip_art = caption_pool(folder / "distinct-clip-art", captions)
        comparisons = [
            compare(title, pool, replace(RULES, aug_tag=aug_tag), folder, options)
            for title, pool, aug_tag in (
                ("clip-art captions", clip_art, False),
                ("clip-art, tags augmented", clip_art, True),
                ("distinct captions", distinct, False),
                ("distinct clip-art captions", distinct_clip_art, False),
            )
        ]
    show(comparisons, options.json)


def compare(
    title: str, pool: Pool, rules: CurateConfig, folder: Path, options: Namespace
) -> Comparison:
    """Both ways over one pass of a pool; an error when their selections differ."""
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
        warm_up=False,
    )
    if any(each != kept[0] for each in kept):
        raise SystemExit(f"{title}: the selections differ")
    return replace(
        found,
        facts={
            "captions": len(texts),
            "distinct": f"{len(set(texts)) / len(texts):.0%}",
            "tokens each": len(TextEncoder(tower, tokenizer, device=device).tokenize(texts).ids)
            / len(texts),
            "kept": len(kept[0]),
        },
    )


if __name__ == "__main__":
    main()
