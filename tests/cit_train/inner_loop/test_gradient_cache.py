"""A batch that does not fit: its gradient from chunks is the gradient of the whole graph."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lane_batches import gradients, lane_batch, without_dropout
from tiny import make_config, make_moco_tower

from cit_train.inner_loop.losses import contrastive_loss
from cit_train.loop.session import Session, open_session
from cit_train.models.freeze import set_train_mode


def opened(world: Path, out: Path, **fields: object) -> Session:
    return open_session(make_config(world, **fields), out)


def stepped(session: Session, *, lanes: int = 2) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the first update, whose rate is 0, so that no weight moves."""
    batches = [lane_batch(lane, 0) for lane in range(lanes)]
    _, report = session.trainer.step(batches, session.state)
    return report.loss, gradients(session.trainer)


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        # A matrix product rounds otherwise with another number of rows; BatchNorm magnifies it.
        off = (gradient - other[name]).abs().max()
        assert off <= 5e-4 * gradient.abs().max() + 1e-6, name


@pytest.mark.parametrize(
    ("micro_batch", "loss"),
    [
        (3, "cit"),
        (4, "clip"),
        pytest.param(3, "clip", marks=pytest.mark.slow),
        pytest.param(4, "cit", marks=pytest.mark.slow),
    ],
)
def test_chunks_give_the_gradient_of_the_plain_step(
    world: Path, tmp_path: Path, loss: str, micro_batch: int
) -> None:
    results = []
    for name, chunk in (("plain", None), ("cached", micro_batch)):
        session = opened(world, tmp_path / name, lanes=2, loss=loss, micro_batch=chunk)
        without_dropout(session.trainer)
        results.append(stepped(session))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert_close(results[0][1], results[1][1])


def test_a_replay_drops_what_its_chunk_dropped(world: Path, tmp_path: Path) -> None:
    # The plain gradient of the same chunks, with dropout: all of them in one graph.
    session = opened(world, tmp_path / "run", lanes=2, micro_batch=3)
    loss, cached = stepped(session)
    trainer = session.trainer
    towers, model = trainer._towers, trainer.model
    set_train_mode(model)
    trainer.optimizer.zero_grad(set_to_none=True)
    images, texts = [], []
    for lane in range(2):
        batch = lane_batch(lane, 0)
        frozen = towers.frozen(batch)
        for chunk, start in enumerate(range(0, 8, 3)):
            rows = slice(start, min(start + 3, 8))
            towers.seed(batch, 0, 0, chunk)
            texts.append(towers.texts(batch, rows))
            images.append(towers.images(batch, rows, frozen))
    expected = contrastive_loss(torch.cat(images), torch.cat(texts), model.logit_scale, loss="cit")
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(float(expected.detach()), abs=1e-6)
    assert_close(cached, gradients(trainer))
    without = opened(world, tmp_path / "other", lanes=2, micro_batch=3)
    without_dropout(without.trainer)
    assert stepped(without)[0] != pytest.approx(loss, abs=1e-4), "dropout must have been at work"


def test_a_chunk_as_large_as_the_batch_is_the_plain_step(world: Path, tmp_path: Path) -> None:
    plain = stepped(opened(world, tmp_path / "plain", lanes=2))
    whole = stepped(opened(world, tmp_path / "whole", lanes=2, micro_batch=8))
    assert plain[0] == whole[0]
    for name, gradient in plain[1].items():
        assert torch.equal(gradient, whole[1][name]), name


def test_a_head_with_batch_norm_sees_the_whole_lane(world: Path, tmp_path: Path) -> None:
    tower = make_moco_tower(tmp_path / "tower")
    results, statistics = [], []
    for name, chunk in (("plain", None), ("cached", 3)):
        fields = {"lanes": 2, "vision_encoder": str(tower), "micro_batch": chunk}
        session = opened(world, tmp_path / name, **fields)
        without_dropout(session.trainer)
        results.append(stepped(session))
        buffers = session.trainer.model.vision_model.named_buffers()
        statistics.append({n: value.clone() for n, value in buffers if "running" in n})
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert_close(results[0][1], results[1][1])
    assert statistics[0], "the head must have running statistics"
    for name, value in statistics[0].items():
        assert torch.equal(value, statistics[1][name]), name


def test_a_trained_tower_is_cut_into_chunks_too(world: Path, tmp_path: Path) -> None:
    results = []
    for name, chunk in (("plain", None), ("cached", 3)):
        fields = {"lanes": 2, "train_vision": "all", "micro_batch": chunk}
        session = opened(world, tmp_path / name, **fields)
        without_dropout(session.trainer)
        results.append(stepped(session))
    assert any(name.startswith("vision_model") for name in results[1][1])
    assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_works_in_chunks(world: Path, tmp_path: Path, precision: str) -> None:
    plain = opened(world, tmp_path / "plain", precision=precision)
    cached = opened(world, tmp_path / "cached", precision=precision, micro_batch=4)
    for session in (plain, cached):
        without_dropout(session.trainer)
    first, second = stepped(plain, lanes=1), stepped(cached, lanes=1)
    assert first[0] == pytest.approx(second[0], rel=2e-2)
    assert plain.trainer.scaler.is_enabled() == (precision == "float16")


@pytest.mark.slow
def test_sixteen_lanes_of_1024_pairs_fit_one_device(world: Path, tmp_path: Path) -> None:
    fields = {"lanes": 16, "batch_size": 1024, "micro_batch": 128}
    session = opened(world, tmp_path / "run", **fields)
    batches = []
    for lane in range(16):
        batch = lane_batch(lane, 0, size=16)
        views = batch.views.repeat(64, 1, 1, 1) if batch.views is not None else None
        batches.append(
            replace(
                batch,
                captions=batch.captions * 64,
                pair_keys=batch.pair_keys * 64,
                images=batch.images * 64,
                views=views,
            )
        )
    _, report = session.trainer.step(batches, session.state)
    assert report.loss == pytest.approx(math.log(16 * 1024), abs=3)  # the model is random
