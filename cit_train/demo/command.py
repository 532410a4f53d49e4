"""`cit demo`: curation, training and evaluation on real packaged data, on a CPU."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

from rich.table import Table

from cit_curate.errors import ConfigError
from cit_curate.printing import print_json
from cit_curate.storage.cache_folder import cache_folder
from cit_curate.storage.durable import atomic_file, write_json
from cit_curate.terminal import add_row, draw, print_line
from cit_train.config import RunConfig, replace_fields
from cit_train.demo.assets import DEBIAN_ASSETS, fetch_deb
from cit_train.demo.clipart import write_clipart_table
from cit_train.demo.tuxpaint import CLASSES, link_evaluation_pictures
from cit_train.recipes import clipart_demo
from cit_train.studies.run_arm import ArmResult, run_arm
from cit_train.studies.study import parse_seeds

# The last arm's updates, as a multiple of the others'.
LONGER = 4


# The accuracy of guessing, in percent.
CHANCE = 100 / len(CLASSES)


def demo(
    *,
    out: Path = Path("cit-demo"),
    seeds: str = "0",
    compare: bool = True,
    updates: int = 50,
    fetch_only: bool = False,
    json: bool = False,
) -> None:
    """Curate clip art for 22 classes while training, and compare with training on any pairs.

    Fetches about 320 MB of Debian packages into the cache folder (CIT_CACHE) the first time.
    The same command resumes a stopped demo.

        cit demo
        cit demo --seeds 0,1,2

    Args:
        out: Folder of all results.
        seeds: Seeds, separated by commas; the table has a line for each and their mean.
        compare: Also train on uncurated pairs, for as many and four times as many updates.
            Off with --no-compare.
        updates: Updates of the curated run.
        fetch_only: Only download and check the packages.
        json: Print one JSON document instead of the table.
    """
    chosen = parse_seeds(seeds)
    if updates < 1:
        raise ConfigError(f"--updates is {updates}; it must be at least 1")

    def say(text: str) -> None:
        print_line(text, stderr=True)

    started = time.monotonic()
    folders = {name: fetch_deb(name, cache_folder(), say) for name in DEBIAN_ASSETS}
    if fetch_only:
        return
    config = replace_fields(prepare(out, folders, say), max_updates=updates)
    results: list[ArmResult] = []
    for seed in chosen:
        for arm, arm_config in arms(config, seed, compare=compare):
            results.append(_run_arm(arm, arm_config, out, say))
    paths = _export(out / f"curated-seed{chosen[0]}", out, say)
    write_json(out / "demo.json", [{**asdict(result), "chance": CHANCE} for result in results])
    seconds = time.monotonic() - started
    if json:
        value = {
            "results": [{**asdict(result), "chance": CHANCE} for result in results],
            "paths": {name: str(path) for name, path in paths.items()},
            "seconds": seconds,
        }
        print_json(value)
        return
    draw(result_table(results))
    say(f"{seconds:.0f} s in all. Results:")
    for name, path in paths.items():
        say(f"  {name:<18} {path}")


def prepare(out: Path, folders: Mapping[str, Path], say: Callable[[str], None]) -> RunConfig:
    """Build the pool and the evaluation folder from the packages, unless they exist.

    Returns:
        The demo's recipe with its pool, classes and pictures.
    """
    from cit_curate.pool.pool import Pool
    from cit_curate.sources.columns import Columns

    out.mkdir(parents=True, exist_ok=True)
    table, pool, pictures = out / "clipart.csv", out / "pool", out / "pictures"
    if not pool.exists():
        num_images = write_clipart_table(
            folders["openclipart-png"], folders["openclipart-svg"], table
        )
        columns = Columns(image_id="image_id", image="image", text=("title", "desc", "tag"))
        built = Pool.build([table], pool, columns=columns, image_root=folders["openclipart-png"])
        say(f"pool of {built.num_pairs:,} pairs of {num_images:,} clip-art images: {pool}")
    if not pictures.exists():
        num_pictures = link_evaluation_pictures(folders["tuxpaint-stamps-default"], pictures)
        say(f"{num_pictures} pictures of {len(CLASSES)} classes to evaluate on: {pictures}")
    classes = out / "classes.txt"
    if not classes.exists():
        with atomic_file(classes) as temporary:
            temporary.write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return replace_fields(
        clipart_demo(),
        pool=str(pool),
        metadata=str(classes),
        eval_data=str(pictures),
        feature_cache=str(out / "features"),
    )


def arms(config: RunConfig, seed: int, *, compare: bool) -> list[tuple[str, RunConfig]]:
    """The runs of one seed: curated, and uncurated at equal and at four times as many updates."""
    updates = config.train.max_updates
    curated = replace_fields(config, seed=seed)
    if not compare:
        return [("curated", curated)]
    # Before `skip_until` every pair passes: the same loop and trainer, without curation.
    uncurated = replace_fields(curated, skip_until=LONGER * updates)
    longer = replace_fields(uncurated, max_updates=LONGER * updates)
    return [("curated", curated), ("uncurated", uncurated), (f"uncurated {LONGER}x", longer)]


def result_table(results: Sequence[ArmResult]) -> Table:
    """The table of results: a line for each run, and the mean over several seeds."""
    # Narrow enough for 80 columns.
    table = Table(
        title="zero-shot on Tux Paint's pictures",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("arm", no_wrap=True)
    for name in ("seed", "updates", "captions\nscanned", "kept\nratio", "accuracy\n%"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("mean per\nclass %", "chance\n%", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in dict.fromkeys(result.arm for result in results):
        lines = [result for result in results if result.arm == arm]
        for line in lines:
            add_row(table, *_cells(line))
        if len(lines) > 1:
            add_row(table, *_summary(lines), style="bold")
            table.add_section()
    return table


def _cells(result: ArmResult) -> tuple[str, ...]:
    return (
        result.arm,
        str(result.seed),
        f"{result.updates:,}",
        f"{result.scanned:,}",
        f"{result.kept_ratio:.0%}",
        f"{result.accuracy:.1f}",
        f"{result.mean_per_class:.1f}",
        f"{CHANCE:.1f}",
        f"{result.seconds:.0f}",
    )


def _summary(lines: Sequence[ArmResult]) -> tuple[str, ...]:
    def spread(values: list[float]) -> str:
        return f"{mean(values):.1f} ± {stdev(values):.1f}"

    cells = list(_cells(lines[0]))
    cells[1] = "mean"
    cells[3] = f"{mean(line.scanned for line in lines):,.0f}"
    cells[4] = f"{mean(line.kept_ratio for line in lines):.0%}"
    cells[5] = spread([line.accuracy for line in lines])
    cells[6] = spread([line.mean_per_class for line in lines])
    cells[8] = f"{mean(line.seconds for line in lines):.0f}"
    return tuple(cells)


def _run_arm(arm: str, config: RunConfig, out: Path, say: Callable[[str], None]) -> ArmResult:
    """Train one arm, or resume it."""
    from cit_train.loop.progress import TerminalWatcher

    folder = out / f"{arm.replace(' ', '-')}-seed{config.curate.seed}"
    with TerminalWatcher(config.train.max_updates, label=arm) as watcher:
        return run_arm(arm, config, folder, watcher=watcher, say=say)


def _export(run_folder: Path, out: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Write counts, shards and report of the curated run.

    Returns:
        The paths of the results, by name.
    """
    from cit_curate.pool.pool import Pool
    from cit_curate.run.exports.export import export_counts, export_webdataset
    from cit_curate.run.ledger import Run
    from cit_curate.run.report.page import build_report

    run, pool = Run.open(run_folder), Pool.open(out / "pool")
    counts, shards = out / "counts.json", out / "curated-pairs"
    num_pairs = export_counts(run, counts, pool=pool)
    say(f"{num_pairs:,} different pairs were trained on")
    if not shards.exists():
        export_webdataset(run, pool, shards, on_progress=lambda done, total: None)
    report = build_report(run, pool, run_folder / "report.html")
    return {
        "report": report,
        "model": run_folder / "checkpoints" / "last",
        "curated dataset": counts,
        "WebDataset shards": shards,
        "ledger": run_folder / "selections",
        "results": out / "demo.json",
    }
