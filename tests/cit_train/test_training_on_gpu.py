"""Training on a GPU: the CPU's pairs and gradients, and the same bytes again, also after a kill."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lane_batches import gradients, lane_batch, without_dropout
from tiny import make_config
from tiny_runs import (
    assert_same_run,
    finish,
    finish_ranks,
    ledger_hashes,
    start_ranks,
    start_training,
    told_by,
    weights,
)

from cit_curate.run.ledger import Run
from cit_train.evaluation.pooled_images import pooled_images, project
from cit_train.loop.session import open_session
from cit_train.outer_loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("default"),  # torch's, of kernels that this project cannot choose
]


def first_selection(run: Path) -> list[tuple[str, str]]:
    rows = Run.open(run).read("selections").to_pylist()
    return [(row["pair_key"], row["reason"]) for row in rows if row["outer_step"] == 0]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in Run.open(run).metrics() if line["kind"] == "train"]


@pytest.mark.parametrize(
    ("fields", "closeness"),
    [
        ({"precision": "float32"}, 0.9999),
        ({"precision": "float16"}, 0.99),
        ({"precision": "bfloat16"}, 0.99),
        ({"precision": "float32", "micro_batch": 3}, 0.9999),
        ({"precision": "float32", "text_buckets": 3}, 0.9999),
        ({"precision": "float32", "train_vision": "all"}, 0.9999),
        ({"precision": "float32", "fused_adamw": True, "loss": "clip"}, 0.9999),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_an_update_has_the_loss_and_gradient_of_the_cpu(
    gpu: str, world: Path, tmp_path: Path, fields: dict[str, object], closeness: float
) -> None:
    found = []
    for name, device in (("cpu", "cpu"), ("gpu", gpu)):
        own = {**fields, **({"precision": "float32"} if device == "cpu" else {})}
        opened = open_session(make_config(world, device=device, **own), tmp_path / name)
        without_dropout(opened.trainer)
        if opened.trainer.scaler.is_enabled():  # from 65,536 it would skip updates first
            opened.trainer.scaler = torch.amp.GradScaler(gpu, init_scale=256.0)
        _, report = opened.trainer.step([lane_batch(0, 0)], replace(opened.state, update=3))
        flat = [value.float().cpu().flatten() for value in gradients(opened.trainer).values()]
        found.append((report.loss, torch.cat(flat)))
    (loss, gradient), (other_loss, other) = found
    assert other_loss == pytest.approx(loss, rel=1e-5 if closeness > 0.999 else 2e-2)
    assert float(torch.nn.functional.cosine_similarity(gradient, other, dim=0)) > closeness
    assert float(other.norm()) == pytest.approx(float(gradient.norm()), rel=0.05)


@pytest.mark.parametrize("vision_features", ["live", "cached"])
def test_the_same_run_gives_the_same_bytes_and_the_first_pairs_of_the_cpu(
    gpu: str, world: Path, tmp_path: Path, vision_features: str
) -> None:
    for name, device in (("cpu", "cpu"), ("one", gpu), ("two", gpu)):
        fields = {"device": device, "vision_features": vision_features, "vector_cache_bytes": 0}
        train(make_config(world, **fields), tmp_path / name)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    expected, found = (first_selection(tmp_path / name) for name in ("cpu", "one"))
    assert len(set(expected) & set(found)) >= 0.9 * len(expected)
    assert np.mean(losses(tmp_path / "one")) == pytest.approx(
        np.mean(losses(tmp_path / "cpu")), rel=0.2
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "float16", "num_workers": 1, "keep_shards": "all"},
        {"precision": "bfloat16", "fused_adamw": True, "vision_features": "cached"},
        {"ahead": 1},
    ],
    ids=["scaler", "fused", "ahead"],
)
def test_a_killed_run_is_resumed_to_the_same_bytes(
    gpu: str, world: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    fields = {**fields, "device": gpu, "save_every": 1, "curate_every": 3, "vector_cache_bytes": 0}
    kill = {"moment": "train", "update": 5, "act": "SIGKILL"}
    assert finish(start_training(world, tmp_path / "whole", **fields)) == 0
    killed = start_training(world, tmp_path / "killed", faults=[kill], **fields)
    assert finish(killed) == -signal.SIGKILL
    assert finish(start_training(world, tmp_path / "killed", **fields)) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("local_loss", [False, True])
def test_two_ranks_share_a_gpu_and_make_the_run_of_one(
    gpu: str, world: Path, tmp_path: Path, local_loss: bool
) -> None:
    fields = {"device": gpu, "lanes": 2, "batch_size": 4, "precision": "float32"}
    train(make_config(world, **fields), tmp_path / "alone")
    fields |= {"local_loss": local_loss}
    started = start_ranks(world, tmp_path / "shared", ranks=2, **fields)
    told = told_by(tmp_path / "shared")
    assert finish_ranks(started, seconds=120) == [0, 0], told.read_text()
    one, other = (ledger_hashes(tmp_path / name) for name in ("alone", "shared"))
    first = [name for name in one if "step=000000" in name and not name.startswith("manifests")]
    assert first
    assert {name: one[name] for name in first} == {name: other[name] for name in first}
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
    second = weights(tmp_path / "shared")
    for name, value in weights(tmp_path / "alone").items():
        torch.testing.assert_close(second[name], value, atol=1e-3, rtol=0)


def test_evaluation_has_the_features_of_the_cpu(gpu: str, world: Path, tmp_path: Path) -> None:
    features = []
    for name, device in (("cpu", "cpu"), ("gpu", gpu)):
        opened = open_session(make_config(world, device=device), tmp_path / name)
        pictures = sorted((world / "pictures").rglob("*.png"))
        pooled = pooled_images(opened.trainer.model, pictures)
        features.append(project(opened.trainer.model, pooled))
    torch.testing.assert_close(features[1], features[0], atol=2e-3, rtol=0)
