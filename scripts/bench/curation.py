"""One pass of curation over real captions, against the plain loop of `baseline.py`.

    python -m scripts.bench.curation [--repeats 3] [--json FILE] [--captions 16384] [--device cuda]

Four pools: the clip art's captions as they are, the same with tags augmented at every visit, and
two of captions that are all distinct. The selections are compared, pair by pair.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
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
from scripts.bench.side_by_side import Comparison, Timing, add_device, add_output, show, take_turns

LABELS = Path(__file__).parents[2] / "tests" / "golden" / "labels.txt"
TEXT = TextTowerConfig(text_encoder="package:minilm", pooling="mean")
RULES = CurateConfig(
    threshold=0.55, min_ratio=0.003, collection="multiset", texts="every", aug_tag=False
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=16_384, help="of the distinct ones")
    parser.add_argument("--text-encoder", default=TEXT.text_encoder)
    add_device(parser)
    add_output(parser)
    asked = parser.parse_args()
    text = replace(TEXT, text_encoder=asked.text_encoder)
    with tempfile.TemporaryDirectory(prefix="cit-bench-") as name:
        folder = Path(name)
        clip_art = clip_art_pool(folder)
        distinct = caption_pool(folder / "distinct", distinct_captions()[: asked.captions])
        captions = distinct_clip_art_captions(folder / "visits", asked.captions)
        distinct_clip_art = caption_pool(folder / "distinct-clip-art", captions)
        augmented = replace(RULES, aug_tag=True)
        comparisons = [
            compare(title, pool, rules, text, folder, asked)
            for title, pool, rules in (
                ("clip-art captions", clip_art, RULES),
                ("clip-art, tags augmented", clip_art, augmented),
                ("distinct captions", distinct, RULES),
                ("distinct clip-art captions", distinct_clip_art, RULES),
            )
        ]
    show(comparisons, asked.json)


def compare(
    title: str,
    pool: Pool,
    rules: CurateConfig,
    text: TextTowerConfig,
    folder: Path,
    asked: argparse.Namespace,
) -> Comparison:
    """Both ways over one pass of a pool; an error when their selections differ."""
    metadata = MetadataConfig(metadata=str(LABELS))
    curator = Curator(pool, metadata, rules)
    batches = list(curator.orders[0].batches(PoolCursor(), 2_048, curator.orders[0].length))
    texts = scanned_texts(rules, 0, batches).array.to_pylist()
    keys = [
        f"{image}_{key}"
        for batch in batches
        for image, key in zip(
            *(batch.rows[n].to_pylist() for n in ("image_id", "text_key")), strict=True
        )
    ]
    metadata_file = folder / "metadata.json"
    metadata_file.write_text(json.dumps(list(zip(keys, texts, strict=True))), encoding="utf-8")
    tower, tokenizer = load_text_tower(text)
    device = choose_device(asked.device)
    tower = tower.eval().to(device)
    kept: dict[str, list[set[str]]] = {"plain loop": [], "cit": []}

    def plain() -> None:
        kept["plain loop"].append(
            curate_plainly(
                metadata_file, [entry.name for entry in curator.entries], tower, tokenizer,
                threshold=rules.threshold, min_ratio=rules.min_ratio, scan_batch=2_048,
            )
        )  # fmt: skip

    def ours() -> None:
        encoder = TextEncoder(*load_text_tower(text), device=device)
        fresh = Curator(pool, metadata, rules)  # nothing is left from the last turn
        scores = fresh.lane_scores(encoder, fresh.refresh(encoder))
        step = OuterStep(0, update=0, encoder=encoder.fingerprint)
        (selection,) = fresh.run(step, [PoolCursor()], scores, num_pairs=None)
        kept["cit"].append(set(selection.rows["pair_key"].to_pylist()))

    ways: dict[str, Callable[[], object]] = {"plain loop": plain, "cit": ours}
    seconds = take_turns(ways, repeats=asked.repeats, warm_up=False)
    if any(each != kept["cit"][0] for selections in kept.values() for each in selections):
        raise SystemExit(f"{title}: the selections differ")
    encoder = TextEncoder(*load_text_tower(text))
    return Comparison(
        title=title,
        unit="captions",
        baseline="plain loop",
        timings=tuple(Timing(name, times, len(texts)) for name, times in seconds.items()),
        facts={
            "captions": len(texts),
            "distinct": f"{len(set(texts)) / len(texts):.0%}",
            "tokens each": len(encoder.tokenize(texts).ids) / len(texts),
            "kept": len(kept["cit"][0]),
        },
    )


if __name__ == "__main__":
    main()
