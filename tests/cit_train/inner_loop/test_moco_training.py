"""Training MoCo's head on its frozen tower, and going on from a saved dual encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_config, make_moco_tower
from transformers import AutoModel

from cit_curate.run.ledger import Run
from cit_curate.run.ledger_tables import LEDGER_TABLES
from cit_train.inner_loop.trainer import TrainState, UpdateReport
from cit_train.loop.session import open_session
from cit_train.loop.watcher import Watcher
from cit_train.models import MocoModel
from cit_train.outer_loop import train

HEAD = "vision_model.moco.head."


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random MoCo tower of timm's smallest ViT, for pictures of 32 x 32."""
    return make_moco_tower(tmp_path_factory.mktemp("moco"))


def last(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize("features", [pytest.param("live", marks=pytest.mark.slow), "cached"])
def test_only_the_head_moves_and_its_running_statistics_are_those_of_one_lane(
    world: Path, tower: Path, tmp_path: Path, features: str
) -> None:
    config = make_config(
        world, vision_encoder=str(tower), vision_features=features, lanes=2, max_updates=4
    )
    before = open_session(config, tmp_path / "before").trainer.model.state_dict()
    run = train(config, tmp_path / "run")
    after = last(run)
    moved = {
        name
        for name, value in before.items()
        if name.startswith("vision_model.") and not torch.equal(value, after[name])
    }
    assert moved
    assert all(name.startswith(HEAD) for name in moved)
    assert f"{HEAD}0.weight" in moved
    # 4 updates of 2 lanes: lane 0 alone counts.
    assert int(after[f"{HEAD}1.num_batches_tracked"]) == 4


@pytest.mark.slow
def test_an_evaluation_is_that_of_the_saved_model(world: Path, tower: Path, tmp_path: Path) -> None:
    from cit_train.evaluation.evaluator import Evaluator
    from cit_train.models.load import load_dual_encoder

    config = make_config(world, vision_encoder=str(tower))
    run = train(config, tmp_path / "run")
    logged = [row for row in run.metrics() if row["kind"] == "eval"][-1]
    model, tokenizer = load_dual_encoder(run.path / "checkpoints" / "last")
    evaluator = Evaluator.open(config.evaluation, 32)
    assert evaluator is not None
    again = evaluator(model, tokenizer)
    assert again.accuracy == pytest.approx(logged["accuracy"])
    assert again.mean_per_class == pytest.approx(logged["mean_per_class"])


@pytest.mark.slow
def test_the_saved_model_loads_with_automodel(world: Path, tower: Path, tmp_path: Path) -> None:
    run = train(make_config(world, vision_encoder=str(tower), max_updates=2), tmp_path / "run")
    model = AutoModel.from_pretrained(run.path / "checkpoints" / "last")
    stored = last(run)
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name]), name


@pytest.mark.slow
def test_training_goes_on_from_a_saved_dual_encoder(
    world: Path, tower: Path, tmp_path: Path
) -> None:
    first = train(make_config(world, vision_encoder=str(tower)), tmp_path / "first")
    config = make_config(world, init_from=str(first.path / "checkpoints" / "last"))
    session = open_session(config, tmp_path / "second")
    start = session.trainer.model.state_dict()
    for name, value in last(first).items():
        assert torch.equal(start[name], value), name
    assert isinstance(session.trainer.model.vision_model, MocoModel)
    vectors = session.trainer.text_encoder().embed(["a red disc"])
    assert np.isfinite(vectors).all()


class StopAfter(Watcher):
    """Ends a run as Ctrl-C does, after some update."""

    def __init__(self, update: int) -> None:
        self._update = update

    def trained(self, state: TrainState, report: UpdateReport) -> None:
        if state.update == self._update:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.faults("K3")
@pytest.mark.parametrize(
    "fields",
    [
        {"lanes": 2, "max_passes": 6},
        {"accumulate": 2, "max_passes": 6, "clip_grad": 0.1},
        {"curation": "none", "max_sample": 40, "vision_features": "cached"},
        {"train_vision": "all", "train_text": "pool", "eval_every": 2},
    ],
    ids=["lanes", "accumulate", "subset", "all"],
)
def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(
    world: Path, tower: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    config = make_config(world, vision_encoder=str(tower), **fields)
    whole = train(config, tmp_path / "whole")
    for update in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped", resume=True, watcher=StopAfter(update))
    stopped = train(config, tmp_path / "stopped", resume=True)
    first, second = last(whole), last(stopped)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for table in LEDGER_TABLES:
        assert whole.read(table).equals(stopped.read(table)), table


@pytest.mark.slow
def test_a_run_out_of_patience_ends_early_and_stays_ended(
    world: Path, tower: Path, tmp_path: Path
) -> None:
    config = make_config(
        world, vision_encoder=str(tower), eval_every=1, patience=1, lr=1e-9, min_lr=1e-9
    )
    run = train(config, tmp_path / "run")
    [first, *_] = [row for row in run.metrics() if row["kind"] == "eval"]
    assert first["update"] == 1
    assert run.commits()[-1].update == 2, "the first outer step ends, and with it the run"
    assert len(train(config, tmp_path / "run", resume=True).commits()) == 1
