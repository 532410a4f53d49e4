"""Write the tables and charts of docs/scale.md from the cost model.

python -m scripts.bench.scale_docs           rewrite them
python -m scripts.bench.scale_docs --check   fail when they differ from what is committed
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scripts.bench import scale_scenarios as scenarios
from scripts.bench.scale_model import Cost, cost, scan_of_step
from scripts.bench.scale_plots import Bar, Line, line_chart, log_bars, stacked_bars
from scripts.bench.scale_shapes import Machine

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "scale.md"
GPU = "A100"
_HOUR = 3_600.0
_SHAPES = {"embed": "circle", "storage": "triangle"}
_MEANINGS = {"circle": "embedding", "square": "the rules", "triangle": "file system"}
# Parts of a bar that are too thin to tell apart; the charts show their sum.
_SMALL = ("read", "tokenise", "search", "select", "gather", "reduce", "loss", "commit")


def main() -> None:
    """Rewrite the page and the charts, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 on a difference"
    )
    asked = parser.parse_args()
    wanted = {PAGE: filled(PAGE.read_text(encoding="utf-8"), blocks())}
    wanted |= {DOCS / name: markup for name, markup in charts().items()}
    stale = [
        path
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if asked.check and stale:
        names = ", ".join(path.name for path in stale)
        sys.exit(f"{names} differ from the model; run: python -m scripts.bench.scale_docs")
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")


def filled(page: str, tables: Mapping[str, str]) -> str:
    """The page with each marked block replaced.

    A block stands between `<!-- scale:NAME -->` and `<!-- /scale:NAME -->`.

    Raises:
        ValueError: The page lacks a block.
    """
    for name, table in tables.items():
        start, end = f"<!-- scale:{name} -->", f"<!-- /scale:{name} -->"
        before, found, rest = page.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no block {start} … {end}")
        page = f"{before}{start}\n{table}\n{end}{after}"
    return page


def blocks() -> dict[str, str]:
    """The tables of the page, by the name of their block."""
    measured = scenarios.parameters()
    gpus = scenarios.gpus(measured)
    return {
        "parameters": _parameter_table(),
        "online": _online_table(measured, gpus),
        "ratios": _ratio_table(measured, gpus[GPU]),
        "options": _option_table(measured, gpus[GPU]),
        "wide": _wide_table(measured, gpus[GPU]),
        "offline": _offline_table(measured, gpus[GPU]),
        "engines": _engine_table(measured, gpus),
        "bytes": _bytes_table(measured, gpus[GPU]),
    }


def charts() -> dict[str, str]:
    """The SVG files, by name."""
    measured = scenarios.parameters()
    machine = scenarios.gpus(measured)[GPU]
    return {
        "scale-time.svg": _time_chart(measured, machine),
        "scale-stages.svg": _stage_chart(measured, machine),
        "scale-bytes.svg": _bytes_chart(measured, machine),
    }


def duration(seconds: float) -> str:
    """Seconds as a person says them: `45 s`, `12 min`, `3.4 h`, `5.1 days`, `2.3 years`."""
    for size, unit in ((365.25 * 86_400, "years"), (2 * 86_400, "days"), (_HOUR, "h"), (60, "min")):
        if seconds >= size:
            value = seconds / (86_400 if unit == "days" else size)
            return f"{value:,.3g} {unit}"
    return f"{seconds:.3g} s"


def size(num_bytes: float) -> str:
    """Bytes in decimal units."""
    for value, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= value:
            return f"{num_bytes / value:,.3g} {unit}"
    return f"{num_bytes / 1e3:,.3g} kB"


def amount(value: float) -> str:
    """A count in three digits: `14.7 M`."""
    for divisor, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= divisor:
            return f"{value / divisor:,.3g}{unit}"
    return f"{value:,.3g}"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _parameter_table() -> str:
    document = json.loads(scenarios.PARAMETERS.read_text(encoding="utf-8"))
    machine = document["machine"]
    head = (
        f"{machine['name']}, {machine['threads']} thread, torch {machine['torch']}, "
        f"Python {machine['python']}, {machine['date']}; median of {document['repeats']}.\n\n"
    )
    rows = [
        (
            f"`{row['name']}`",
            *(f"{row[key]:.3g}" for key in ("value", "low", "high")),
            row["unit"],
            row["what"],
        )
        for row in document["parameters"]
    ]
    return head + _table(("parameter", "median", "lowest", "highest", "unit", "what"), rows)


def _online_row(found: Cost) -> tuple[str, ...]:
    used = "" if found.ranks == found.num_gpus else f" ({found.ranks} used)"
    return (
        found.workload,
        found.machine,
        f"{found.num_gpus:,}{used}",
        duration(found.total_seconds),
        f"{found.gpu_hours:,.0f}",
        amount(found.captions),
        amount(found.captions_per_second),
        f"{found.bottleneck} ({found.seconds[found.bottleneck] / found.total_seconds:.0%})",
        f"{found.device_busy:.0%}",
    )


def _online_table(measured: dict[str, float], gpus: Mapping[str, Machine]) -> str:
    head = (
        "recipe",
        "GPU",
        "GPUs",
        "time",
        "GPU-hours",
        "captions scanned",
        "captions/s",
        "stalls on",
        "GPU busy",
    )
    recipes = (scenarios.yfcc15m(measured), scenarios.yfcc100m(measured))
    found = [
        cost(replace(recipe, micro_batch=0 if count >= 16 else 1_024), gpus[GPU], count)
        for recipe in recipes
        for count in scenarios.GPU_COUNTS
    ]
    found += [cost(recipe, gpus[name], 16) for recipe in recipes for name in ("V100", "H100")]
    return _table(head, [_online_row(each) for each in found])


def _ratio_table(measured: dict[str, float], machine: Machine) -> str:
    def row(ratio: float) -> tuple[str, ...]:
        workload = scenarios.yfcc15m(measured, pass_ratio=ratio)
        large = scenarios.yfcc100m(measured, pass_ratio=ratio)
        scans = [scan_of_step(each) for each in (workload, large)]
        fills = [
            f"{scan.passes:.2f} passes" if scan.fills else f"{amount(scan.kept)} of 102 k: exit 3"
            for scan in scans
        ]
        times = [
            duration(cost(each, machine, 16).total_seconds) if scan.fills else "—"
            for each, scan in zip((workload, large), scans, strict=True)
        ]
        needed = 102_400 / max(ratio, 0.003)
        return (f"{ratio:.1%}", amount(16 * needed), fills[0], times[0], fills[1], times[1])

    head = ("pass ratio", "captions for one outer step", "YFCC15M", "run", "YFCC100M", "run")
    return _table(head, [row(ratio) for ratio in (0.003, *scenarios.PASS_RATIOS)])


def _option_table(measured: dict[str, float], machine: Machine) -> str:
    recipe = scenarios.yfcc15m(measured)
    options = {
        "`--num-workers 8` (the table above)": recipe,
        "`--num-workers 0` (the default)": replace(recipe, num_workers=0),
        "`--num-workers 15`": replace(recipe, num_workers=15),
        "`--vision-features cached`, features there already": replace(recipe, cached_features=True),
        "no evaluation while training": replace(recipe, evaluated_images=0),
    }
    head = ("option", "time on 16", "stalls on", "GPU busy", "hidden behind it")

    def row(name: str, found: Cost) -> tuple[str, ...]:
        hidden = [stage for stage in found.seconds if stage not in found.on_path]
        worst = sorted(hidden, key=lambda stage: -found.seconds[stage])[:3]
        return (
            name,
            duration(found.total_seconds),
            found.bottleneck,
            f"{found.device_busy:.0%}",
            ", ".join(f"{stage} {duration(found.seconds[stage])}" for stage in worst),
        )

    return _table(head, [row(name, cost(each, machine, 16)) for name, each in options.items()])


def _wide_table(measured: dict[str, float], machine: Machine) -> str:
    def row(lanes: int) -> tuple[str, ...]:
        workload = scenarios.wide(measured, lanes=lanes, captions=2e9)
        found = cost(workload, machine, lanes)
        full = cost(replace(workload, local_loss=False), machine, lanes).loss_matrix_bytes
        return (
            f"{lanes:,}",
            f"{workload.updates:,}",
            f"{lanes * 1_024:,}",
            duration(found.total_seconds),
            f"{found.gpu_hours:,.0f}",
            found.bottleneck,
            size(full),
            size(found.loss_matrix_bytes),
            size(found.bytes_reduced),
        )

    head = (
        "lanes = GPUs",
        "updates",
        "global batch",
        "time",
        "GPU-hours",
        "stalls on",
        "logits, each rank whole",
        "logits with `--local-loss`",
        "gradients sent by a rank",
    )
    return _table(head, [row(lanes) for lanes in (16, 64, 256, 1_024)])


def _offline_table(measured: dict[str, float], machine: Machine) -> str:
    def row(name: str) -> tuple[str, ...]:
        workload = scenarios.offline(measured, name)
        found = [cost(workload, machine, count) for count in scenarios.GPU_COUNTS]
        times = [f"{duration(each.total_seconds)} · {each.bottleneck}" for each in found]
        return (
            name,
            *times,
            f"{found[0].gpu_hours:,.3g}",
            f"{found[-1].gpu_hours:,.3g}",
            size(found[0].selection_bytes),
        )

    counts = [f"{count:,}" for count in scenarios.GPU_COUNTS]
    head = ("captions", *counts, "GPU-hours on 1", "on 1,024", "selection in memory")
    return _table(head, [row(name) for name in scenarios.POOL_SIZES])


def _engine_table(measured: dict[str, float], gpus: Mapping[str, Machine]) -> str:
    found = []
    for machine in (scenarios.this_cpu(measured), *gpus.values()):
        serial = cost(scenarios.offline(measured, "15 M", pipelined=False), machine, 1)
        actors = cost(scenarios.offline(measured, "15 M"), machine, 1)
        found.append(
            (
                machine.name,
                *(
                    f"{amount(each.captions_per_second)} · {each.bottleneck}"
                    for each in (serial, actors)
                ),
            )
        )
    return _table(("machine", "one process, captions/s", "an actor and the rules"), found)


def _bytes_table(measured: dict[str, float], machine: Machine) -> str:
    found = [
        cost(scenarios.yfcc15m(measured), machine, 16),
        cost(scenarios.yfcc100m(measured), machine, 16),
    ]
    found += [cost(scenarios.offline(measured, name), machine, 16) for name in scenarios.POOL_SIZES]
    kinds = ("ledger", "near misses", "shards", "checkpoints")
    rows = [
        (
            each.workload if each.bytes_reduced else f"one pass over {each.workload}",
            *(
                size(each.bytes_written[kind]) if kind in each.bytes_written else "—"
                for kind in kinds
            ),
            size(sum(each.bytes_written.values())),
            size(each.bytes_kept),
        )
        for each in found
    ]
    return _table(("run", *kinds, "written in all", "on disk at the end"), rows)


def _time_chart(measured: dict[str, float], machine: Machine) -> str:
    lines = []
    for name in scenarios.POOL_SIZES:
        workload = scenarios.offline(measured, name)
        found = [cost(workload, machine, count) for count in scenarios.GPU_COUNTS]
        points = [(each.num_gpus, each.total_seconds) for each in found]
        marks = [_SHAPES.get(each.bottleneck, "square") for each in found]
        lines.append(Line(f"{name} captions", points, marks))
    ticks = {1.0: "1 s", 60.0: "1 min", _HOUR: "1 h", 86_400.0: "1 day", 2_592_000.0: "30 days",
             31_557_600.0: "1 year", 315_576_000.0: "10 years"}  # fmt: skip
    used = {shape for line in lines for shape in line.marks}
    values = [y for line in lines for _, y in line.points]
    below = max((tick for tick in ticks if tick <= min(values)), default=min(ticks))
    above = min((tick for tick in ticks if tick >= max(values)), default=max(ticks))
    return line_chart(
        lines,
        title=f"One offline pass (cit curate --max-pairs all) on {machine.name} GPUs",
        x_label="GPUs; the shape of a point says what the pass waits for",
        x_ticks={float(count): f"{count:,}" for count in scenarios.GPU_COUNTS},
        y_ticks={tick: text for tick, text in ticks.items() if below <= tick <= above},
        marks={shape: text for shape, text in _MEANINGS.items() if shape in used},
    )


def _stage_chart(measured: dict[str, float], machine: Machine) -> str:
    bars = []
    for recipe in (scenarios.yfcc15m(measured), scenarios.yfcc100m(measured)):
        for count in (1, 4, 16):
            found = cost(replace(recipe, micro_batch=0 if count == 16 else 1_024), machine, count)
            parts = {stage: found.seconds[stage] for stage in found.on_path}
            other = sum(parts.pop(stage, 0.0) for stage in _SMALL)
            name = f"{recipe.name.split('_')[0]}, {count} GPU{'s' if count > 1 else ''}"
            bars.append(Bar(name, parts | {"other": other}, duration(found.total_seconds)))
    order = ("embed", "check", "write shards", "text", "vision", "evaluate", "decode", "other")
    return stacked_bars(
        bars, title=f"Where the wall time of a run goes, {machine.name}", order=order
    )


def _bytes_chart(measured: dict[str, float], machine: Machine) -> str:
    online = cost(scenarios.yfcc15m(measured), machine, 16)
    groups = [Bar("yfcc15m run", online.bytes_written, "")]
    for name in scenarios.POOL_SIZES:
        found = cost(scenarios.offline(measured, name), machine, 16)
        groups.append(Bar(f"pass over {name}", {"ledger": found.bytes_written["ledger"]}, ""))
    ticks = {
        10.0**power: text
        for power, text in zip(
            range(6, 15, 2), ("1 MB", "100 MB", "10 GB", "1 TB", "100 TB"), strict=True
        )
    }
    order = ("ledger", "near misses", "shards", "checkpoints")
    return log_bars(groups, title="Bytes written", ticks=ticks, order=order)


if __name__ == "__main__":
    main()
