"""A tiny saved dual encoder, and a run that it could have come from."""

from pathlib import Path

import pyarrow as pa
import torch
from transformers import AutoTokenizer, PreTrainedModel

from cit_curate.config import TextTowerConfig
from cit_curate.records import PoolCursor
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import HISTOGRAM_BINS, SCHEMAS
from cit_curate.text_encoder.load import load_text_tower
from cit_train.models.dual_encoder import build_dual_encoder, make_processor
from cit_train.models.towers import load_vision_tower
from cit_train.transforms import ImageStatistics

EVIL = "<img src=x onerror=alert(1)> | [a](javascript:b) `c` \n# **d** www.e.org"


def save_dual_encoder(world: Path, folder: Path, *, pooling: str = "pooler") -> Path:
    """A random dual encoder with its tokenizer and processor, as a checkpoint has them."""
    text = TextTowerConfig(text_encoder=str(world / "text"), pooling=pooling)  # type: ignore[arg-type]
    tower, tokenizer = load_text_tower(text)
    vision: PreTrainedModel = load_vision_tower(str(world / "vision"))
    model = build_dual_encoder(vision, tower, projection_dim=16, seed=0)
    with torch.no_grad():
        model.visual_projection.weight.mul_(3)
    model.save_pretrained(folder)
    statistics = ImageStatistics((0.5,) * 3, (0.5,) * 3, 32)
    make_processor(tokenizer, statistics, max_text_length=16).save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).is_fast
    return folder


def make_run(world: Path, folder: Path, *, eval_task: str = "", metric: str = "accuracy") -> Run:
    """Two outer steps of two updates of two pairs; checkpoints after updates 2 and 4."""
    config = {
        "pool": "/home/somebody/secret/toys",
        "pool_fingerprint": "f" * 64,
        "metadata": "/home/somebody/classes.txt",
        "metadata_fingerprint": "e" * 64,
        "templates": ["a {}"],
        "text_encoder": "hf://org/text@v1",
        "vision_encoder": "/home/somebody/vision",
        "prompts": ["a photo of a {}", "the {}"],
        "max_text_length": 16,
        "threshold": 0.5,
        "eval_data": "/home/somebody/pictures",
        "eval_task": eval_task,
        "feature_cache": "",
    }
    environment = {"python": "3.11.7", "packages": {"torch": "2.6.0"}, "command": ["/home/x/cit"]}
    run = Run.create(folder, config=config, environment=environment)
    for step in range(2):
        _commit(run, step)
        run.log({"kind": "train", "update": 2 * step + 2, "loss": 1.0})
        accuracy = {"accuracy": 60.0 + step, "mean_per_class": 50.0 + step}
        value = accuracy.get(metric, 70.0 + step)
        own = {"metric": metric, "value": value}
        run.log({"kind": "eval", "update": 2 * step + 2, **accuracy, **own})
    for update in (2, 4):
        name = f"update-{update:06d}"
        checkpoint = save_dual_encoder(world, folder / "checkpoints" / name, pooling="mean")
        (checkpoint / "optimizer.safetensors").write_bytes(b"moments")
        (checkpoint / "trainer.json").write_text("{}")
        (checkpoint / "notes.json").write_text("{}")
    (folder / "checkpoints" / "last").symlink_to("update-000004")
    (folder / "checkpoints" / "best").symlink_to("update-000002")
    return run


def _commit(run: Run, step: int) -> None:
    """Pairs `0_t` and `1_t` of step 0, `2_t` and `3_t` of step 1; the last one is used twice."""
    keys = [f"{2 * step}_t", f"{2 * step + 1}_t"]
    place = {"outer_step": step, "lane": 0}
    selections = [
        {
            **place,
            "scan_position": number,
            "pair_key": key,
            "image_id": key[:-2],
            "text_key": "t",
            "similarity": 0.6,
            "metadata_id": number,
            "metadata_text": EVIL if number else "red disc",
            "reason": "min_ratio" if number else "threshold",
            "encoder": "f" * 64,
        }
        for number, key in enumerate(keys)
    ]
    rounds = {
        **place,
        "update": 2 * step,
        "scanned": 1000 * (step + 1),
        "kept": 20,
        "selected": 2,
        "threshold": 0.5,
        "min_ratio": 0.003,
        "best_similarity": 0.875,
        "pool_passes": 0.5,
        "histogram": [0] * HISTOGRAM_BINS,
    }
    used = [
        {
            **place,
            "pair_key": key,
            "times_used": 1 + (step and number),
            "first_update": 2 * step + 1,
            "last_update": 2 * step + 1 + number,
        }
        for number, key in enumerate(keys)
    ]
    tables = {"selections": selections, "rounds": [rounds], "used": used}
    files = tuple(
        run.write_table(name, pa.Table.from_pylist(rows, schema=SCHEMAS[name]), **place)  # type: ignore[index]
        for name, rows in tables.items()
    )
    run.commit(Commit(outer_step=step, update=2 * step + 2, cursors=(PoolCursor(),), files=files))
