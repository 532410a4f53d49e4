"""The command `cit curate`: a selection without training, or a sample to choose a threshold by."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.table import Table

from cit_curate.config import CurateConfig, EngineConfig, MetadataConfig, TextTowerConfig
from cit_curate.errors import ConfigError
from cit_curate.importing import long_imports
from cit_curate.printing import print_json
from cit_curate.terminal import add_row, draw, inert, print_line, progress_bar

if TYPE_CHECKING:  # they import Arrow, too slow for `--help`
    from cit_curate.curation.scan_rows import ScanTotals
    from cit_curate.curation.threshold import SimilaritySample
    from cit_curate.metadata.class_list import ClassList
    from cit_curate.run.ledger import Run


def curate(
    pool: tyro.conf.Positional[tuple[str, ...]],
    metadata: tyro.conf.OmitArgPrefixes[MetadataConfig] = MetadataConfig(),  # noqa: B008 - frozen
    text: tyro.conf.OmitArgPrefixes[TextTowerConfig] = TextTowerConfig(),  # noqa: B008
    config: tyro.conf.OmitArgPrefixes[CurateConfig] = CurateConfig(),  # noqa: B008
    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = EngineConfig(),  # noqa: B008
    *,
    out: Path | None = None,
    max_pairs: int | Literal["all"] | None = None,
    device: str = "auto",
    dry_run: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    r"""Keep the pairs of a pool whose caption is close to class names, without training.

    First choose a threshold on a sample of the pool. Then curate one whole pass, and look at it.

        cit curate POOL --metadata classes.txt --text-encoder package:minilm --pooling mean \
          --dry-run
        cit curate POOL --metadata classes.txt --text-encoder package:minilm --pooling mean \
          --threshold 0.5 --max-pairs all --out RUN
        cit report RUN
        cit curate A=0.7 B=0.3 --metadata classes.txt --out RUN

    After a kill, the same command goes on where it was; a scan of fewer than 32,768 captions starts
    over.

    Args:
        pool: The folder made by `cit pool build`; or several, each with its share of the scanned
            captions, as A=0.7 B=0.3, or NAME:A=0.7 to give one another name.
        metadata: The class names.
        text: The text tower.
        config: The rules.
        engine: Where captions are scored.
        out: The folder of the new run, for cit query, export and report.
        max_pairs: The pairs to keep in each lane; all = whole passes without a limit.
            Left out, it is curate_every x batch_size, as in training.
        device: auto = the first GPU, else the CPU; cpu, cuda or cuda:N.
        dry_run: Embed a sample of 5,000 captions and show what each threshold would keep.
        overwrite: Replace the run at --out.
        json: Print one JSON document instead of a summary.
    """
    from cit_curate.images.addresses import fetch_selected_advice
    from cit_curate.metadata.entries import read_metadata
    from cit_curate.pool.mixture import PoolMixture
    from cit_curate.run.ledger import Run

    if max_pairs is not None and max_pairs != "all" and max_pairs < 1:
        raise ConfigError(f"--max-pairs is {max_pairs}; it is at least 1, or all")
    if not pool:
        raise ConfigError("POOL is missing: give a folder made by `cit pool build`")
    opened = PoolMixture.open(pool)
    if out is None and not dry_run:
        raise ConfigError("--out is missing: give a folder for the run, or --dry-run")
    if out is not None and not dry_run:
        Run.check_free(out, overwrite=overwrite)
    classes = None
    if config.curation != "none" or metadata.metadata:
        classes = read_metadata(metadata)
        for line in classes.lines:
            print_line(line, stderr=True)
    for each in opened:
        if not each.pool.has_images and (num_images := each.pool.num_web_images()):
            print_line(fetch_selected_advice(each.pool.location, num_images), stderr=True)
    # Wrong names are reported by now, before torch is imported, which takes seconds.
    with long_imports():
        from cit_curate.curation.curate import curate as curate_pool
        from cit_curate.curation.curator import Curator, vectors_beside
        from cit_curate.text_encoder.encoder import TextEncoder

    if dry_run:
        curator = Curator(opened, metadata, config, kept=vectors_beside(opened, text))
        encoder = TextEncoder.load(text, device=device, kept=curator.kept)
        _show_sample(curator.sample(encoder), config, classes, as_json=json)
        return
    assert out is not None
    if max_pairs is None:
        max_pairs = config.budget
    num_pairs = None if max_pairs == "all" else max_pairs
    total = opened.pass_images * config.max_passes if num_pairs is None else None
    with progress_bar() as progress:
        bar = progress.add_task("curating", total=total or num_pairs, numbers="")

        def show_progress(lane: int, totals: "ScanTotals") -> None:
            done = totals.scanned if num_pairs is None else totals.kept
            seconds = totals.embed_seconds + totals.search_seconds + totals.read_seconds
            rate = totals.scanned / max(seconds, 1e-9)
            numbers = f"{totals.kept:,} kept of {totals.scanned:,} captions, {rate:,.0f} captions/s"
            progress.update(bar, completed=done, numbers=numbers)

        run = curate_pool(
            opened,
            metadata,
            text,
            config,
            out,
            num_pairs=num_pairs,
            device=device,
            engine=engine,
            overwrite=overwrite,
            on_progress=show_progress,
        )
    _show_run(run, as_json=json)


def _show_run(run: "Run", *, as_json: bool) -> None:
    rounds = run.read("rounds").to_pylist()
    scanned = sum(row["scanned"] for row in rounds)
    kept = sum(row["kept"] for row in rounds)
    summary: dict[str, Any] = {
        "path": str(run.path),
        "scanned": scanned,
        "kept": kept,
        "selected": sum(row["selected"] for row in rounds),
        "kept_ratio": kept / scanned if scanned else 0.0,
        "best_similarity": max(
            (row["best_similarity"] for row in rounds if row["best_similarity"] is not None),
            default=None,
        ),
    }
    skipped = sum(row["skipped"] or 0 for row in rounds)
    recalls = [recall for row in rounds for recall in row["recalls"] or ()]
    if recalls:
        summary |= {"skipped": skipped, "recalls": recalls}
    if as_json:
        print_json(summary)
        return
    if recalls:
        worst = min(recalls, key=lambda recall: (recall["estimate"], -recall["kept"]))
        print_line(
            f"{skipped:,} captions were ruled out unscored; an audit estimates that "
            f"{worst['estimate']:.1%} of what passes was kept "
            f"(95 % interval {worst['low']:.1%} to {worst['high']:.1%})",
            stderr=True,
        )
    print_line(
        f"{summary['selected']:,} pairs selected; {kept:,} of {scanned:,} captions were kept "
        f"({summary['kept_ratio']:.1%})",
        stderr=True,
    )
    next_step = f"the run is in {run.path}; look at it with: cit report {run.path}"
    print_line(next_step, stderr=True)


def _show_sample(
    sample: "SimilaritySample",
    config: CurateConfig,
    classes: "ClassList | None",
    *,
    as_json: bool,
) -> None:
    from cit_curate.curation.threshold import THRESHOLDS

    if as_json:
        print_json(
            {
                "metadata": classes.name if classes else None,
                "num_entries": len(classes.entries) if classes else 0,
                "captions": len(sample.similarity),
                "quantiles": {f"{at:g}": value for at, value in sample.quantiles().items()},
                "pass_ratio": {f"{at:.2f}": sample.pass_ratio(at) for at in THRESHOLDS},
                "never_nearest": list(sample.never_nearest),
                "threshold": config.threshold,
                "captions_needed": sample.captions_needed(config),
                "minutes_needed": sample.minutes_needed(config),
            }
        )
        return
    quantiles = Table(title="best similarity of a caption to the metadata", title_justify="left")
    for at in sample.quantiles():
        quantiles.add_column(inert(f"{at:.0%}"), justify="right")
    add_row(quantiles, *(f"{value:.3f}" for value in sample.quantiles().values()))
    draw(quantiles)
    shares = Table(title="captions that pass", title_justify="left")
    shares.add_column("threshold", justify="right")
    shares.add_column("share", justify="right")
    shares.add_column("captions", justify="right")
    for threshold in THRESHOLDS:
        ratio = sample.pass_ratio(threshold)
        count = round(ratio * len(sample.similarity))
        add_row(shares, f"{threshold:.2f}", f"{ratio:.2%}", f"{count:,}")
    draw(shares)
    if sample.never_nearest:
        names = ", ".join(sample.never_nearest[:20])
        more = len(sample.never_nearest) - 20
        rest = f" and {more} more" if more > 0 else ""
        print_line(f"never the nearest entry of a sampled caption: {names}{rest}")
    print_line(sample.line(config))
