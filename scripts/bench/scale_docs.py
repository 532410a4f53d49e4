"""Write the tables and charts of docs/scale.md from the cost model.

python -m scripts.bench.scale_docs
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from html import escape
from pathlib import Path
from typing import Any

from scripts.bench.scale_model import Cost, cost
from scripts.bench.scale_scenarios import (
    GPU_COUNTS,
    PARAMETERS,
    POOL_SIZES,
    YFCC15M,
    YFCC100M,
    Machine,
    Workload,
    gpus,
    offline,
    one_core,
    wide,
)

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "scale.md"
GPU = "A100"
# Shares of scanned captions that pass, over which the recipes are shown; the first is `min_ratio`.
PASS_RATIOS = (0.003, 0.01, 0.05, 0.2, 0.5)
KINDS = ("ledger", "near misses", "shards", "checkpoints")
# Stages with a colour of their own in the chart of wall time; it shows the sum of the others.
STAGES = ("embed", "write shards", "text", "vision", "evaluate")
COLOURS = ("#1f6fb4", "#2e7d32", "#8e3b9e", "#b3261e", "#00767c", "#59636e")
WIDTH, LEFT, RIGHT, TOP = 720, 150, 110, 48


def main() -> None:
    """Rewrite the page and the charts."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), blocks()), encoding="utf-8")
    for name, markup in charts().items():
        (DOCS / name).write_text(markup, encoding="utf-8")


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
    return {
        "parameters": _parameter_table(),
        "online": _online_table(),
        "ratios": _ratio_table(),
        "options": _option_table(),
        "wide": _wide_table(),
        "offline": _offline_table(),
        "engines": _engine_table(),
        "bytes": _bytes_table(),
    }


def charts() -> dict[str, str]:
    """The SVG files, by name."""
    return {"scale-time.svg": _time_chart(), "scale-stages.svg": _stage_chart()}


def duration(seconds: float) -> str:
    """Seconds as a person says them: `45 s`, `12 min`, `3.4 h`, `5.1 days`, `2.3 years`."""
    for least, size, unit in (
        (365.25 * 86_400, 365.25 * 86_400, "years"),
        (2 * 86_400, 86_400, "days"),
        (3_600, 3_600, "h"),
        (60, 60, "min"),
    ):
        if seconds >= least:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.3g} s"


def num_bytes(value: float) -> str:
    """Bytes in decimal units: `160 GB`."""
    return _scaled(value, {"PB": 1e15, "TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3})


def count(value: float) -> str:
    """A count in three digits: `14.7 M`."""
    return _scaled(value, {"B": 1e9, "M": 1e6, "k": 1e3})


def _scaled(value: float, units: Mapping[str, float]) -> str:
    for unit, size in units.items():
        if value >= size:
            return f"{value / size:,.3g} {unit}"
    return f"{value:,.3g}"


def _table(rows: Iterable[Any], *columns: tuple[str, Callable[[Any], str]]) -> str:
    """A Markdown table: each column is a heading, and a function from a row to its cell."""
    lines = [f"| {' | '.join(heading for heading, _ in columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell(row) for _, cell in columns)} |" for row in rows]
    return "\n".join(lines)


def _parameter_table() -> str:
    document = json.loads(PARAMETERS.read_text(encoding="utf-8"))
    described = {field.name: field.metadata for field in fields(Machine)}
    return f"{document['machine']}.\n\n" + _table(
        document["parameters"].items(),
        ("parameter", lambda row: f"`{row[0]}`"),
        ("median", lambda row: f"{row[1]['median']:.3g}"),
        ("lowest", lambda row: f"{row[1]['lowest']:.3g}"),
        ("highest", lambda row: f"{row[1]['highest']:.3g}"),
        ("unit", lambda row: described[row[0]]["unit"]),
        ("what", lambda row: described[row[0]]["what"]),
    )


def _on_gpus(workload: Workload, num_gpus: int) -> Cost:
    """Its cost on so many GPUs; a rank with several lanes trains them in micro-batches."""
    micro_batch = 0 if num_gpus >= workload.lanes else workload.batch_size
    return cost(replace(workload, micro_batch=micro_batch), gpus()[GPU], num_gpus)


def _online_table() -> str:
    recipes = (YFCC15M, YFCC100M)
    runs = [_on_gpus(recipe, number) for recipe in recipes for number in GPU_COUNTS]
    runs += [cost(recipe, gpus()[name], 16) for recipe in recipes for name in ("V100", "H100")]

    def used(run: Cost) -> str:
        return "" if run.ranks == run.num_gpus else f" ({run.ranks} used)"

    def share(run: Cost) -> str:
        return f"{run.seconds[run.bottleneck] / run.total_seconds:.0%}"

    return _table(
        runs,
        ("recipe", lambda run: run.workload.name),
        ("GPU", lambda run: run.machine.name),
        ("GPUs", lambda run: f"{run.num_gpus:,}{used(run)}"),
        ("time", lambda run: duration(run.total_seconds)),
        ("GPU-hours", lambda run: f"{run.gpu_hours:,.0f}"),
        ("captions scanned", lambda run: count(run.workload.scanned)),
        ("captions/s", lambda run: count(run.captions_per_second)),
        ("stalls on", lambda run: f"{run.bottleneck} ({share(run)})"),
        ("GPU busy", lambda run: f"{run.device_busy:.0%}"),
    )


def _ratio_table() -> str:
    def cells(recipe: Workload, ratio: float) -> tuple[str, str]:
        """How far an outer step scans, and the time of a run."""
        changed = replace(recipe, pass_ratio=ratio)
        share = changed.captions / changed.lanes
        if changed.captions_of_step == share:
            return f"{count(changed.selected / changed.lanes)} of 102 k: exit 3", "—"
        passes = f"{changed.captions_of_step / share:.2f} passes"
        return passes, duration(_on_gpus(changed, 16).total_seconds)

    return _table(
        PASS_RATIOS,
        ("pass ratio", lambda ratio: f"{ratio:.1%}"),
        ("captions for one outer step", lambda ratio: count(16 * 102_400 / ratio)),
        ("YFCC15M", lambda ratio: cells(YFCC15M, ratio)[0]),
        ("run", lambda ratio: cells(YFCC15M, ratio)[1]),
        ("YFCC100M", lambda ratio: cells(YFCC100M, ratio)[0]),
        ("run", lambda ratio: cells(YFCC100M, ratio)[1]),
    )


def _option_table() -> str:
    options: dict[str, dict[str, Any]] = {
        "`--num-workers 8` (the table above)": {},
        "`--num-workers 0` (the default)": {"num_workers": 0},
        "`--num-workers 15`": {"num_workers": 15},
        "`--vision-features cached`, features there already": {"cached_features": True},
        "no evaluation while training": {"evaluated_images": 0},
    }

    def hidden(run: Cost) -> str:
        stages = [stage for stage in run.seconds if stage not in run.on_path]
        longest = sorted(stages, key=lambda stage: -run.seconds[stage])[:3]
        return ", ".join(f"{stage} {duration(run.seconds[stage])}" for stage in longest)

    workloads = [replace(YFCC15M, name=name, **changes) for name, changes in options.items()]
    return _table(
        [_on_gpus(each, 16) for each in workloads],
        ("option", lambda run: run.workload.name),
        ("time on 16", lambda run: duration(run.total_seconds)),
        ("stalls on", lambda run: run.bottleneck),
        ("GPU busy", lambda run: f"{run.device_busy:.0%}"),
        ("hidden behind it", hidden),
    )


def _wide_table() -> str:
    def whole(run: Cost) -> float:
        workload = replace(run.workload, local_loss=False)
        return cost(workload, run.machine, run.num_gpus).loss_matrix_bytes

    return _table(
        [_on_gpus(wide(number), number) for number in (16, 64, 256, 1_024)],
        ("lanes = GPUs", lambda run: f"{run.num_gpus:,}"),
        ("updates", lambda run: f"{run.workload.updates:,}"),
        ("global batch", lambda run: f"{run.num_gpus * run.workload.batch_size:,}"),
        ("time", lambda run: duration(run.total_seconds)),
        ("GPU-hours", lambda run: f"{run.gpu_hours:,.0f}"),
        ("stalls on", lambda run: run.bottleneck),
        ("logits, each rank whole", lambda run: num_bytes(whole(run))),
        ("logits with `--local-loss`", lambda run: num_bytes(run.loss_matrix_bytes)),
        ("gradients sent by a rank", lambda run: num_bytes(run.bytes_reduced)),
    )


def _passes(num_gpus: int) -> list[Cost]:
    """One offline pass over each pool."""
    return [_on_gpus(offline(name), num_gpus) for name in POOL_SIZES]


def _offline_table() -> str:
    # A row is one pool: its pass on each number of GPUs.
    rows = list(zip(*(_passes(number) for number in GPU_COUNTS), strict=True))

    def time(column: int) -> Callable[[Sequence[Cost]], str]:
        return lambda row: f"{duration(row[column].total_seconds)} · {row[column].bottleneck}"

    return _table(
        rows,
        ("captions", lambda row: row[0].workload.name),
        *((f"{number:,}", time(column)) for column, number in enumerate(GPU_COUNTS)),
        ("GPU-hours on 1", lambda row: f"{row[0].gpu_hours:,.3g}"),
        ("on 1,024", lambda row: f"{row[-1].gpu_hours:,.3g}"),
        ("selection in memory", lambda row: num_bytes(row[0].selection_bytes)),
    )


def _engine_table() -> str:
    def rate(machine: Machine, *, pipelined: bool) -> str:
        run = cost(offline("15 M", pipelined=pipelined), machine, 1)
        return f"{count(run.captions_per_second)} · {run.bottleneck}"

    return _table(
        [one_core(), *gpus().values()],
        ("machine", lambda machine: machine.name),
        ("one process, captions/s", lambda machine: rate(machine, pipelined=False)),
        ("an actor and the rules", lambda machine: rate(machine, pipelined=True)),
    )


def _bytes_table() -> str:
    def name(run: Cost) -> str:
        return run.workload.name if run.workload.updates else f"one pass over {run.workload.name}"

    def written(kind: str) -> Callable[[Cost], str]:
        return lambda run: num_bytes(run.bytes_written[kind]) if kind in run.bytes_written else "—"

    return _table(
        [_on_gpus(YFCC15M, 16), _on_gpus(YFCC100M, 16), *_passes(16)],
        ("run", name),
        *((kind, written(kind)) for kind in KINDS),
        ("written in all", lambda run: num_bytes(sum(run.bytes_written.values()))),
        ("on disk at the end", lambda run: num_bytes(run.bytes_kept)),
    )


def _time_chart() -> str:
    """Wall time over GPUs, a line for each pool, both axes logarithmic."""
    lines = list(zip(*(_passes(number) for number in GPU_COUNTS), strict=True))
    seconds = [run.total_seconds for line in lines for run in line]
    right, bottom = WIDTH - RIGHT, 340

    def across(num_gpus: float) -> float:
        return LEFT + _log_share(num_gpus, GPU_COUNTS[0], GPU_COUNTS[-1]) * (right - LEFT)

    def up(value: float) -> float:
        return bottom - _log_share(value, min(seconds), max(seconds)) * (bottom - TOP)

    parts = [_text((LEFT + right) / 2, bottom + 44, "GPUs", "middle")]
    parts += [_text(across(each), bottom + 22, f"{each:,}", "middle") for each in GPU_COUNTS]
    for tick in (60, 3_600, 86_400, 30 * 86_400):
        if min(seconds) <= tick <= max(seconds):
            parts += [_grid(LEFT, up(tick), right, up(tick))]
            parts += [_text(LEFT - 8, up(tick) + 4, duration(tick), "end")]
    for colour, line in zip(COLOURS, lines, strict=False):
        points = [(across(run.num_gpus), up(run.total_seconds)) for run in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" points="{path}"/>')
        parts += [f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in points]
        parts.append(_text(right + 10, points[-1][1] + 4, f"{line[0].workload.name} captions"))
    title = f"One offline pass (cit curate --max-pairs all) on {GPU} GPUs"
    return _svg(title, bottom + 60, parts)


def _stage_chart() -> str:
    """Shares of the wall time: a lying bar for each run, with a legend below."""
    parts, y = [], TOP
    for run in (_on_gpus(each, number) for each in (YFCC15M, YFCC100M) for number in (1, 4, 16)):
        name = run.workload.name.partition("_")[0]
        parts.append(_text(LEFT - 8, y + 17, f"{name}, {run.num_gpus} × {GPU}", "end"))
        shares = {stage: run.seconds[stage] / run.total_seconds for stage in run.on_path}
        named = {stage: shares.pop(stage, 0.0) for stage in STAGES}
        x = float(LEFT)
        for colour, share in zip(COLOURS, (*named.values(), sum(shares.values())), strict=True):
            parts.append(_bar(x, y, share * (WIDTH - LEFT - RIGHT), colour))
            x += share * (WIDTH - LEFT - RIGHT)
        parts.append(_text(x + 8, y + 17, duration(run.total_seconds)))
        y += 34
    for number, (colour, stage) in enumerate(zip(COLOURS, (*STAGES, "other"), strict=True)):
        x = LEFT + 95 * number
        parts += [_bar(x, y + 8, 12, colour), _text(x + 18, y + 24, stage)]
    return _svg(f"Where the wall time of a run goes, {GPU}", y + 44, parts)


def _log_share(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _bar(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="22" fill="{colour}"/>'


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line stroke="#d8dee4" x1="{x1}" y1="{y1:.1f}" x2="{x2}" y2="{y2:.1f}"/>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui,sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
        f'<text x="16" y="24" font-size="15" font-weight="600">{escape(title)}</text>\n'
        f"{body}\n</svg>\n"
    )


if __name__ == "__main__":
    main()
