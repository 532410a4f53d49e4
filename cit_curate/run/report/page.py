"""`report.html`: one self-contained file, for a browser without a network.

Captions, class names, keys and settings come from other people. jinja2 escapes all of them, and the
page's Content-Security-Policy allows no script, no request and no picture but data URIs.
"""

import math
import re
from pathlib import Path

import jinja2

from cit_curate.pool.mixture import PoolMixture
from cit_curate.run.ledger import Run
from cit_curate.run.query import ImageSource
from cit_curate.run.report import charts
from cit_curate.run.report.facts import MAX_CLASSES, collect_facts
from cit_curate.run.report.thumbnails import Thumbnail, pool_thumbnail
from cit_curate.run.report.values import Example, RunFacts
from cit_curate.storage.durable import atomic_file, sweep_temporary

# Characters that HTML does not allow; a browser would show a box or nothing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def build_report(run: Run, pool: ImageSource | PoolMixture | None, out: Path) -> Path:
    """Write the page of a run's committed outer steps.

    Args:
        run: The run, finished or not.
        pool: The pool or mixture that captions and pictures come from; None = the page shows pair
            keys alone.
        out: The HTML file, which is replaced.

    Returns:
        `out`.
    """
    commits = run.commits()
    with run.database(pool, commits=commits) as database:
        facts = collect_facts(run, commits, database)
    page = _CONTROL.sub("", _rendered(facts, pool))
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporary(out.parent, below=False, name=out.name)
    with atomic_file(out) as temporary:
        # config.json may hold a lone surrogate, as an escape.
        temporary.write_bytes(page.encode("utf-8", "replace"))
    return out


def _rendered(facts: RunFacts, pool: ImageSource | PoolMixture | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cit_curate.run.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        facts=facts,
        key_numbers=_key_numbers(facts),
        charts=_charts(facts),
        largest_class=max((entry.num_pairs for entry in facts.classes), default=1),
        max_classes=MAX_CLASSES,
        thumbnails=_thumbnails(facts, pool),
    )


def _key_numbers(facts: RunFacts) -> list[tuple[str, str]]:
    if facts.imported is not None:
        return [
            ("distinct pairs", f"{facts.num_distinct:,}"),
            ("uses", f"{facts.imported.num_uses:,}"),
            ("entries set aside", f"{sum(entries for _, entries in facts.rejects):,}"),
        ]
    scanned = sum(step.scanned for step in facts.steps)
    kept = sum(step.kept for step in facts.steps)
    accuracies = [entry.accuracy for entry in facts.evaluations if entry.accuracy == entry.accuracy]
    return [
        ("outer steps", f"{len(facts.steps):,}"),
        ("updates", f"{facts.updates:,}"),
        ("captions scanned", f"{scanned:,}"),
        ("pairs kept", f"{kept:,}"),
        ("kept ratio", _percent(100 * kept / scanned) if scanned else "–"),
        ("distinct pairs", f"{facts.num_distinct:,}"),
        ("best accuracy", _percent(max(accuracies)) if accuracies else "–"),
    ]


def _charts(facts: RunFacts) -> dict[str, str]:
    steps = facts.steps
    threshold = steps[-1].threshold if steps and math.isfinite(steps[-1].threshold) else None
    evaluations = facts.evaluations
    return {
        "ratio": charts.line_chart(
            [charts.Series("kept ratio", [(s.outer_step, 100 * s.ratio) for s in steps])],
            label="Kept ratio per outer step",
            x_label="outer step",
            y_format=_percent,
            from_zero=True,
        ),
        "threshold": charts.line_chart(
            [
                charts.Series(
                    "best similarity", [(s.outer_step, s.best_similarity) for s in steps]
                ),
                charts.Series("threshold", [(s.outer_step, s.threshold) for s in steps], "b"),
            ],
            label="Threshold and best similarity per outer step",
            x_label="outer step",
        ),
        "histogram": charts.histogram(
            facts.histogram,
            low=-1.0,
            width=2.0 / len(facts.histogram),
            threshold=threshold,
            label="Best similarity of the scanned captions",
        ),
        "captions": charts.line_chart(
            [
                charts.Series("scanned", [(s.outer_step, s.scanned) for s in steps]),
                charts.Series("kept", [(s.outer_step, s.kept) for s in steps], "b"),
            ],
            label="Captions scanned and kept per outer step",
            x_label="outer step",
            from_zero=True,
        ),
        "accuracy": charts.line_chart(
            [
                charts.Series("accuracy", [(e.update, e.accuracy) for e in evaluations]),
                charts.Series(
                    "mean per class", [(e.update, e.mean_per_class) for e in evaluations], "b"
                ),
            ],
            label="Zero-shot accuracy over updates",
            x_label="update",
            y_format=_percent,
        ),
        "loss": charts.line_chart(
            [charts.Series("loss", facts.losses)],
            label="Training loss over updates",
            x_label="update",
        ),
    }


def _thumbnails(facts: RunFacts, pool: ImageSource | PoolMixture | None) -> dict[str, Thumbnail]:
    examples = {
        example.title: example
        for entry in facts.classes
        for example in (
            *entry.most_used,
            *entry.most_similar,
            *entry.borderline,
            *entry.near_misses,
        )
    }
    return {
        title: pool_thumbnail(_pool_of(example, pool), example.image_uri, example.source)
        for title, example in examples.items()
    }


def _pool_of(example: Example, pool: ImageSource | PoolMixture | None) -> ImageSource | None:
    if not isinstance(pool, PoolMixture):
        return pool
    return pool.single or pool[example.pool]


def _percent(value: float) -> str:
    return f"{value:.3g} %"
