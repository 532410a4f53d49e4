"""Pools that are damaged or unfinished: what is told of them, and what is mended."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.pool.check import check_pool, repair_pool, verify_pool
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from cit_curate.storage.lock import lock_path
from cit_train.loop.recovery import commands


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("image_id,title\n1,a cat\n2,a dog\n")
    columns = Columns(text=("title",))
    return Pool.build([tmp_path / "a.csv"], tmp_path / "pool", columns=columns).path


def dead_pid() -> int:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    return dead.pid


@pytest.mark.faults("P3")
def test_all_damage_is_listed_and_not_the_first_alone(
    pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pairs", "rejects"):
        (pool / name / "part-000000.parquet").write_bytes(b"PAR1")
    found = check_pool(pool)
    assert [Path(each.file).parent.name for each in found.damage] == ["pairs", "rejects"]
    assert all("has 4 bytes; its manifest says" in each.what for each in found.damage)
    with pytest.raises(DamagedError, match=r"(?s)pairs/part.*build it again.*rejects/part"):
        verify_pool(pool)
    for command in (commands.verify, commands.repair):
        with pytest.raises(SystemExit) as caught:
            command(pool, json=True)
        assert caught.value.code == 4
        value: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert len(value["damage"]) == 2
        with pytest.raises(DamagedError, match="build it again"):
            command(pool)


@pytest.mark.faults("L6", "L10", "P7")
def test_a_pool_is_mended_from_what_it_has(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pool / f".tmp-{dead_pid()}-pool.duckdb").write_bytes(b"half")
    catalog = pool / "pool.duckdb"
    catalog.write_bytes(b"cut" + catalog.read_bytes()[3:])
    (pool / "pairs" / "part-000009.parquet").write_bytes(b"PAR1PAR1")
    lock = lock_path(pool)
    lock.touch()
    assert len(check_pool(pool).notes) == 2
    (damage,) = check_pool(pool).damage
    assert damage.what == "belongs to no manifest"
    commands.repair(pool, dry_run=True)
    told = capsys.readouterr().out
    assert told.count("dry run: ") == 4
    assert f"removed {lock}, left by a writer that was killed" in told
    assert len(check_pool(pool).notes) == 2
    commands.repair(pool)
    assert capsys.readouterr().out == told.replace("dry run: ", "")
    assert verify_pool(pool) == []
    assert (pool / "damaged" / "pairs" / "part-000009.parquet").is_file()
    assert not lock.exists()
    assert repair_pool(pool) == []


HOLD = (
    "import sys, time, duckdb\n"
    "held = duckdb.connect(sys.argv[1])\n"
    "print('held', flush=True)\n"
    "time.sleep(60)"
)


@pytest.mark.faults("L10")
def test_a_catalog_that_is_locked_or_damaged_hides_no_pair_and_is_written_again(pool: Path) -> None:
    catalog = pool / "pool.duckdb"
    whole = catalog.read_bytes()
    rng = random.Random(0)
    for place in (0, 8, *(rng.randrange(len(whole)) for _ in range(10))):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        catalog.write_bytes(damaged)
        assert Pool.open(pool).read_row_groups([0]).num_rows == 1
        assert not check_pool(pool).damage
    catalog.write_bytes(whole[:5000])
    assert "pool.duckdb" in check_pool(pool).notes[0]
    repair_pool(pool)
    assert check_pool(pool).notes == []
    command = [sys.executable, "-c", HOLD, str(catalog)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            assert Pool.open(pool).read_row_groups([0]).num_rows == 1
            (note,) = check_pool(pool).notes
            assert "lock" in note
            repair_pool(pool)
            assert check_pool(pool).notes == []
        finally:
            holder.kill()


@pytest.mark.faults("P7")
def test_a_pool_that_was_to_be_replaced_is_put_back(pool: Path) -> None:
    pool.rename(pool.with_name(".tmp-0-pool"))
    (pool.with_name(f".tmp-{dead_pid()}-pool")).mkdir()
    with pytest.raises(ConfigError, match=r"cit repair .* restores it"):
        commands.repair(pool, dry_run=True)
    commands.repair(pool)
    assert verify_pool(pool) == []
    assert not list(pool.parent.glob(".tmp-*"))


@pytest.mark.faults("P3")
def test_a_manifest_that_is_damaged_leaves_nothing_to_compare(pool: Path) -> None:
    (pool / "pool.json").write_text("{")
    (damage,) = check_pool(pool).damage
    assert "pool.json is damaged" in damage.what
    with pytest.raises(DamagedError, match="build it again"):
        commands.repair(pool)
