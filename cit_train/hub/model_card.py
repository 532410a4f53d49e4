"""The model card of a repository: the weights, and the data that they were curated from.

Class names, paths and settings are untrusted. In the card, every character of theirs that has a
meaning in Markdown or HTML is a character reference, which is shown but never interpreted.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoConfig

from cit_curate.run.ledger import Run
from cit_curate.run.pools import mixture_config
from cit_curate.run.report.facts import shortened
from cit_curate.storage.durable import read_json
from cit_curate.text_encoder.hub import HUB_PREFIX
from cit_curate.text_encoder.packaged import PACKAGE_PREFIX, PACKAGED

# Importing it registers our model types.
import cit_train.models  # noqa: F401  isort: skip

__all__ = ["inert", "write_model_card"]

MAX_RANGES = 10
MAX_CLASSES = 20
MAX_EVALUATIONS = 20
MAX_TEXT = 200
# Encoders whose licences forbid commercial use.
_RESTRICTED = {"moco": "MoCo-v3", "swag": "SWAG"}

# All but letters, digits, spaces, commas, hyphens, and the dots inside numbers.
_ACTIVE = re.compile(r"(?!(?<=[0-9])\.(?=[0-9]))[^\w ,-]|_")

_STEPS = """
SELECT outer_step, max(threshold) AS threshold, CAST(sum(scanned) AS BIGINT) AS scanned,
       CAST(sum(kept) AS BIGINT) AS kept, CAST(sum(selected) AS BIGINT) AS selected,
       max(best_similarity) AS best_similarity
FROM rounds WHERE "update" < $1 GROUP BY outer_step ORDER BY outer_step
"""
# An outer step may continue after the weights were saved: only uses until then count. Where the
# ledger has only the first and the last of several uses, one is counted.
_USED = """
SELECT count(DISTINCT pair_key) AS pairs,
       CAST(coalesce(sum(if(last_update <= $1, times_used, 1)), 0) AS BIGINT) AS uses,
       coalesce(bool_or(last_update > $1 AND times_used > 2), false) AS at_least
FROM used WHERE first_update <= $1
"""
_REASONS = """
SELECT reason, count(*) AS pairs FROM selections WHERE outer_step <= $1
GROUP BY reason ORDER BY pairs DESC, reason
"""
_CLASSES = """
SELECT any_value(metadata_text) AS name, count(DISTINCT pair_key) AS pairs
FROM selections WHERE outer_step <= $1 AND metadata_id >= 0
GROUP BY metadata_id ORDER BY pairs DESC, metadata_id
"""


def inert(text: object) -> str:
    """The text on one line, escaped so that Markdown and HTML show it and never interpret it."""
    line = " ".join(str(text).split())
    return _ACTIVE.sub(lambda match: _reference(match[0]), line)


def _reference(character: str) -> str:
    return f"&#{ord(character)};" if character.isprintable() else "\ufffd"


def _code(name: str) -> str:
    """A plain name as code, which keeps the source readable; any other name escaped."""
    return f"`{name}`" if re.fullmatch(r"[a-z0-9_]+", name) else inert(name)


def write_model_card(
    folder: Path, *, repo: str, run: Run | None, update: int | None, license: str = ""
) -> None:
    """Write `README.md` beside a model's files.

    Args:
        folder: The folder with the dual encoder's config.json.
        repo: The name of the repository, `org/name`.
        run: The run that trained it; None = unknown, and the card has no statistics.
        update: The update of the weights; None = the run's last.
        license: The hub's identifier of the licence, such as apache-2.0; "" = none stated.
    """
    config = read_json(folder / "config.json")
    settings = run.config if run else {}
    curation = _curation(run, update) if run else None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cit_train.hub", "."),
        autoescape=False,  # noqa: S701 - it is Markdown; every untrusted text goes through `inert`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("model_card.md.j2").render(
        front_matter=_front_matter(settings, repo, curation, license),
        title=inert(repo.rpartition("/")[2]),
        repo=repo,
        restricted=_RESTRICTED.get(config["vision_config"]["model_type"], ""),
        needs_import=any(_is_ours(config[part]["model_type"]) for part in _PARTS),
        has_processor=(folder / "processor_config.json").is_file()
        or (folder / "preprocessor_config.json").is_file(),
        towers=[_tower(config, settings, part) for part in _PARTS],
        curation=curation,
        table=_table,
    )
    page = re.sub(r"\n{3,}", "\n\n", page)
    (folder / "README.md").write_text(page, encoding="utf-8")


_PARTS = ("vision_config", "text_config")


@dataclass(frozen=True)
class _Best:
    """The evaluation of these weights by the task's own metric."""

    task: str
    metric: str
    value: float


@dataclass(frozen=True)
class _Evaluations:
    """The evaluations of a run up to these weights; every text is escaped."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    pictures: str
    best: _Best | None


@dataclass(frozen=True)
class _Curation:
    """The card's facts about a run; every text is escaped."""

    num_steps: str
    updates: str
    data: tuple[tuple[str, str], ...]
    ranges: tuple[tuple[str, ...], ...]
    distinct: str
    uses: str
    reasons: str
    classes: tuple[tuple[str, ...], ...]
    rest: str
    evaluations: _Evaluations
    config: tuple[tuple[str, ...], ...]
    versions: tuple[tuple[str, ...], ...]


def _curation(run: Run, update: int | None) -> _Curation:
    settings = run.config
    commits = run.commits()
    with run.database(commits=commits) as database:
        last = commits[-1].update if commits else 0
        seen = last if update is None else update
        steps = database.rows(_STEPS, [max(seen, 1)])
        last_step = max((row["outer_step"] for row in steps), default=-1)
        used = database.rows(_USED, [seen])[0]
        reasons = database.rows(_REASONS, [last_step])
        classes = database.rows(_CLASSES, [last_step])
    rest = len(classes) - MAX_CLASSES
    environment = read_json(run.path / "environment.json")
    return _Curation(
        num_steps=f"{len(steps):,} outer step{'' if len(steps) == 1 else 's'}",
        updates=f"{seen:,}",
        data=_data(settings),
        ranges=_ranges(steps),
        distinct=f"{used['pairs']:,}",
        uses=f"{'at least ' if used['at_least'] else ''}{used['uses']:,}",
        reasons=", ".join(f"{inert(row['reason'])} {row['pairs']:,}" for row in reasons) or "none",
        classes=tuple((inert(_short(r["name"])), f"{r['pairs']:,}") for r in classes[:MAX_CLASSES]),
        rest=f"And {rest:,} more classes with pairs." if rest > 0 else "",
        evaluations=_evaluations(run, seen),
        config=tuple((_code(name), inert(value)) for name, value in _public(settings)),
        versions=_versions(environment),
    )


def _data(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    fingerprints = (settings.get(f"{name}_fingerprint", "") for name in ("pool", "metadata"))
    pool, metadata = (f" (fingerprint {inert(value)})" if value else "" for value in fingerprints)
    pools = [
        (
            f"pool {inert(_short(one['name']))}",
            f"{100 * one['weight']:.3g} % of the scanned captions "
            f"(fingerprint {inert(one['fingerprint'])})",
        )
        for one in mixture_config(settings)
    ]
    prompts = ", ".join(inert(prompt) for prompt in settings.get("templates", ()))
    return (
        *(pools or [("pool", f"{_last_part(settings.get('pool', ''))}{pool}")]),
        ("class names", f"{_last_part(settings.get('metadata', ''))}{metadata}"),
        ("class names are curated as", prompts),
    )


def _ranges(steps: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """At most MAX_RANGES rows: the outer steps in ranges of equal length."""
    length = max(1, math.ceil(len(steps) / MAX_RANGES))
    rows = []
    for start in range(0, len(steps), length):
        part = steps[start : start + length]
        first, last = part[0]["outer_step"], part[-1]["outer_step"]
        scanned, kept, selected = (sum(r[n] for r in part) for n in ("scanned", "kept", "selected"))
        # Before `skip_until` and without curation nothing is compared with a threshold.
        scored = [row for row in part if row["best_similarity"] is not None]
        thresholds = sorted({f"{row['threshold']:g}" for row in scored}, key=float)
        rows.append(
            (
                f"{first}" if first == last else f"{first}-{last}",
                " to ".join(dict.fromkeys([*thresholds[:1], *thresholds[-1:]])) or "-",
                f"{scanned:,}",
                f"{kept:,}",
                f"{kept / scanned:.2%}" if scanned else "-",
                f"{selected:,}",
                f"{max(row['best_similarity'] for row in scored):.3f}" if scored else "-",
            )
        )
    return tuple(rows)


def _evaluations(run: Run, update: int) -> _Evaluations:
    records = [
        record
        for record in run.metrics()
        if record.get("kind") == "eval" and record["update"] <= update
    ]
    shown = records[-MAX_EVALUATIONS:]
    columns = ("accuracy", "mean_per_class", *(["value"] if _other_metric(shown) else []))
    return _Evaluations(
        header=("update", "accuracy", "mean per class", *_other_metric(records)),
        rows=tuple(
            (f"{record['update']:,}", *(f"{record[column]:.1f}" for column in columns))
            for record in shown
            if all(isinstance(record.get(column), float) for column in columns)
        ),
        pictures=_pictures(run.config),
        best=_best(run.config, records, update),
    )


def _other_metric(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The task's metric, unless it is one of the two that every evaluation has."""
    metrics = {str(record.get("metric", "accuracy")) for record in records}
    return tuple(
        inert(metric.replace("_", " ")) for metric in metrics - {"accuracy", "mean_per_class"}
    )


def _pictures(settings: Mapping[str, Any]) -> str:
    """The pictures of the evaluations: a built-in task, or an image folder."""
    if settings.get("eval_task"):
        return f"the task {inert(_short(settings['eval_task']))}"
    return f"the pictures of {_last_part(settings.get('eval_data', ''))}"


def _best(
    settings: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]], update: int
) -> _Best | None:
    task = _short(settings.get("eval_task") or Path(settings.get("eval_data", "")).name)
    own = [r for r in evaluations if r["update"] == update and "accuracy" in r]
    if not own or not task:
        return None
    metric = str(own[-1].get("metric", "accuracy"))
    return _Best(task, metric, float(own[-1].get("value", own[-1]["accuracy"])))


def _public(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings without this machine's folders: a path is shown as its last part."""
    return [
        (name, _short(", ".join(_without_folders(str(entry)) for entry in values)))
        for name, value in _with_pool_names(settings).items()
        if (values := value if isinstance(value, list) else [value])
    ]


def _with_pool_names(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with `NAME=WEIGHT` for each of several pools, instead of their folders."""
    pools = mixture_config(settings)
    if not pools:
        return settings
    return {**settings, "pools": [f"{pool['name']}={pool['weight']:g}" for pool in pools]}


def _without_folders(value: str) -> str:
    if re.match(r"(~|\.{0,2}/|[A-Za-z]:\\)", value) or ("/" in value and Path(value).exists()):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _last_part(path: str) -> str:
    name = Path(path).name
    return inert(_short(name)) if name else "unknown"


def _short(name: str | None) -> str:
    return shortened(name or "", MAX_TEXT)


def _versions(environment: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    packages = {"python": environment.get("python", ""), **environment.get("packages", {})}
    return tuple((inert(name), inert(version)) for name, version in packages.items())


def _tower(config: Mapping[str, Any], settings: Mapping[str, Any], part: str) -> dict[str, str]:
    own = config[part]
    origin = str(settings.get("vision_encoder" if part == "vision_config" else "text_encoder", ""))
    if origin.startswith(PACKAGE_PREFIX):
        packaged = PACKAGED.get(origin.removeprefix(PACKAGE_PREFIX))
        origin = f"{origin} ({packaged.requirement})" if packaged else origin
    pooling = f", {own['pooling']} pooling" if "pooling" in own else ""
    return {
        "part": part.removesuffix("_config"),
        "kind": inert(f"{own['model_type']}{pooling}"),
        "dim": inert(own.get("hidden_size", "-")),
        "origin": inert(_without_folders(origin) or "unknown"),
    }


def _is_ours(model_type: str) -> bool:
    """Whether `AutoModel` knows the type only once our package has been imported."""
    try:
        return type(AutoConfig.for_model(model_type)).__module__.startswith("cit_")
    except ValueError:
        return False


def _front_matter(
    settings: Mapping[str, Any], repo: str, curation: _Curation | None, license: str
) -> str:
    """The card's YAML, as the hub reads it."""
    names = [str(settings.get(f"{tower}_encoder", "")) for tower in ("vision", "text")]
    bases = [name.removeprefix(HUB_PREFIX).partition("@")[0] for name in names if _is_hub_id(name)]
    results = None
    if curation and (best := curation.evaluations.best):
        results = [
            EvalResult(
                task_type="zero-shot-image-classification",
                dataset_type=best.task,
                dataset_name=best.task,
                metric_type=best.metric,
                metric_name=f"zero-shot {best.metric.replace('_', ' ')}, %",
                metric_value=round(best.value, 2),
            )
        ]
    data = ModelCardData(
        license=license or None,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["cit", "clip", "data-curation", "vision-text-dual-encoder"],
        base_model=bases or None,
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results,
    )
    return data.to_yaml(line_break="\n").strip()


def _is_hub_id(name: str) -> bool:
    is_local = name.startswith((".", "/", "~", PACKAGE_PREFIX)) or Path(name).exists()
    return name.startswith(HUB_PREFIX) or ("/" in name and not is_local)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
