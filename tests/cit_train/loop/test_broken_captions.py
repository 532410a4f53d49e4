"""Training with a text tower that has no usable vector for some captions."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import plant
from tiny import make_config
from tiny_runs import ledger_hashes
from transformers import AutoModel, AutoTokenizer

from cit_curate.config import EngineConfig
from cit_curate.curation.curate import curate
from cit_curate.errors import BrokenVectorsError, CitError, NotFiniteError, ShortfallError
from cit_curate.pool.pool import Pool
from cit_curate.run.ledger import Run
from cit_train.config import RunConfig
from cit_train.outer_loop import train
from cit_train.ranks.stopping import StoppedError

FIELDS = {"eval_data": "", "lr": 1e-5, "curate_every": 3, "max_passes": 1, "texts": "every"}


def config_with_broken(folder: Path, *words: str, **fields: object) -> RunConfig:
    """A tiny world whose text tower has overflowed for these words."""
    config = make_config(folder, **FIELDS, **fields)
    model = AutoModel.from_pretrained(folder / "text")
    tokenizer = AutoTokenizer.from_pretrained(folder / "text")
    with torch.no_grad():
        for word in words:
            token = tokenizer.convert_tokens_to_ids(word)
            model.embeddings.word_embeddings.weight[token] = torch.nan
    model.save_pretrained(folder / "text")
    return config


@pytest.mark.faults("E1")
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.slow
def test_captions_without_a_vector_are_rejects_and_a_resumed_run_has_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    config = config_with_broken(tmp_path / "world", "noise", ahead=ahead)
    run = train(config, tmp_path / "whole")
    pool = Pool.open(tmp_path / "world" / "data" / "pool")
    captions = {
        f"{row['image_id']}_{row['text_key']}": row["caption"]
        for row in pool.read_row_groups(range(len(pool.row_groups))).to_pylist()
    }
    rejects = [row for row in run.read("rejects").to_pylist() if row["reason"] == "broken_vector"]
    assert {row["outer_step"] for row in rejects} == {0, 1}
    for row in rejects:
        assert "noise" in captions[row["pair_key"]]
        assert "noise" in row["detail"]
    for table in ("selections", "used"):
        keys = run.read(table)["pair_key"].to_pylist()
        assert keys
        assert not [key for key in keys if "noise" in captions[key]]

    with monkeypatch.context() as patch:
        plant({"moment": "train", "update": 4, "act": "SIGTERM"}, patch.setattr)
        with pytest.raises(StoppedError):
            train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped", resume=True)
    assert ledger_hashes(tmp_path / "stopped") == ledger_hashes(tmp_path / "whole")


@pytest.mark.faults("E1")
def test_a_tower_with_no_vector_for_any_caption_ends_training_with_7(tmp_path: Path) -> None:
    config = config_with_broken(tmp_path / "world", "a", "thing")
    with pytest.raises(NotFiniteError, match="its weights are broken") as caught:
        train(config, tmp_path / "run")
    assert caught.value.exit_code == 7
    assert not Run.open(tmp_path / "run").commits()


@pytest.mark.faults("E2")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_class_without_a_vector_is_named_and_nothing_is_selected(
    tmp_path: Path, workers: int
) -> None:
    config = config_with_broken(tmp_path / "world", "stripe")
    pool = Pool.open(tmp_path / "world" / "data" / "pool")
    with pytest.raises(NotFiniteError, match=r"metadata entry '\w+ stripe'") as caught:
        curate(
            *(pool, config.metadata, config.text, config.curate, tmp_path / "curated"),
            num_pairs=config.budget,
            device="cpu",
            engine=EngineConfig(workers=workers),
        )
    assert caught.value.exit_code == 7
    assert not (tmp_path / "curated").exists()
    with pytest.raises(NotFiniteError, match=r"metadata entry '\w+ stripe'"):
        train(config, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert not run.commits()
    assert not list(run.path.glob("selections/*"))


@pytest.mark.faults("E1", "E2")
@pytest.mark.parametrize(
    "error",
    [
        BrokenVectorsError("a", vectors=np.ones((1, 2), np.float32), broken=np.array([True])),
        ShortfallError("b", best_similarity=0.5, suggested_threshold=None),
    ],
)
def test_errors_with_attributes_come_whole_from_another_process(error: CitError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert repr(vars(other)) == repr(vars(error))
