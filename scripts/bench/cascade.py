"""A cascade beside exact curation and the plain loop, where few and where many captions pass.

    python -m scripts.bench.cascade [--ratios 0.003 0.01 0.05 0.15] [--captions 32768] [--json FILE]
    python -m scripts.bench.cascade --captions 262144 --pools "clip art" --ratios 0.01 0.05

Two pools of captions that are all distinct: clip art's, and ImageNet's definitions of synsets.
Every caption is embedded once, which gives the thresholds and the truth. The plain loop's rate is
taken on the first 2,048 captions, before and after. A cascade's time includes its calibration; the
column "without" leaves that out, as a scan of millions of captions would. Each share is taken
twice: with captions that are tokenised when they are met, and after `cit pool tokenize`.
"""

import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curator import Curator
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.curation.scan_ledger import round_row
from cit_curate.curation.scores.cascade import CascadeScores
from cit_curate.curation.scores.exact import ExactScores
from cit_curate.curation.scores.score_cache import ScoreCache
from cit_curate.pool.pool import Pool
from cit_curate.pool.tokenize_command import tokenize
from cit_curate.records import Float32, PoolCursor
from cit_curate.text_encoder.encoder import TextEncoder, choose_device
from cit_curate.text_encoder.load import load_text_tower
from cit_curate.text_encoder.texts import Texts
from scripts.bench.baseline import curate_plainly
from scripts.bench.caption_pools import caption_pool, distinct_captions, distinct_clip_art_captions
from scripts.bench.curation import LABELS, RULES, TEXT
from scripts.bench.side_by_side import (
    Comparison,
    Timing,
    add_device,
    bench_parser,
    seconds_of,
    show,
)

PLAIN_CAPTIONS = 2_048


def main() -> None:
    """Print the tables."""
    parser = bench_parser(__doc__)
    parser.add_argument("--captions", type=int, default=32_768, help="of a pool, at most")
    names = ["clip art", "definitions"]
    parser.add_argument("--pools", nargs="+", default=names, choices=names)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.003, 0.01, 0.05, 0.15])
    parser.add_argument("--proxy", default=RULES.proxy, choices=("both", "tokens", "int8"))
    parser.add_argument("--target-recall", type=float, default=RULES.target_recall)
    parser.add_argument("--text-encoder", default=TEXT.text_encoder)
    parser.add_argument("--compile", action="store_true", help="what is not the plain loop")
    add_device(parser)
    options = parser.parse_args()
    comparisons = []
    with tempfile.TemporaryDirectory(prefix="cit-bench-") as name:
        folder = Path(name)
        for title in options.pools:
            if title == "clip art":
                captions = distinct_clip_art_captions(folder / "visits", options.captions)
            else:
                captions = distinct_captions()[: options.captions]
            comparisons.append(compare(title, captions, folder, options))
    show(comparisons, options.json)


def compare(title: str, captions: Sequence[str], folder: Path, options: Namespace) -> Comparison:
    """The plain loop, exact curation, and a cascade for each share that passes."""
    text = replace(TEXT, text_encoder=options.text_encoder)
    rules = replace(
        RULES, curation="cascade", proxy=options.proxy, target_recall=options.target_recall
    )
    pool = caption_pool(folder / title, captions)
    device = choose_device(options.device)
    tower, tokenizer = load_text_tower(text)
    encoder = TextEncoder(tower, tokenizer, device=device, compiled=options.compile)
    curator = Curator(pool, MetadataConfig(metadata=str(LABELS)), rules)
    names = [entry.name for entry in curator.entries]
    plain = [plain_seconds(captions, names, text, folder, device)]
    started = time.perf_counter()
    index = curator.refresh(encoder)
    assert index is not None
    exact = ExactScores(rules, 0, encoder, index, ScoreCache(limit=0))
    similarity = exact.of(Texts.of(captions)).similarity
    timings = [Timing("exact", (time.perf_counter() - started,), len(captions))]
    for tokens in ("", ", tokens kept"):
        if tokens:
            tokenize(pool.path, text_encoder=text.text_encoder)
        for ratio in options.ratios:
            rates = replace(rules, threshold=float(np.quantile(similarity, 1 - ratio)))
            timing = cascade(pool, rates, encoder, similarity, options.repeats)
            timings.append(replace(timing, name=timing.name + tokens))
    plain.append(plain_seconds(captions, names, text, folder, device))
    timings.insert(0, Timing("plain loop", tuple(plain), PLAIN_CAPTIONS))
    num_tokens = encoder.tokenize(list(captions)).counts
    return Comparison(
        title=f"{title}, all distinct",
        unit="captions",
        timings=tuple(timings),
        facts={"captions": len(captions), "tokens each": float(num_tokens.mean())},
    )


def cascade(
    pool: Pool, rules: CurateConfig, encoder: TextEncoder, similarity: Float32, repeats: int
) -> Timing:
    """One pass with a cascade, and how it compares with the truth."""
    metadata = MetadataConfig(metadata=str(LABELS))
    seconds, without = [], []
    for _ in range(repeats):
        curator = Curator(pool, metadata, rules)  # nothing is left from the last turn
        make_scores = curator.lane_scores(encoder, curator.refresh(encoder))
        assert make_scores is not None
        scores = make_scores(0, PoolCursor())
        assert isinstance(scores, CascadeScores)
        step = OuterStep(0, update=0, encoder=encoder.fingerprint)
        scan = curator.scan(step, 0, PoolCursor(), lambda *_, scores=scores: scores)
        started = time.perf_counter()
        scores.calibrate()
        calibrated = time.perf_counter()
        rows = scan.take(None)
        seconds.append(time.perf_counter() - started)
        without.append(time.perf_counter() - calibrated)
    kept = rows["image_id"].cast("int64").to_numpy()
    passing = np.flatnonzero(similarity > np.float32(rules.threshold))
    (row,) = round_row(scan, selected=len(rows)).to_pylist()
    audited = max(row["recalls"], key=lambda each: each["kept"])
    count = len(similarity)
    return Timing(
        f"cascade, {len(passing) / count:.1%} pass",
        tuple(seconds),
        count,
        notes={
            "scored": f"{1 - row['skipped'] / count:.1%}",
            "recall": f"{len(np.intersect1d(kept, passing)) / len(passing):.2%}",
            "audited": f"{audited['estimate']:.1%} ({audited['low']:.0%}-{audited['high']:.0%})",
            "without": f"{(count - rules.calibration_captions) / np.median(without):,.0f}",
        },
    )


def plain_seconds(
    captions: Sequence[str],
    names: Sequence[str],
    text: TextTowerConfig,
    folder: Path,
    device: torch.device,
) -> float:
    """Seconds of the plain loop for the first captions."""
    metadata_file = folder / "metadata.json"
    pairs = [(str(row), caption) for row, caption in enumerate(captions[:PLAIN_CAPTIONS])]
    metadata_file.write_text(json.dumps(pairs), encoding="utf-8")
    tower, tokenizer = load_text_tower(text)
    tower = tower.eval().to(device)
    rules = {"threshold": RULES.threshold, "min_ratio": RULES.min_ratio}
    return seconds_of(
        lambda: curate_plainly(
            metadata_file, names, tower, tokenizer, **rules, scan_batch=PLAIN_CAPTIONS
        )
    )


if __name__ == "__main__":
    main()
