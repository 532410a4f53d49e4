"""Memory and time of one update, plain and with `--micro-batch`, on a real text tower.

    python scripts/bench/micro_batch.py CAPTIONS.csv [--column caption] [--batch-size 512]
        [--lanes 2] [--micro-batches 64,16] [--text-encoder package:minilm] [--device cpu]

Each way runs in a process of its own, for its peak of memory; the vision side is a small random
tower, since it is frozen and costs both ways the same.
"""

import argparse
import csv
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

REPEATS = 3


def main() -> None:
    """Print the table, or one way's numbers as JSON (`--only`)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", help="CSV with the captions")
    parser.add_argument("--column", default="caption")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--micro-batches", default="64,16")
    parser.add_argument("--text-encoder", default="package:minilm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only is not None:
        sys.stdout.write(json.dumps(measure(asked)) + "\n")
        return
    rows = {}
    for chunk in (0, *map(int, asked.micro_batches.split(","))):
        command = [sys.executable, *sys.argv, "--only", str(chunk)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[chunk] = json.loads(done.stdout.splitlines()[-1])
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    pairs = f"{asked.lanes} lanes of {asked.batch_size} pairs"
    print(f"{platform.machine()}, {asked.device}, {asked.text_encoder}, {pairs}, {now}")
    print(f"{'way':<18}{'GB above rest':>14}{'seconds':>9}{'spread':>14}{'loss':>9}")
    for chunk, row in rows.items():
        way = f"--micro-batch {chunk}" if chunk else "plain"
        seconds = sorted(row["seconds"])
        spread = f"{seconds[0]:.2f}-{seconds[-1]:.2f}"
        peak = f"{row['bytes'] / 1e9:.2f}"
        print(f"{way:<18}{peak:>14}{median(seconds):>9.2f}{spread:>14}{row['loss']:>9.4f}")


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Peak of memory above what the model takes, and seconds of some updates."""
    import torch

    from cit_train.loop.session import open_session

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(_config(asked, Path(folder)), Path(folder) / "run")
        trainer, state = session.trainer, session.state
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # so that both ways have the same loss
        batches = _batches(asked)
        before = _peak(asked.device)
        seconds, loss = [], 0.0
        for _ in range(REPEATS):
            started = time.perf_counter()
            _, report = trainer.step(batches, state)  # the first update's rate is 0
            seconds.append(time.perf_counter() - started)
            loss = report.loss
        return {"bytes": _peak(asked.device) - before, "seconds": seconds, "loss": loss}


def _peak(device: str) -> int:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _batches(asked: argparse.Namespace) -> list[Any]:
    import torch

    from cit_train.streaming.batches import LaneBatch

    with open(asked.captions, newline="", encoding="utf-8") as stream:  # noqa: PTH123
        captions = [row[asked.column] for row in csv.DictReader(stream)]
    torch.manual_seed(0)
    batches = []
    for lane in range(asked.lanes):
        first = lane * asked.batch_size
        own = [captions[(first + n) % len(captions)] for n in range(asked.batch_size)]
        keys = [f"{first + n}_title" for n in range(asked.batch_size)]
        views = torch.randint(0, 255, (asked.batch_size, 3, 32, 32), dtype=torch.uint8)
        batches.append(LaneBatch(0, lane, 0, own, keys, [b""] * asked.batch_size, views))
    return batches


def _config(asked: argparse.Namespace, folder: Path) -> Any:
    import torch
    from PIL import Image
    from transformers import ViTConfig, ViTModel

    from cit_curate.pool.pool import Pool
    from cit_curate.sources.columns import Columns
    from cit_train.config import replace_fields
    from cit_train.recipes import default

    torch.manual_seed(0)
    small = ViTConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=16,
    )
    ViTModel(small).save_pretrained(folder / "vision")
    Image.new("RGB", (32, 32)).save(folder / "one.png")
    rows = [f"{number},one.png,one" for number in range(64 * asked.lanes)]
    (folder / "pairs.csv").write_text("\n".join(["image_id,image,title", *rows]))
    columns = Columns(image_id="image_id", image="image", text=("title",))
    Pool.build([folder / "pairs.csv"], folder / "pool", columns=columns)
    (folder / "classes.txt").write_text("one\n")
    return replace_fields(
        default(),
        pool=str(folder / "pool"),
        metadata=str(folder / "classes.txt"),
        text_encoder=asked.text_encoder,
        pooling="mean",
        vision_encoder=str(folder / "vision"),
        lanes=asked.lanes,
        batch_size=asked.batch_size,
        device=asked.device,
        micro_batch=asked.only or None,
    )


if __name__ == "__main__":
    main()
