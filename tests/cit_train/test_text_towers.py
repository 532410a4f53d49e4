"""Curation, training, evaluation and token files with text towers of many families."""

from pathlib import Path

import numpy as np
import pytest
from text_towers import TEXTS, save_tower
from tiny import make_config

from cit_curate.config import TextTowerConfig
from cit_curate.errors import ConfigError
from cit_curate.text_encoder.encoder import TextEncoder
from cit_train import cli
from cit_train.models.load import load_dual_encoder
from cit_train.outer_loop import train


def run(*args: object) -> int:
    return cli.run([str(arg) for arg in args])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("gpt2", "mean"),
        ("clip", "pooler"),
        ("siglip", "pooler"),
        ("siglip", "mean"),
        ("t5", "mean"),
        ("mpnet", "mean"),
        ("deberta-v2", "mean"),
    ],
)
def test_a_tower_trains_saves_evaluates_and_curates_again(
    family: str, pooling: str, world: Path, tmp_path: Path
) -> None:
    save_tower(tmp_path / "tower", family)
    out = tmp_path / "run"
    config = make_config(
        world,
        text_encoder=str(tmp_path / "tower"),
        pooling=pooling,
        threshold=-1.0,
        max_updates=1,
        curate_every=1,
        eval_every=1,
    )
    train(config, out)
    assert run("eval", out, "--data", world / "pictures") == 0
    # The saved tower gives, through its checkpoint, the vectors of the model that was evaluated.
    model, tokenizer = load_dual_encoder(out)
    evaluated = TextEncoder(model.text_model, tokenizer)
    loaded = TextEncoder.load(TextTowerConfig(text_encoder=str(out)))
    np.testing.assert_allclose(loaded.embed(TEXTS), evaluated.embed(TEXTS), atol=1e-6)
    assert loaded.fingerprint == evaluated.fingerprint
    train(make_config(world, init_from=str(out), threshold=-1.0, max_updates=1), tmp_path / "more")


@pytest.mark.parametrize("command", ["curate", "train"])
@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("roberta", {"without": "pooler."}, ["pooler.dense.weight", "--pooling mean"]),
        ("t5", {}, ["(t5) has no pooler output", "--pooling mean"]),
        ("bart", {}, ["(bart) is an encoder with a decoder", "package:minilm"]),
        (
            "clip_text_model",
            {"max_position_embeddings": 30},
            ["30 tokens", "--max-text-length 32", "at most --max-text-length 28"],
        ),
        ("bert", {"vocab_size": 12}, ["its text tower 12"]),
    ],
)
def test_a_tower_is_refused_before_anything_is_curated(
    command: str,
    family: str,
    fields: dict[str, object],
    words: list[str],
    world: Path,
    tmp_path: Path,
) -> None:
    save_tower(tmp_path / "tower", family, **fields)  # type: ignore[arg-type]
    config = make_config(world, text_encoder=str(tmp_path / "tower"))
    out = tmp_path / "run"
    text = ("--text-encoder", tmp_path / "tower", "--metadata", world / "classes.txt")
    with pytest.raises(ConfigError) as caught:  # noqa: PT012 - either raises it
        if command == "curate":
            run("curate", world / "data" / "pool", *text, "--out", out)
        else:
            train(config, out)
    assert caught.value.exit_code == 2
    for word in (str(tmp_path / "tower"), *words):
        assert word in str(caught.value)
    assert not (out / "manifests").exists()


def test_a_checkpoint_with_too_few_positions_does_not_start_or_evaluate(
    world: Path, tmp_path: Path
) -> None:
    from dual_encoders import save_dual_encoder

    model = save_dual_encoder(world, tmp_path / "model")  # of 64 positions
    data = ("--data", world / "pictures")
    assert run("eval", model, *data, "--max-text-length", "64") == 0
    with pytest.raises(ConfigError, match=r"64 tokens, .*--max-text-length 65; .* 64$"):
        run("eval", model, *data, "--max-text-length", "65")
    with pytest.raises(ConfigError, match=r"--init-from .*--max-text-length 68.* 64$"):
        train(make_config(world, init_from=str(model), max_text_length=68), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "siglip"])
def test_token_files_serve_such_towers_and_a_cascade_runs(
    family: str, world: Path, tmp_path: Path
) -> None:
    from tiny import make_pool

    save_tower(tmp_path / "tower", family)
    make_pool(tmp_path / "data", num_images=24)
    pool = tmp_path / "data" / "pool"
    text = ("--text-encoder", tmp_path / "tower")
    common = (pool, *text, "--pooling", "mean", "--metadata", world / "classes.txt")
    limits = ("--threshold", "-1", "--max-pairs", "all")

    def similarities(out: Path, *flags: str) -> list[float]:
        from cit_curate.run.ledger import Run

        assert run("curate", *common, *limits, "--out", out, *flags) == 0
        rows = Run.open(out).read("selections").to_pylist()
        return [row["similarity"] for row in sorted(rows, key=lambda row: row["pair_key"])]

    without = similarities(tmp_path / "without")
    assert run("pool", "tokenize", pool, *text) == 0
    assert similarities(tmp_path / "with") == without
    cascade = similarities(tmp_path / "cascade", "--curation", "cascade")
    assert set(cascade) <= set(without)
