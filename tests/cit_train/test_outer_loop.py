"""The whole loop on tiny real models: what is in a run, twice the same, killed and resumed."""

import errno
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from tiny import make_config
from tiny_runs import assert_same_run, start_fresh, start_training
from transformers import CLIPImageProcessor

from cit_curate.errors import (
    BadInputError,
    ConfigError,
    NotFiniteError,
    ResourceError,
    ShortfallError,
)
from cit_curate.pool.pool import Pool
from cit_curate.run.ledger import Run
from cit_curate.run.shards import ShardWriter
from cit_curate.sources.columns import Columns
from cit_curate.storage.lock import writer_lock
from cit_train.config import replace_fields
from cit_train.inner_loop.trainer import TrainState, UpdateReport
from cit_train.loop.session import open_session
from cit_train.loop.watcher import Watcher
from cit_train.outer_loop import train, train_session


def test_a_run_adds_up(finished: Path) -> None:
    run = Run.open(finished)
    assert [commit.update for commit in run.commits()] == [2, 4, 6]
    assert sum(run.counts().values()) == 6 * 8
    used = run.read("used")
    assert pc.min(used["first_update"]).as_py() == 1
    assert pc.max(used["last_update"]).as_py() == 6
    rounds = run.read("rounds").to_pylist()
    assert [row["selected"] for row in rounds] == [16, 16, 16]
    assert [row["update"] for row in rounds] == [0, 2, 4]
    encoders = run.read("selections")["encoder"].unique().to_pylist()
    assert len(encoders) == 3, "every outer step must see another version of the encoder"


@pytest.mark.faults("I1")
def test_used_pairs_are_the_selected_ones_and_no_rejected_one_is_among_them(
    finished: Path,
) -> None:
    run = Run.open(finished)
    selected = run.read("selections")
    rejects = run.read("rejects")
    for step in range(3):
        chosen = selected.filter(pc.equal(selected["outer_step"], step))
        used = run.read("used")
        of_step = used.filter(pc.equal(used["outer_step"], step))
        assert sorted(chosen["pair_key"].to_pylist()) == sorted(of_step["pair_key"].to_pylist())
        assert chosen["scan_position"].to_pylist() == sorted(chosen["scan_position"].to_pylist())
        bad = rejects.filter(pc.equal(rejects["outer_step"], step))["scan_position"].to_pylist()
        assert not set(bad) & set(chosen["scan_position"].to_pylist())
    assert set(rejects["reason"].to_pylist()) == {"truncated_image"}


@pytest.mark.faults("L8")
@pytest.mark.slow
def test_the_same_command_gives_the_same_ledger_and_weights_under_another_hash_seed(
    world: Path, finished: Path, tmp_path: Path
) -> None:
    assert start_fresh(world, tmp_path / "again", hash_seed="77").wait() == 0
    assert_same_run(finished, tmp_path / "again")


@pytest.mark.faults("K1", "K3", "L4", "K7")
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("manifests/step=000000.json", marks=pytest.mark.slow),
        pytest.param("shards/step=000001/lane00000-000000.tar", marks=pytest.mark.slow),
        "checkpoints/.tmp-*-update-000004",
        pytest.param("used/step=000002/lane=00000.parquet", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_is_the_run_that_was_never_stopped(
    world: Path, finished: Path, tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "killed"
    process = start_training(world, out)
    deadline = time.monotonic() + 120
    while not list(out.glob(moment)):
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    committed = len(Run.open(out).commits())
    assert committed < 3
    train(make_config(world), out, resume=True)
    assert_same_run(finished, out)
    assert len(Run.open(out).commits()) == 3
    assert not list(out.rglob(".tmp-*"))
    updates = [row["update"] for row in Run.open(out).metrics() if row["kind"] == "train"]
    assert updates == [1, 2, 3, 4, 5, 6]


@pytest.mark.faults("K8")
def test_resuming_a_finished_run_changes_nothing(world: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    train(make_config(world), finished, resume=True)
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.faults("K5")
def test_resuming_with_other_settings_names_them(world: Path, finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"threshold: 0\.5 then, 0\.6 now"):
        train(make_config(world, threshold=0.6), finished, resume=True)


@pytest.mark.faults("G2c")
def test_a_folder_with_something_in_it_is_refused(world: Path, finished: Path) -> None:
    with pytest.raises(ConfigError, match="not empty"):
        train(make_config(world), finished)


@pytest.mark.slow
def test_the_checkpoint_loads_without_us_and_gives_the_similarities_of_our_evaluation(
    world: Path, finished: Path
) -> None:
    # A Hugging Face tower and pooler pooling: nothing of ours is imported.
    code = (
        "import sys, torch; from pathlib import Path; from PIL import Image\n"
        "from transformers import AutoModel, VisionTextDualEncoderProcessor\n"
        "folder, pictures = sys.argv[1:]\n"
        "model = AutoModel.from_pretrained(folder).eval()\n"
        "processor = VisionTextDualEncoderProcessor.from_pretrained(folder)\n"
        "paths = sorted(Path(pictures).rglob('*.png'))\n"
        "names = sorted({path.parent.name for path in paths})\n"
        "images = [Image.open(path).convert('RGB') for path in paths]\n"
        "texts = [f'a photo of a {name}' for name in names]\n"
        "inputs = processor(text=texts, images=images, return_tensors='pt', padding=True)\n"
        "inputs.pop('token_type_ids', None)\n"
        "with torch.no_grad(): output = model(**inputs)\n"
        "right = output.logits_per_image.argmax(1)\n"
        "target = torch.tensor([names.index(path.parent.name) for path in paths])\n"
        "print(100 * (right == target).float().mean().item())\n"
        "print(float((output.logits_per_image / model.logit_scale.exp())[0, 0]))\n"
        "assert not any(name.startswith('cit_') for name in sys.modules)\n"
    )
    folder = finished / "checkpoints" / "last"
    command = [sys.executable, "-c", code, str(folder), str(world / "pictures")]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert result.returncode == 0, result.stderr
    accuracy, similarity = (float(line) for line in result.stdout.split())
    ours = [row for row in Run.open(finished).metrics() if row["kind"] == "eval"][-1]
    assert accuracy == pytest.approx(ours["accuracy"])
    assert similarity == pytest.approx(first_similarity(folder, world / "pictures"), abs=1e-5)


def first_similarity(folder: Path, pictures: Path) -> float:
    """Cosine of the first picture and the first class, by our evaluation's own functions."""
    from cit_train.evaluation.pooled_images import pooled_images, project
    from cit_train.evaluation.readers.image_folder import ImageFolder
    from cit_train.evaluation.zero_shot import class_features
    from cit_train.models.load import load_dual_encoder

    model, tokenizer = load_dual_encoder(folder)
    images = ImageFolder.open(pictures)
    classes = class_features(model, tokenizer, images.classes, ("a photo of a {}",))
    return float(project(model, pooled_images(model, images.paths))[0] @ classes[0])


@pytest.mark.slow
def test_a_registered_type_loads_after_its_import_and_only_then(
    world: Path, tmp_path: Path
) -> None:
    train(make_config(world, pooling="mean", max_updates=2), tmp_path / "mean")
    folder = tmp_path / "mean" / "checkpoints" / "last"
    load = f"from transformers import AutoModel; AutoModel.from_pretrained({str(folder)!r})"
    fresh = subprocess.run([sys.executable, "-c", load], capture_output=True, check=False)
    assert fresh.returncode != 0
    assert b"pooled-text" in fresh.stderr
    code = f"import cit_train.models; {load}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert first_similarity(folder, world / "pictures") <= 1


@pytest.mark.slow
def test_cached_features_do_not_depend_on_what_the_cache_held(world: Path, tmp_path: Path) -> None:
    cache = {"vision_features": "cached", "cached_views": 2, "max_updates": 4}
    config = make_config(world, **cache, feature_cache=str(tmp_path / "cache"))
    train(config, tmp_path / "cold")
    assert list((tmp_path / "cache").rglob("part-*.npy"))
    train(config, tmp_path / "warm")
    assert_same_run(tmp_path / "cold", tmp_path / "warm")


def test_two_lanes_train_on_both_and_keep_their_own_ledger(world: Path, tmp_path: Path) -> None:
    run = train(make_config(world, lanes=2, max_updates=4), tmp_path / "lanes")
    assert sum(run.counts().values()) == 2 * 4 * 8
    used = run.read("used")
    for lane in (0, 1):
        of_lane = used.filter(pc.equal(used["lane"], lane))
        assert pc.sum(of_lane["times_used"]).as_py() == 4 * 8
    ids = [
        set(pc.unique(table["image_id"]).to_pylist())
        for table in (
            run.read("selections").filter(pc.equal(run.read("selections")["lane"], lane))
            for lane in (0, 1)
        )
    ]
    assert not ids[0] & ids[1]


@pytest.mark.slow
def test_worker_processes_change_nothing(world: Path, finished: Path, tmp_path: Path) -> None:
    config = make_config(world, num_workers=2, keep_shards="all")
    train(config, tmp_path / "workers")
    assert_same_run(finished, tmp_path / "workers")


@pytest.mark.faults("L1")
def test_a_threshold_that_nothing_passes_ends_the_run_with_a_suggestion(
    world: Path, tmp_path: Path
) -> None:
    with pytest.raises(ShortfallError, match="best similarity") as caught:
        train(make_config(world, threshold=1.0, min_ratio=0.0), tmp_path / "none")
    assert caught.value.suggested_threshold is not None


@pytest.mark.faults("L3")
@pytest.mark.slow
def test_the_policy_train_makes_shorter_outer_steps(world: Path, tmp_path: Path) -> None:
    config = make_config(
        world, curate_every=50, max_passes=1, on_shortfall="train", max_updates=5, threshold=0.99
    )
    run = train(config, tmp_path / "short")
    assert run.commits()[-1].update == 5
    assert sum(run.counts().values()) == 5 * 8
    many = train(replace_fields(config, max_updates=20), tmp_path / "many")
    assert [row["update"] for row in many.metrics() if row["kind"] == "train"] == [*range(1, 21)]
    assert len(many.commits()) > 1


def test_too_few_images_for_one_batch_is_an_error_and_not_an_endless_run(
    world: Path, tmp_path: Path
) -> None:
    from tiny import make_pool

    pool = make_pool(tmp_path / "data", num_images=12, broken=tuple(range(8)))
    config = make_config(world, pool=str(pool), threshold=-1.0, on_shortfall="train", max_passes=1)
    with pytest.raises(BadInputError, match="too few images"):
        train(config, tmp_path / "few")


@pytest.mark.faults("I5")
def test_a_pool_whose_images_are_gone_stops_and_says_where_to_look(
    world: Path, tmp_path: Path
) -> None:
    from tiny import make_pool

    pool = make_pool(tmp_path / "data", num_images=200)
    for path in (tmp_path / "data" / "images").iterdir():
        path.unlink()
    config = make_config(world, pool=str(pool), threshold=-1.0, curate_every=20)
    with pytest.raises(BadInputError, match="cit pool info"):
        train(config, tmp_path / "gone")


@pytest.mark.faults("D3")
def test_a_loss_that_is_not_finite_names_the_update_and_the_pairs(
    world: Path, tmp_path: Path
) -> None:
    session = open_session(make_config(world), tmp_path / "nan")

    class Breaker(Watcher):
        def trained(self, state: TrainState, report: UpdateReport) -> None:
            with torch.no_grad():
                session.trainer.model.logit_scale.fill_(float("nan"))

    with pytest.raises(NotFiniteError, match="update 1; its pairs begin with"):
        train_session(session, Breaker())


@pytest.mark.faults("K5")
def test_changed_class_names_are_noticed_on_resume(world: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("red disc\nblue square\n")
    config = make_config(world, metadata=str(classes), max_updates=2)
    train(config, tmp_path / "run")
    classes.write_text("red disc\ngreen stripe\n")
    with pytest.raises(ConfigError, match="metadata_fingerprint"):
        train(config, tmp_path / "run", resume=True)


@pytest.mark.faults("K5")
def test_another_normalisation_of_images_is_noticed_on_resume(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "vision", tmp_path / "vision")
    config = make_config(world, vision_encoder=str(tmp_path / "vision"), max_updates=2)
    train(config, tmp_path / "run")
    CLIPImageProcessor(image_mean=(0.5,) * 3).save_pretrained(tmp_path / "vision")
    with pytest.raises(ConfigError, match="vision_fingerprint"):
        train(config, tmp_path / "run", resume=True)


@pytest.mark.faults("P9")
def test_two_trainings_into_one_run_exclude_each_other(world: Path, tmp_path: Path) -> None:
    with writer_lock(tmp_path / "run"), pytest.raises(ResourceError, match="is held by"):
        train(make_config(world), tmp_path / "run")


def test_resume_starts_a_run_where_none_is_or_where_starting_was_cut_short(
    world: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    run = train(make_config(world, max_updates=2), tmp_path / "empty", resume=True)
    assert run.commits()[-1].update == 2


@pytest.mark.slow
def test_pairs_without_an_image_are_passed_over_and_do_not_count_as_bad(
    world: Path, tmp_path: Path
) -> None:
    from tiny import make_pool

    make_pool(tmp_path / "data", num_images=40)
    table = (tmp_path / "data" / "pairs.csv").read_text().splitlines()
    bare = [f"x{number:04d},,a big red disc,red" for number in range(300)]
    (tmp_path / "data" / "more.csv").write_text("\n".join([*table, *bare]) + "\n")
    columns = Columns(image_id="image_id", image="image", text=("title", "tag"))
    Pool.build([tmp_path / "data" / "more.csv"], tmp_path / "pool", columns=columns)
    config = make_config(world, pool=str(tmp_path / "pool"), threshold=-1.0, max_passes=9)
    run = train(config, tmp_path / "run")
    assert sum(run.counts().values()) == 6 * 8
    assert set(run.read("rejects")["reason"].to_pylist()) == {"no_image"}


@pytest.mark.faults("S7")
def test_a_full_disk_while_writing_shards_is_not_a_wait_for_ever(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(OSError, match="No space left"):
        train(make_config(world), tmp_path / "full")


def test_the_saved_processor_cuts_captions_as_training_did(finished: Path) -> None:
    from transformers import VisionTextDualEncoderProcessor

    folder = finished / "checkpoints" / "last"
    processor = VisionTextDualEncoderProcessor.from_pretrained(folder)
    tokens = processor(text=["red " * 90], truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape[1] == 32


def test_only_recent_shards_and_checkpoints_stay(finished: Path) -> None:
    kept = sorted(path.name for path in (finished / "shards").iterdir())
    assert kept == ["step=000001", "step=000002"]
    best = (finished / "checkpoints" / "best").resolve().name
    names = {path.name for path in (finished / "checkpoints").glob("update-*")}
    assert names == {"update-000004", "update-000006", best}


def test_training_order_is_a_permutation_of_the_selection(finished: Path) -> None:
    from cit_curate.run.shards import read_shard, shard_entry

    folder = finished / "shards" / "step=000002"
    keys = [
        sample.pair_key
        for path in sorted(folder.glob("*.tar"))
        for sample in read_shard(folder, shard_entry(path))
    ]
    selections = Run.open(finished).read("selections")
    chosen = selections.filter(pc.equal(selections["outer_step"], 2))["pair_key"].to_pylist()
    assert sorted(keys) == sorted(chosen)
    assert keys != chosen
    assert np.unique(keys).size == len(keys)


def test_missing_images_come_first_in_the_message_of_a_run_that_lacks_pairs(
    world: Path, tmp_path: Path
) -> None:
    from tiny import make_pool

    pool = make_pool(tmp_path / "data", num_images=12)
    for path in (tmp_path / "data" / "images").iterdir():
        path.unlink()
    config = make_config(world, pool=str(pool), threshold=-1.0, max_passes=1)
    config = replace_fields(config, batch_size=2, curate_every=2)
    with pytest.raises(BadInputError, match=r"images cannot be opened.*missing_image") as caught:
        train(config, tmp_path / "gone")
    message = str(caught.value)
    assert message.index("cannot be opened") < message.index("similarity")
    config = replace_fields(config, on_shortfall="train")
    with pytest.raises(BadInputError, match=r"cannot be opened.*missing_image.*too few images"):
        train(config, tmp_path / "short")
