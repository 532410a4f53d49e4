"""One update: accumulation, clipping, a trained vision tower, projected embeddings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lane_batches import gradients, lane_batch, without_dropout
from tiny import make_config

from cit_curate.errors import ConfigError, NotFiniteError
from cit_train.inner_loop import trainer as trainer_module
from cit_train.inner_loop.losses import contrastive_loss
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.session import Session, open_session


def session(world: Path, out: Path, **fields: object) -> Session:
    return open_session(make_config(world, **fields), out)


def test_accumulated_batches_give_the_mean_of_their_gradients(world: Path, tmp_path: Path) -> None:
    one = session(world, tmp_path / "one", accumulate=2)
    without_dropout(one.trainer)
    state = replace(one.state, update=3)
    parts = [lane_batch(0, 0), lane_batch(0, 8)]
    _, report = one.trainer.step(parts, state)
    together = gradients(one.trainer)
    separate, losses = [], []
    for number, part in enumerate(parts):
        other = session(world, tmp_path / str(number))
        without_dropout(other.trainer)
        _, alone = other.trainer.step([part], state)
        separate.append(gradients(other.trainer))
        losses.append(alone.loss)
    assert report.loss == pytest.approx(sum(losses) / 2)
    for name, gradient in together.items():
        mean = (separate[0][name] + separate[1][name]) / 2
        assert torch.allclose(gradient, mean, atol=1e-6), name


def test_lanes_make_one_loss_over_all_their_pairs(world: Path, tmp_path: Path) -> None:
    opened = session(world, tmp_path / "run", lanes=2)
    without_dropout(opened.trainer)
    lanes = [lane_batch(0, 0), lane_batch(1, 0)]
    images, texts = [], []
    for lane in lanes:
        with torch.no_grad():
            image, text, _ = opened.trainer._towers([lane], 3, 0)
        images.append(image)
        texts.append(text)
    expected = contrastive_loss(
        torch.cat(images), torch.cat(texts), opened.trainer.model.logit_scale, loss="cit"
    )
    _, report = opened.trainer.step(lanes, replace(opened.state, update=3))
    assert report.loss == pytest.approx(float(expected.detach()), abs=1e-6)


def test_clipping_bounds_the_norm_of_the_whole_gradient(world: Path, tmp_path: Path) -> None:
    free = session(world, tmp_path / "free")
    clipped = session(world, tmp_path / "clipped", clip_grad=0.01)
    norms = []
    for opened in (free, clipped):
        opened.trainer.step([lane_batch(0, 0)], replace(opened.state, update=3))
        values = gradients(opened.trainer).values()
        norms.append(float(torch.cat([value.flatten() for value in values]).norm()))
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.faults("D3")
@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_a_gradient_that_is_not_finite_moves_no_weight_and_names_its_pairs(
    world: Path, tmp_path: Path, clip_grad: float | None
) -> None:
    trainer = session(world, tmp_path / "run", clip_grad=clip_grad).trainer
    weight = trainer.model.text_projection.weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), torch.nan))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batch = lane_batch(0, 0)
    with pytest.raises(NotFiniteError, match="the norm of its gradient nan") as caught:
        trainer.step([batch], TrainState(3, 0, ()))
    assert caught.value.pair_keys == batch.pair_keys
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.faults("D3")
def test_updates_that_overflow_again_and_again_end_the_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "MAX_SKIPPED_IN_A_ROW", 2)
    trainer = session(world, tmp_path / "run", precision="float16").trainer
    weight = trainer.model.text_projection.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    for _ in range(2):
        _, report = trainer.step([lane_batch(0, 0)], TrainState(3, 0, ()))
        assert report.skipped
    with pytest.raises(NotFiniteError, match="2 updates in a row have overflowed"):
        trainer.step([lane_batch(0, 0)], TrainState(3, 0, ()))


def test_clipping_bounds_the_gradient_and_not_its_scaled_form(world: Path, tmp_path: Path) -> None:
    opened = session(world, tmp_path / "run", clip_grad=0.01, precision="float16")
    # A scale that nothing overflows at.
    opened.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    _, report = opened.trainer.step([lane_batch(0, 0)], replace(opened.state, update=3))
    assert not report.skipped
    values = gradients(opened.trainer).values()
    norm = float(torch.cat([value.flatten() for value in values]).norm())
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_a_vision_tower_that_is_trained_moves_and_a_frozen_one_does_not(
    world: Path, tmp_path: Path
) -> None:
    for mode, moves in (("all", True), ("head", False)):
        opened = session(world, tmp_path / mode, train_vision=mode)
        before = {
            name: value.clone()
            for name, value in opened.trainer.model.vision_model.state_dict().items()
        }
        opened.trainer.step([lane_batch(0, 0)], replace(opened.state, update=3))
        after = opened.trainer.model.vision_model.state_dict()
        changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
        assert bool(changed) == moves


def test_projected_embeddings_are_those_of_the_text_projection(world: Path, tmp_path: Path) -> None:
    plain = session(world, tmp_path / "plain").trainer.text_encoder()
    opened = session(world, tmp_path / "projected", project_embeddings=True)
    projected = opened.trainer.text_encoder()
    texts = ["a red disc", "blue"]
    weight = opened.trainer.model.text_projection.weight.detach().numpy()
    expected = plain.embed(texts) @ weight.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert projected.dim == 16
    assert np.allclose(projected.embed(texts), expected, atol=1e-6)
    assert projected.fingerprint != plain.fingerprint


@pytest.mark.parametrize("fields", [{}, {"micro_batch": 3}])
def test_text_buckets_change_no_gradient_without_dropout(
    world: Path, tmp_path: Path, fields: dict[str, int]
) -> None:
    batch = lane_batch(0, 0)
    longer = [f"{text}{' , very big' * (number % 4)}" for number, text in enumerate(batch.captions)]
    batch = replace(batch, captions=longer)
    results = {}
    for buckets in (1, 3):
        opened = session(world, tmp_path / str(buckets), text_buckets=buckets, **fields)
        without_dropout(opened.trainer)
        _, report = opened.trainer.step([batch], replace(opened.state, update=3))
        results[buckets] = (report.loss, gradients(opened.trainer))
    assert results[1][0] == pytest.approx(results[3][0], abs=1e-5)
    for name, gradient in results[1][1].items():
        assert torch.allclose(gradient, results[3][1][name], atol=1e-5), name


def test_fused_adamw_gives_the_same_weights_but_for_rounding(world: Path, tmp_path: Path) -> None:
    weights = {}
    for fused in (False, True):
        opened = session(world, tmp_path / str(fused), fused_adamw=fused)
        state = replace(opened.state, update=1)
        for start in range(0, 24, 8):
            state, _ = opened.trainer.step([lane_batch(0, start)], state)
        weights[fused] = opened.trainer.model.state_dict()
    for name, value in weights[False].items():
        # After 3 updates at a rate of 1e-3: Adam makes much of the last bit of a small gradient.
        torch.testing.assert_close(value, weights[True][name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["text_buckets", "feature_cache_bytes"])
def test_counts_below_one_are_refused(world: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is 0"):
        make_config(world, **{name: 0})
    with pytest.raises(ConfigError, match="--shard-image-side is -1"):
        make_config(world, shard_image_side=-1)
