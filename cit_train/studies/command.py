"""`cit compare`: train the arms of a study with several seeds, and compare them."""

import dataclasses
from pathlib import Path

import tyro

from cit_curate.errors import ConfigError
from cit_curate.printing import print_json
from cit_curate.storage.durable import write_json
from cit_curate.terminal import draw, print_line


def compare(
    study: tyro.conf.Positional[str],
    *,
    out: Path,
    seeds: str = "",
    arms: str = "",
    updates: int | None = None,
    json: bool = False,
) -> None:
    """Train several ways to choose pairs at equal updates, with several seeds, and compare them.

    A study is a function that returns a Study: data, arms, seeds, updates (docs/policies.md). The
    same command resumes a stopped comparison, and takes finished runs as they are. Vectors are kept
    beside the pool, and vision features in OUT/features.

        cit compare my_study.py:study --out comparison
        cit compare my_study.py:study --out comparison --arms offline,steady --seeds 0,1,2,3,4

    Args:
        study: package.module:function, or file.py:function.
        out: Folder of all runs and of comparison.json.
        seeds: Seeds, separated by commas, instead of the study's.
        arms: Names of some arms, separated by commas; all by default.
        updates: Updates of each run, instead of the study's.
        json: Print one JSON document instead of the table.
    """
    from cit_train.config import replace_fields
    from cit_train.loop.progress import TerminalWatcher
    from cit_train.studies.comparison import comparison_table, study_report, summaries
    from cit_train.studies.run_arm import run_arm
    from cit_train.studies.study import load_study, parse_seeds

    chosen = load_study(study)
    config = chosen.config
    if updates is not None:
        config = replace_fields(config, max_updates=updates)
    if not config.train.feature_cache:
        config = replace_fields(config, feature_cache=str(out / "features"))
    names = _names(arms, list(chosen.arms))
    chosen = dataclasses.replace(
        chosen,
        config=config,
        seeds=parse_seeds(seeds) if seeds else chosen.seeds,
        arms={name: chosen.arms[name] for name in names},
        reference=chosen.reference if chosen.reference in names else "",
    )
    reference = chosen.reference or next(iter(chosen.arms))
    out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print_line(text, stderr=True)

    results = []
    # Seed by seed, so that a stopped comparison has whole columns.
    for seed in chosen.seeds:
        for name, arm in chosen.arms.items():
            folder = out / f"{name.replace(' ', '-')}-seed{seed}"
            with TerminalWatcher(config.train.max_updates, label=name) as watcher:
                results.append(
                    run_arm(
                        name,
                        chosen.config_of(name, seed),
                        folder,
                        offline=arm.offline,
                        watcher=watcher,
                        say=say,
                    )
                )
            summary = summaries(results, reference=reference, metric=chosen.metric)
            report = study_report(results, summary, study=study, metric=chosen.metric)
            write_json(out / "comparison.json", report)
    ordered = [each for name in chosen.arms for each in results if each.arm == name]
    summary = summaries(ordered, reference=reference, metric=chosen.metric)
    if json:
        print_json(study_report(ordered, summary, study=study, metric=chosen.metric))
    else:
        draw(comparison_table(summary, metric=chosen.metric))


def _names(text: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--arms: the study has no arm {unknown[0]!r}; it has {', '.join(known)}")
    return names or known
