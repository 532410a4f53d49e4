"""`cit verify` names every damage, `cit repair` mends it, and the run goes on as it would have."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jobs import FIELDS, JOBS, make_world
from tiny import make_config, make_pool
from tiny_runs import assert_same_run, ledger_hashes

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_curate.run.ledger import Run
from cit_curate.storage.findings import Findings
from cit_curate.storage.lock import lock_path, writer_lock
from cit_train.loop.recovery import commands
from cit_train.loop.recovery.find import find_damage
from cit_train.outer_loop import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the jobs read."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 outer steps that nobody has damaged."""
    out = tmp_path_factory.mktemp("whole")
    JOBS["training"](world, out)
    return out / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


CHANGES = {"cut": cut, "flipped": flip, "deleted": delete, "removed": shutil.rmtree}


def verified(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `cit verify --json` prints; and that its exit code fits it."""
    code: object = 0
    capsys.readouterr()  # what was printed before
    try:
        commands.verify(path, json=True)
    except SystemExit as end:
        code = end.code
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (4 if value["damaged"] else 0)
    return value


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): b"" if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_that_is_whole_has_no_damage_and_nothing_to_mend(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(run)
    assert verified(run, capsys) == {
        "path": str(run),
        "damaged": False,
        "damage": [],
        "notes": [],
    }
    commands.verify(run)
    assert capsys.readouterr().out == f"{run}: every file is as it was written\n"
    commands.repair(run)
    assert capsys.readouterr().out == f"{run}: there is nothing to repair\n"
    assert tree(run) == before
    assert {path.name for path in run.parent.iterdir()} == {"run"}


# What is damaged, and what of the run is then set back (its last outer step) or put aside.
DAMAGED = [
    *(
        (name, change, "set back")
        for name in ("selections", "near_misses", "rounds", "used", "rejects")
        for change in ("flipped", "deleted")
    ),
    ("manifests", "flipped", "set back"),
    ("manifests", "cut", "set back"),
    ("checkpoints/update-000006/model.safetensors", "flipped", "set back"),
    ("checkpoints/update-000006/optimizer.safetensors", "cut", "set back"),
    ("checkpoints/update-000006/manifest.json", "deleted", "set back"),
    ("checkpoints/update-000003/model.safetensors", "flipped", "checkpoints/update-000003"),
    ("shards/step=000001/lane00000-000001.tar", "flipped", ""),
    ("shards/step=000001/lane00000-000001.tar", "deleted", ""),
    ("shards/step=000000/lane00000-000000.json", "cut", ""),
    ("shards/step=000000/lane00000.json", "flipped", ""),
    ("shards/step=000000/lane00000.rejects.json", "flipped", ""),
    ("shards/step=000001", "removed", ""),
    ("shards", "removed", ""),
    ("metadata.json", "flipped", ""),
    ("index/manifest.json", "flipped", "index"),
    ("index/vectors", "flipped", "index"),
    ("features/part", "flipped", "-"),
    ("features/keys", "cut", "-"),
    ("metrics.jsonl", "flipped", "metrics.jsonl"),
    ("status.json", "cut", "status.json"),
]


def damaged_file(run: Path, name: str) -> Path:
    if (run / name).is_file() or name.startswith("shards"):
        return run / name
    if name == "manifests":
        return run / "manifests" / "step=000001.json"
    if name in ("index/vectors", "features/part", "features/keys"):
        pattern = {
            "index/vectors": "index/vectors-*.npy",
            "features/part": "features/*/part-????????????????.npy",
            "features/keys": "features/*/part-*.keys.npy",
        }[name]
        return sorted(run.glob(pattern))[0]
    return run / name / "step=000001" / "lane=00000.parquet"


@pytest.mark.parametrize(("name", "change", "put_aside"), DAMAGED)
@pytest.mark.faults("L5", "K1", "K2", "S1", "S3", "E5")
def test_what_is_damaged_is_named_and_mended_and_the_run_goes_on(
    world: Path,
    whole: Path,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: str,
    put_aside: str,
) -> None:
    path = damaged_file(run, name)
    CHANGES[change](path)
    before = tree(run)
    found = verified(run, capsys)
    assert any(str(path) == each["file"] for each in found["damage"]) or name.startswith(
        ("manifests", "features", "shards")
    ), found
    assert path.name.split(".")[0] in json.dumps(found["damage"])
    assert all("cit repair" in each["advice"] for each in found["damage"])
    with pytest.raises(DamagedError, match=path.name.split(".")[0]) as caught:
        commands.verify(run)
    assert caught.value.exit_code == 4
    commands.repair(run, dry_run=True)
    told = capsys.readouterr().out.replace("dry run: ", "")
    assert tree(run) == before
    commands.repair(run)
    assert capsys.readouterr().out == told
    assert not verified(run, capsys)["damaged"]
    aside = run / "damaged"
    if put_aside == "set back":
        assert len(Run.open(run).commits()) == 1
        assert (aside / "checkpoints" / "update-000006").is_dir()
        assert change == "deleted" or (aside / path.relative_to(run)).is_file()
    elif put_aside == "-":
        assert not path.exists()
    elif put_aside:
        assert (aside / put_aside).exists()
    else:
        assert not aside.exists()
        after = tree(run)
        assert {name: content for name, content in after.items() if "damaged/" not in name} == tree(
            whole
        )
    train(make_config(world, **FIELDS), run, resume=True)
    if put_aside != "metrics.jsonl":
        assert_same_run(whole, run)


@pytest.mark.parametrize("change", ["cut", "flipped"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "trainer.json", "manifest.json"]
)
@pytest.mark.faults("K2")
def test_a_last_checkpoint_that_is_damaged_is_told_of_and_the_run_goes_on_from_the_one_before(
    world: Path, whole: Path, run: Path, caplog: pytest.LogCaptureFixture, name: str, change: str
) -> None:
    damaged = Path("checkpoints", "update-000006", name)
    CHANGES[change](run / damaged)
    content = (run / damaged).read_bytes()
    train(make_config(world, **FIELDS), run, resume=True)
    assert "cannot resume after outer step 1" in caplog.text
    assert "resuming after outer step 0 instead" in caplog.text
    assert_same_run(whole, run)
    assert (run / "damaged" / damaged).read_bytes() == content


@pytest.mark.faults("L5", "L6")
def test_files_that_no_manifest_names_are_put_aside_and_the_run_stays_as_it_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "manifests/step=000001.json", run / "manifests/step=1.json")
    shutil.copy(run / "used/step=000000/lane=00000.parquet", run / "used/step=000000/old.parquet")
    (run / ".tmp-0x-half").write_text("half")
    (run / "checkpoints" / f".tmp-{2**22 + 1}-update-000009").mkdir()
    before = ledger_hashes(run)
    found = verified(run, capsys)
    assert {each["file"].rsplit("/", 1)[1] for each in found["damage"]} == {
        "step=1.json",
        "old.parquet",
    }
    assert len(found["notes"]) == 2
    commands.repair(run)
    assert verified(run, capsys)["notes"] == []
    assert not list(run.rglob(".tmp-*"))
    assert sorted(before.items() - ledger_hashes(run).items()) == sorted(
        (name, before[name]) for name in ("manifests/step=1.json", "used/step=000000/old.parquet")
    )


@pytest.mark.faults("L5")
def test_what_cannot_be_set_back_is_left_and_told(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delete(run / "selections" / "step=000000" / "lane=00000.parquet")
    flip(run / "shards" / "step=000001" / "lane00000-000000.tar")
    before = tree(run)
    with pytest.raises(DamagedError, match="--overwrite"):
        commands.repair(run)
    assert ledger_hashes(run) == {
        name: value for name, value in ledger_hashes(run).items() if name in before
    }
    capsys.readouterr()  # what was printed before
    with pytest.raises(SystemExit):
        commands.repair(run, json=True)
    value = json.loads(capsys.readouterr().out)
    assert value["failed"]
    assert value["damaged"]


def test_a_config_that_was_changed_is_told_of(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "config.json"
    path.write_text(path.read_text().replace('"threshold": 0.5', '"threshold": 0.6'))
    (damage,) = verified(run, capsys)["damage"]
    assert damage["file"] == str(path)
    with pytest.raises(DamagedError, match="remove head"):
        commands.repair(run)
    (run / "head.json").unlink()
    assert len(verified(run, capsys)["notes"]) == 1


@pytest.mark.faults("S3")
def test_shards_need_the_pool_as_it_was(
    world: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / "shards" / "step=000001"
    delete(folder / "lane00000-000001.tar")
    other = make_pool(tmp_path / "other", num_images=12)
    with pytest.raises(DamagedError, match="another fingerprint"):
        commands.repair(run, pool=(str(other),))
    moved = Path(shutil.copytree(world / "data" / "pool", tmp_path / "moved"))
    commands.repair(run, pool=(str(moved),))
    assert find_damage(Run(run)) == Findings()
    capsys.readouterr()


@pytest.mark.faults("S3")
def test_an_image_that_is_gone_is_named_when_its_shard_cannot_be_made_again(
    tmp_path: Path, world: Path
) -> None:
    pool = make_pool(tmp_path / "data", num_images=60)
    fields = {"max_updates": 2, "eval_data": "", "pool": str(pool)}
    train(make_config(world, **fields), tmp_path / "run")
    folder = tmp_path / "run" / "shards" / "step=000000"
    delete(folder / "lane00000-000000.tar")
    for path in (tmp_path / "data" / "images").iterdir():
        path.unlink()
    with pytest.raises(DamagedError, match=r"images/\d+.png of .* could be opened before"):
        commands.repair(tmp_path / "run")


def test_while_somebody_writes_nothing_is_mended_and_a_check_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = lock_path(run)
    with writer_lock(run):
        with pytest.raises(ResourceError, match=f"process {os.getpid()} on"):
            commands.repair(run)
        (note,) = verified(run, capsys)["notes"]
        assert note.startswith(f"process {os.getpid()} on")
    assert verified(run, capsys)["notes"] == []
    lock.write_text("left by somebody who was killed")
    capsys.readouterr()
    commands.repair(run, dry_run=True)
    assert lock.exists()
    told = f"removed {lock}, left by a writer that was killed\n"
    assert capsys.readouterr().out == f"dry run: {told}"
    commands.repair(run)
    assert not lock.exists()
    assert capsys.readouterr().out == told


def test_what_is_neither_run_nor_pool_is_refused(tmp_path: Path) -> None:
    for command in (commands.verify, commands.repair):
        for path in (tmp_path, tmp_path / "nothing", tmp_path / "no" / "where"):
            with pytest.raises(ConfigError, match="neither a run nor a pool"):
                command(path)
    with pytest.raises(ConfigError, match="in a store"):
        commands.repair(Path("s3://bucket/pool"))


@pytest.fixture(scope="module")
def several(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives finished runs of other kinds, by name."""
    folder = tmp_path_factory.mktemp("several")
    for name, num_images in (("shapes", 72), ("more", 24)):
        make_pool(folder / name, num_images=num_images, broken=tuple(range(0, num_images, 5)))
    pools = [f"shapes:{folder}/shapes/pool=0.75", f"more:{folder}/more/pool=0.25"]
    kinds: dict[str, dict[str, Any]] = {
        "lanes": {"lanes": 2, "batch_size": 4, "pairs_per_shard": 5},
        "pools": {"pool": pools},
        "none": {"curation": "none"},
        "multiset": {"collection": "multiset", "max_passes": 9},
        "short": {
            "on_shortfall": "train", "max_passes": 1, "threshold": 0.99, "curate_every": 50
        },
        "accumulate": {"accumulate": 2, "batch_size": 4},
        "smaller": {"shard_image_side": 20},
        "some": {"max_sample": 60},
    }  # fmt: skip

    @cache
    def made(kind: str) -> Path:
        config = make_config(world, **{"curate_every": 3, "eval_data": "", **kinds[kind]})
        train(config, folder / f"run-{kind}")
        return folder / f"run-{kind}"

    return made


@pytest.mark.parametrize(
    "kind", ["lanes", "pools", "none", "multiset", "short", "accumulate", "smaller", "some"]
)
@pytest.mark.faults("S3")
def test_all_shards_are_made_again_to_the_byte_whatever_the_settings(
    several: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    whole = several(kind)
    run = Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))
    assert Run.open(run).read("rejects").num_rows, "rejects must be replaced for this to mean much"
    tars = sorted(run.rglob("*.tar"))
    assert len(tars) > 2
    for number, path in enumerate(tars):
        (flip, delete, os.remove)[number % 3](path)
        if number % 3 == 2:
            path.with_suffix(".json").unlink()
    commands.repair(run)
    assert tree(run) == tree(whole)
