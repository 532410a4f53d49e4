"""Nothing done twice by a run and the next: text vectors, and features of evaluation pictures."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import train_with
from tiny import make_config, make_moco_tower
from tiny_runs import assert_same_run, ledger_hashes

from cit_curate.run.ledger import Run
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.texts import Texts
from cit_train.config import RunConfig
from cit_train.models.pooled_vision import PooledVision
from cit_train.outer_loop import train

NUM_PICTURES = 16


@pytest.fixture
def config(world: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Gives the config of a run on a pool whose vectors no other test keeps."""
    shutil.copytree(world / "data" / "pool", tmp_path / "pool")

    def made(**changes: Any) -> RunConfig:
        fields = {"pool": str(tmp_path / "pool"), "vector_cache_bytes": None}
        return make_config(world, **{**fields, **changes})

    return made


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts went through the text tower, at each call."""
    counts: list[int] = []
    embed = TextEncoder._embed_tokens

    def count(self: TextEncoder, tokens: Any) -> torch.Tensor:
        counts.append(len(tokens))
        return embed(self, tokens)

    monkeypatch.setattr(TextEncoder, "_embed_tokens", count)
    return counts


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures went through the vision tower, at each call."""
    counts: list[int] = []
    encode = PooledVision.__call__

    def count(self: PooledVision, views: torch.Tensor) -> torch.Tensor:
        counts.append(len(views))
        return encode(self, views)

    monkeypatch.setattr(PooledVision, "__call__", count)
    return counts


def accuracies(run: Path) -> list[tuple[float, float]]:
    records = Run(run).metrics()
    return [(each["accuracy"], each["value"]) for each in records if each["kind"] == "eval"]


@pytest.mark.faults("E10")
def test_a_second_run_starts_from_the_vectors_of_the_first_and_has_the_same_bytes(
    config: Callable[..., RunConfig], embedded: list[int], tmp_path: Path
) -> None:
    train(config(vector_cache_bytes=0), tmp_path / "without")
    assert not (tmp_path / "pool" / "vectors").exists()
    without, texts = len(embedded), sum(embedded)
    embedded.clear()
    train(config(), tmp_path / "first")
    assert (len(embedded), sum(embedded)) == (without, texts)
    embedded.clear()
    train(config(), tmp_path / "second")
    of_first_step = texts - sum(embedded)
    assert 0 < of_first_step < texts  # the encoder moves, and is embedded with again
    for name in ("first", "second"):
        assert_same_run(tmp_path / "without", tmp_path / name)
    # Only the encoder that every run starts with is kept.
    assert len([*(tmp_path / "pool" / "vectors").iterdir()]) == 1


@pytest.mark.parametrize("vector_cache_bytes", [0, None])
def test_the_first_outer_step_and_the_sample_before_it_embed_no_text_twice(
    config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    vector_cache_bytes: int | None,
) -> None:
    texts: list[str] = []
    tokenize = TextEncoder.tokenize

    def recorded(self: TextEncoder, given: Any) -> Any:
        texts.extend(Texts.of(given).array.to_pylist())
        return tokenize(self, given)

    monkeypatch.setattr(TextEncoder, "tokenize", recorded)  # it is called for what is embedded
    train(
        config(max_updates=2, eval_data="", vector_cache_bytes=vector_cache_bytes),
        tmp_path / "run",
    )
    assert len(texts) == len(set(texts)) > 96


@pytest.mark.parametrize("update", [1, 3])
def test_a_run_stopped_in_any_outer_step_goes_on_with_the_same_bytes(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, update: int
) -> None:
    train(config(vector_cache_bytes=0, save_every=1), tmp_path / "whole")
    fault = {"moment": "train", "update": update, "act": "raise"}
    with pytest.raises(RuntimeError, match="planted"):
        train_with(monkeypatch, config(save_every=1), tmp_path / "run", fault)
    train(config(save_every=1), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert len([*(tmp_path / "pool" / "vectors").iterdir()]) == 1


def test_the_size_of_the_cache_may_change_on_resume(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    train(config(), tmp_path / "run")
    train(config(vector_cache_bytes=0), tmp_path / "run", resume=True)


def test_a_subset_of_a_pool_uses_the_vectors_of_the_whole_pool(
    config: Callable[..., RunConfig], embedded: list[int], tmp_path: Path
) -> None:
    fields = {"max_sample": 60, "max_updates": 2, "eval_data": ""}
    for name in ("first", "second"):
        embedded.clear()
        train(config(**fields), tmp_path / name)
    assert sum(embedded) == 0
    assert not (tmp_path / "first" / "pool" / "vectors").exists()


@pytest.mark.parametrize("vision_features", ["live", "cached"])
def test_a_second_run_evaluates_with_the_features_of_the_first(
    config: Callable[..., RunConfig], encoded: list[int], tmp_path: Path, vision_features: str
) -> None:
    fields = {"vision_features": vision_features, "feature_cache": str(tmp_path / "features")}
    train(config(**fields, feature_cache_bytes=1), tmp_path / "without")  # room for nothing
    assert not list((tmp_path / "features").rglob("part-*"))
    for name in ("first", "second"):
        encoded.clear()
        train(config(**fields), tmp_path / name)
        assert accuracies(tmp_path / name) == accuracies(tmp_path / "without")
        assert ledger_hashes(tmp_path / name) == ledger_hashes(tmp_path / "without")
        assert sum(encoded) >= (NUM_PICTURES if name == "first" else 0)
    assert sum(encoded) == 0


def test_with_a_trained_vision_tower_no_picture_is_kept_and_with_a_trained_head_its_input_is(
    config: Callable[..., RunConfig], encoded: list[int], tmp_path: Path
) -> None:
    make_moco_tower(tmp_path / "moco")
    fields = {"feature_cache": str(tmp_path / "features"), "max_updates": 2, "eval_every": 1}
    train(config(**fields, train_vision="all"), tmp_path / "all")
    assert not (tmp_path / "features").exists()
    moco = {**fields, "vision_encoder": str(tmp_path / "moco"), "train_vision": "head"}
    train(config(**moco, feature_cache_bytes=1), tmp_path / "without")
    for name in ("first", "second"):
        encoded.clear()
        train(config(**moco), tmp_path / name)
        assert accuracies(tmp_path / name) == accuracies(tmp_path / "without")
        assert sum(encoded) == (NUM_PICTURES if name == "first" else 0)
