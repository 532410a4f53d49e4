"""A published curated dataset comes back as a run: exactly its entries that the pool has."""

import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_fixtures import image_bytes, query_run, small_run

from cit_curate.errors import BadInputError, ConfigError, ResourceError
from cit_curate.pool.pool import Pool
from cit_curate.run.exports.counts_import import import_counts
from cit_curate.run.exports.export import export_counts
from cit_curate.run.ledger import Run
from cit_curate.run.report.page import build_report
from cit_curate.sources.columns import Columns
from cit_curate.storage.lock import writer_lock

TEXT_KEYS = ("title", "desc", "tag", "alt-text-2")
IMAGE_IDS = ("00000007", "00001234", "a_b", "_", "x_title_", "größe", "=cmd", "00000001")


def build_pool(folder: Path, rows: Sequence[tuple[str, str]]) -> Pool:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cat.png").write_bytes(image_bytes())
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image_id", "key", "caption", "image"))
        writer.writerows((image, key, f"{image} {key}", "cat.png") for image, key in rows)
    columns = Columns(text_key="key", caption="caption", image="image")
    return Pool.build([folder / "a.csv"], folder / "pool", columns=columns)


ROWS = [(image, key) for image in IMAGE_IDS for key in TEXT_KEYS]
KEYS = [f"{image}_{key}" for image, key in ROWS]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return build_pool(tmp_path_factory.mktemp("counts"), ROWS)


def written(path: Path, counts: Mapping[str, int]) -> Path:
    path.write_text(json.dumps(counts), encoding="utf-8")
    return path


def ledger_bytes(run: Path) -> dict[str, bytes]:
    files = [*run.rglob("*.parquet"), *run.glob("manifests/*.json")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(files)}


@pytest.mark.faults("Q4")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.dictionaries(st.sampled_from(KEYS), st.integers(1, 2**40), min_size=1),
    missing=st.dictionaries(
        st.sampled_from(["00009999_tag", "b_a_desc", "00000007_x"]), st.just(5)
    ),
    kind=st.sampled_from(["json", "csv", "parquet"]),
)
@pytest.mark.slow
def test_an_export_of_an_import_is_the_file_without_what_the_pool_lacks(
    tmp_path_factory: pytest.TempPathFactory,
    pool: Pool,
    counts: dict[str, int],
    missing: dict[str, int],
    kind: str,
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    file = written(folder / "c.json", {**missing, **counts})
    imported = import_counts(file, pool, folder / "run", max_missing_ratio=1.0)
    assert (imported.num_pairs, imported.num_missing) == (len(counts), len(missing))
    assert imported.run.counts() == counts
    used = imported.run.read("used")["times_used"].to_pylist()
    assert sum(used) == imported.num_uses == sum(counts.values())
    back = folder / f"back.{kind}"
    assert export_counts(imported.run, back, pool=pool) == len(counts)
    if kind == "json":
        assert json.loads(back.read_text(encoding="utf-8")) == counts
    again = import_counts(back, pool, folder / "again", max_missing_ratio=0.0)
    assert again.run.counts() == counts
    assert again.rejects == {}


def test_the_ledger_holds_the_pools_order_and_no_guesses(tmp_path: Path, pool: Pool) -> None:
    file = written(tmp_path / "c.json", {"a_b_tag": 3, "00000007_desc": 2, "no_tag": 9})
    run = import_counts(file, pool, tmp_path / "run").run
    assert run.read("selections").to_pylist() == [
        {
            "outer_step": 0,
            "lane": 0,
            "scan_position": KEYS.index(key),
            "pair_key": key,
            "image_id": key.rpartition("_")[0],
            "text_key": key.rpartition("_")[2],
            "similarity": None,
            "metadata_id": None,
            "metadata_text": None,
            "reason": "imported",
            "encoder": "",
            "pool": pool.name,
        }
        for key in ("00000007_desc", "a_b_tag")
    ]
    used = run.read("used").to_pylist()
    assert [(row["pair_key"], row["times_used"]) for row in used] == [
        ("00000007_desc", 2),
        ("a_b_tag", 3),
    ]
    assert {(row["first_update"], row["last_update"]) for row in used} == {(None, None)}
    [round_] = run.read("rounds").to_pylist()
    assert (round_["scanned"], round_["selected"], round_["threshold"]) == (0, 2, None)
    [reject] = run.read("rejects").to_pylist()
    assert (reject["pair_key"], reject["reason"]) == ("no_tag", "not_in_pool")
    assert reject["detail"] == "entry 3: the pool has no such pair"
    assert run.config["pool_fingerprint"] == pool.fingerprint
    assert [commit.outer_step for commit in run.commits()] == [0]


def test_every_view_can_be_queried(tmp_path: Path, pool: Pool) -> None:
    file = written(tmp_path / "c.json", {"a_b_tag": 3, "_tag": 1, "__tag": 4, "x_title__desc": 2})
    run = import_counts(file, pool, tmp_path / "run", max_reject_ratio=0.5).run
    sql = (
        "SELECT c.pair_key, c.image_id, c.text_key, c.count, s.reason, p.caption, u.times_used "
        "FROM counts c JOIN selections s USING (pair_key) JOIN pairs p USING (pair_key) "
        "JOIN used u USING (pair_key) ORDER BY count"
    )
    rows = query_run(run, sql, pool=pool).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("x_title__desc", "x_title_", "desc", 2, "imported", "x_title_ desc", 2),
        ("a_b_tag", "a_b", "tag", 3, "imported", "a_b tag", 3),
        ("__tag", "_", "tag", 4, "imported", "_ tag", 4),
    ]
    rejects = query_run(run, "SELECT pair_key, reason FROM rejects").to_pylist()
    assert rejects == [{"pair_key": "_tag", "reason": "bad_key"}]
    for view in ("rounds", "near_misses"):
        query_run(run, f"FROM {view}")


def test_the_first_of_a_repeated_key_counts_and_the_others_are_set_aside(
    tmp_path: Path, pool: Pool
) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"a_b_tag": 3, "__tag": 1, "a_b_tag": 8, "a_b_tag": 3}')
    with pytest.raises(BadInputError, match=r"2 of 4 entries .* duplicate_key 2, the first: entry"):
        import_counts(file, pool, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json"]
    imported = import_counts(file, pool, tmp_path / "run", max_reject_ratio=0.5)
    assert imported.run.counts() == {"a_b_tag": 3, "__tag": 1}
    assert imported.rejects == {"duplicate_key": 2}
    details = imported.run.read("rejects")["detail"].to_pylist()
    assert details[0] == "entry 3: the key came first as entry 1, with count 3; now it has 8"


def test_malformed_entries_stop_an_import_only_over_the_limit(tmp_path: Path, pool: Pool) -> None:
    file = written(tmp_path / "c.json", {"a_b_tag": 3, "__tag": 0})
    imported = import_counts(file, pool, tmp_path / "run", max_reject_ratio=0.5)
    assert imported.rejects == {"bad_count": 1}
    with pytest.raises(BadInputError, match="entry 2: the count is 0"):
        import_counts(file, pool, tmp_path / "b", max_reject_ratio=0.49)
    for counts, message in (({}, "no entry"), ({"x": 1}, "1 of 1 entries")):
        with pytest.raises(BadInputError, match=message):
            import_counts(
                written(tmp_path / "e.json", counts), pool, tmp_path / "b", max_reject_ratio=1.0
            )
    assert not (tmp_path / "b").exists()


def test_a_pool_that_lacks_too_much_is_named_with_keys_of_both_sides(
    tmp_path: Path, pool: Pool
) -> None:
    file = written(tmp_path / "c.json", {"a_b_tag": 3, "7_title": 1, "1234_title": 2})
    with pytest.raises(BadInputError, match=r"lacks 2 of the 3 .* as 7_title, 1234_title .*it has"):
        import_counts(file, pool, tmp_path / "run")
    assert import_counts(file, pool, tmp_path / "run", max_missing_ratio=0.7).num_missing == 2
    none = written(tmp_path / "none.json", {"7_title": 1})
    with pytest.raises(BadInputError, match="lacks 1 of the 1"):
        import_counts(none, pool, tmp_path / "none", max_missing_ratio=1.0)
    assert not (tmp_path / "none").exists()


def test_a_share_out_of_range_and_a_missing_file_are_refused(tmp_path: Path, pool: Pool) -> None:
    file = written(tmp_path / "c.json", {"a_b_tag": 3})
    with pytest.raises(ConfigError, match="max-missing-ratio is 2"):
        import_counts(file, pool, tmp_path / "run", max_missing_ratio=2)
    with pytest.raises(ConfigError, match="there is no file"):
        import_counts(tmp_path / "x.json", pool, tmp_path / "run")


def test_a_run_is_replaced_only_when_asked_and_a_failure_keeps_it(
    tmp_path: Path, pool: Pool
) -> None:
    file = written(tmp_path / "c.json", {"a_b_tag": 3})
    old = small_run(tmp_path / "run")
    before = ledger_bytes(old.path)
    with pytest.raises(ConfigError, match="--overwrite"):
        import_counts(file, pool, old.path)
    with pytest.raises(BadInputError):
        import_counts(written(tmp_path / "x.json", {"x": 1}), pool, old.path, overwrite=True)
    assert ledger_bytes(old.path) == before
    with writer_lock(tmp_path / "run"), pytest.raises(ResourceError, match="is held by"):
        import_counts(file, pool, old.path, overwrite=True)
    import_counts(file, pool, old.path, overwrite=True)
    assert Run.open(old.path).counts() == {"a_b_tag": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "run", "x.json"]


IMPORT = """
import sys
from pathlib import Path
from cit_curate.run.exports.counts_import import import_counts
from cit_curate.pool.pool import Pool
import_counts(Path(sys.argv[1]), Pool.open(sys.argv[2]), Path(sys.argv[3]), overwrite=True)
"""


@pytest.mark.faults("Q4", "L4")
@pytest.mark.slow
def test_a_killed_import_leaves_the_old_run_or_the_new_one(tmp_path: Path) -> None:
    rows = [(f"{number:08d}", "tag") for number in range(40_000)]
    pool = build_pool(tmp_path / "big", rows)
    file = written(tmp_path / "c.json", {f"{image}_tag": 1 for image, _ in rows})
    old = small_run(tmp_path / "run")
    before = ledger_bytes(old.path)
    whole = ledger_bytes(import_counts(file, pool, tmp_path / "whole").run.path)
    rng = random.Random(3)
    for _ in range(3):
        arguments = [sys.executable, "-c", IMPORT, str(file), str(pool.path), str(old.path)]
        with subprocess.Popen(arguments) as importer:
            time.sleep(0.4 + rng.random() * 0.6)
            importer.send_signal(signal.SIGKILL)
        assert ledger_bytes(old.path) in (before, whole)
    import_counts(file, pool, old.path, overwrite=True)
    assert ledger_bytes(old.path) == whole
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_report_says_that_similarities_are_unknown(tmp_path: Path, pool: Pool) -> None:
    file = written(tmp_path / "c.json", {"a_b_tag": 1, "__tag": 3, "__desc": 12, "no_tag": 1})
    run = import_counts(file, pool, tmp_path / "run").run
    page = build_report(run, pool, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "similarities, classes and thresholds are not known" in page
    assert ">nan" not in page.lower()
    assert "<svg" not in page
    assert "8 to 15 times" in page
    assert "12 uses" in page
    assert "not_in_pool" in page
    assert page.count("data:image/webp") == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """DuckDB may fill its 512 MB, and no more comes with ten times the entries."""
    rows = [(f"{number:08d}", "tag") for number in range(100)]
    pool = build_pool(tmp_path / "small", rows)
    code = IMPORT.replace("overwrite=True", "max_missing_ratio=1.0")
    measured = (  # on stderr: DuckDB takes `-c` for a notebook, and draws progress on stdout
        "import resource\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    peaks = []
    for num_entries in (100_000, 1_000_000):
        file = tmp_path / f"{num_entries}.json"
        with file.open("w") as stream:
            stream.write("{")
            stream.writelines(f'"{number:08d}_tag": 1,\n' for number in range(num_entries))
            stream.write('"last_tag": 1}')
        out = str(tmp_path / f"run-{num_entries}")
        arguments = [sys.executable, "-c", code + measured, str(file), str(pool.path), out]
        done = subprocess.run(arguments, check=True, capture_output=True, text=True)
        peaks.append(int(done.stderr) * 1024)
        assert len(Run.open(out).counts()) == 100
    assert peaks[1] < peaks[0] + 600_000_000
