"""Every fail point of every writer: what is begun again after a kill or a full disk is the same."""

import re
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from faults import plant
from jobs import JOBS, make_world, result_of, run_job

from cit_curate.errors import ResourceError
from cit_curate.pool.pool import Pool
from cit_curate.run.ledger import Run
from cit_curate.run.report.facts import collect_facts
from cit_curate.run.report.page import build_report
from cit_curate.storage import durable
from cit_curate.storage import fail_points as faults_at
from cit_curate.storage.fail_points import KINDS, VARIABLE, fail_points, kind_of

pytestmark = pytest.mark.slow

OfJobs = Callable[[str], tuple[dict[str, object], Counter[str]]]

# Written by every job for its result, whose name is the user's.
OF_JOB = {
    "training": {
        *("checkpoint", "checkpoint_file", "checkpoint_link", "manifest", "mid_step"),
        *("mid_step_file", "shard", "shard_entry", "shard_list", "shard_rejects", "index"),
        *("index_vectors", "features", "config", "environment", "metadata", "metrics", "status"),
        *("head", "selections", "near_misses", "rounds", "used", "rejects", "other"),
    },
    "curating": {
        *("scores", "index", "index_vectors", "config", "environment", "metadata", "manifest"),
        *("head", "selections", "near_misses", "rounds", "other"),
    },
    "cascading": {
        *("scan_journal", "scan_journal_file", "config", "environment", "metadata", "manifest"),
        *("head", "selections", "near_misses", "rounds", "other"),
    },
    "embedding": {
        *("vectors", "config", "environment", "metadata", "manifest", "head", "selections"),
        *("near_misses", "rounds", "other"),
    },
    "pooling": {
        *("yfcc_key", "pool_block", "pool_block_end", "pool_part", "pool_rejects"),
        *("pool_manifest", "pool_report", "pool_catalog", "other"),
    },
    "pooling_yfcc": {
        *("yfcc_key", "yfcc_ids", "pool_block", "pool_part"),
        *("pool_rejects", "pool_manifest", "pool_report", "pool_catalog", "other"),
    },
    "exporting": {"shard", "shard_entry", "other"},
    "importing": {
        *("config", "environment", "head", "manifest", "selections", "rounds", "used", "rejects"),
        "other",
    },
    "tokenizing": {"pool_tokens", "pool_tokens_list"},
    "narrowing": {"pool_part", "pool_rejects", "pool_manifest", "pool_catalog", "other"},
}


def _first_job(kind: str) -> str:
    return next(job for job, kinds in OF_JOB.items() if kind in kinds)


# Each fail point once, in the first job that comes to it.
POINTS = {
    job: [name for name in fail_points() if _first_job(name.split(".")[0]) == job] for job in OF_JOB
}
# Where a kill leaves what it leaves at the point before: nothing that is written is lost by it.
ALIKE = (".start", ".written")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the jobs read."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def of_jobs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> OfJobs:
    """Gives what a job makes undisturbed, and how often it comes to each fail point."""

    @cache
    def made(name: str) -> tuple[dict[str, object], Counter[str]]:
        out = tmp_path_factory.mktemp(name)
        passed: Counter[str] = Counter()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                durable, "reach", lambda path, moment: passed.update([f"{kind_of(path)}.{moment}"])
            )
            JOBS[name](world, out)
        return result_of(out), passed

    return made


def test_the_jobs_come_to_every_fail_point_that_there_is(
    world: Path,
    of_jobs: OfJobs,
    tmp_path: Path,
) -> None:
    reached = {name: {*of_jobs(name)[1]} for name in OF_JOB}
    # To cut metrics.jsonl, a run must have gone on from before its last line.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            durable,
            "reach",
            lambda path, moment: reached["training"].add(f"{kind_of(path)}.{moment}"),
        )
        with pytest.MonkeyPatch.context() as fault:
            plant({"moment": "train", "update": 4, "act": "raise"}, fault.setattr)
            with pytest.raises(RuntimeError, match="planted"):
                JOBS["training"](world, tmp_path)
        JOBS["training"](world, tmp_path)
    for name, points in reached.items():
        assert {point.split(".")[0] for point in points} == OF_JOB[name], name
    assert set.union(*reached.values()) == {*fail_points()}
    assert {"other", *KINDS} == set.union(*OF_JOB.values())


# A training comes to them once in each of its 2 outer steps; the first time, nothing is committed.
OF_LEDGER = ("selections", "near_misses", "rounds", "used", "rejects", "manifest")


def strike(
    of_jobs: OfJobs,
    world: Path,
    out: Path,
    job: str,
    name: str,
    *,
    first: bool = False,
) -> None:
    """Kill a job the last or first time that it comes to a fail point, and begin it again."""
    whole, passed = of_jobs(job)
    out.mkdir()
    fault = f"{name}:{1 if first else max(passed[name], 1)}:kill"
    code = run_job(job, world, out, **{VARIABLE: fault})
    assert code == (-signal.SIGKILL if passed[name] else 0), name
    assert run_job(job, world, out) == 0, out.with_name(f"{out.name}.stderr").read_text()
    assert result_of(out) == whole, name
    assert not list(out.rglob(".tmp-*"))
    if job in ("training", "curating", "cascading"):
        assert len(Run.open(out / "run").commits()) == (2 if job == "training" else 1)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("job", OF_JOB)
@pytest.mark.faults("L4", "K1", "K3", "K7", "P7", "Q4")
def test_killed_at_every_fail_point_and_begun_again_a_job_makes_the_same(
    of_jobs: OfJobs,
    world: Path,
    tmp_path: Path,
    job: str,
) -> None:
    of_jobs(job)  # before there are threads
    with ThreadPoolExecutor(2) as threads:
        names = [
            name
            for name in POINTS[job]
            if not name.endswith(ALIKE) or (job == "training" and name.split(".")[0] in OF_LEDGER)
        ]
        struck = [
            threads.submit(strike, of_jobs, world, tmp_path / name, job, name) for name in names
        ]
        of_ledger = [name for name in names if name.split(".")[0] in OF_LEDGER]
        assert {of_jobs(job)[1][name] for name in of_ledger} <= {2}
        struck += [
            threads.submit(strike, of_jobs, world, tmp_path / f"{name}-1", job, name, first=True)
            for name in of_ledger
        ]
    for each in struck:
        each.result()


@pytest.mark.faults("R3")
def test_the_report_of_a_training_killed_in_its_second_manifest_has_the_first_step_and_a_banner(
    world: Path, tmp_path: Path
) -> None:
    code = run_job("training", world, tmp_path / "out", **{VARIABLE: "manifest.synced:2:kill"})
    assert code == -signal.SIGKILL
    run, pool = Run.open(tmp_path / "out" / "run"), Pool.open(world / "data" / "pool")
    assert list(run.path.glob("selections/step=000001/*.parquet"))
    assert any(record["update"] > 3 for record in run.metrics())
    with run.database(pool) as database:
        facts = collect_facts(run, run.commits(), database)
    assert [step.outer_step for step in facts.steps] == [0]
    assert facts.updates == 3
    assert {evaluation.update for evaluation in facts.evaluations} == {2}
    assert max(update for update, _ in facts.losses) <= 3
    page = build_report(run, pool, tmp_path / "report.html").read_text(encoding="utf-8")
    banners = re.findall(r'<p class="banner" role="status">(.*?)</p>', page)
    assert len(banners) == len(facts.notices) == 2
    assert "has been begun and is not committed" in banners[0]
    assert banners[1] == "The run is at update 3 of 6: it is not finished."


def fill(
    of_jobs: OfJobs,
    world: Path,
    out: Path,
    job: str,
    name: str,
) -> None:
    """Let the disk be full when a job first comes to a fail point, and begin it again."""
    whole, passed = of_jobs(job)
    out.mkdir()
    # How a try ended may go untold where there is no room to tell it; shards wait for room, and
    # vectors are not kept.
    waits = job == "training" and name.startswith(("shard.", "shard_entry."))
    is_told = passed[name] and not name.startswith(("status", "vectors")) and not waits
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, f"{name}:1:enospc")
        # Another job in this process has been there.
        patch.setattr(faults_at, "_times", Counter())
        if is_told:
            with pytest.raises((OSError, ResourceError), match=r"No space left|disk .* is full"):
                JOBS[job](world, out)
        else:
            JOBS[job](world, out)
    JOBS[job](world, out)
    assert result_of(out) == whole, name
    assert not list(out.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("job", "name"),
    [
        ("training", "used.written"),
        ("training", "manifest.renamed"),
        ("training", "shard.start"),
        ("training", "features.written"),
        ("pooling", "pool_part.written"),
        ("exporting", "shard.written"),
        ("importing", "used.start"),
        ("narrowing", "pool_part.start"),
    ],
)
@pytest.mark.faults("P8", "S7", "L4", "K1")
def test_after_a_full_disk_the_same_job_makes_the_same(
    of_jobs: OfJobs,
    world: Path,
    tmp_path: Path,
    job: str,
    name: str,
) -> None:
    fill(of_jobs, world, tmp_path / "out", job, name)


@pytest.mark.parametrize(
    ("job", "name"),
    [(job, name) for job in OF_JOB for name in POINTS[job] if name.endswith(".written")],
)
@pytest.mark.faults("P8", "S7", "L4", "K1")
def test_after_a_disk_that_is_full_at_any_file_the_same_job_makes_the_same(
    of_jobs: OfJobs,
    world: Path,
    tmp_path: Path,
    job: str,
    name: str,
) -> None:
    fill(of_jobs, world, tmp_path / "out", job, name)
