"""Memory and time of one update, plain and with `--micro-batch`, on a real text tower.

    python scripts/bench/micro_batch.py CAPTIONS.csv [--column caption] [--batch-size 512]
        [--lanes 2] [--micro-batches 64,16] [--text-encoder package:minilm] [--device cpu]

Each way runs in a process of its own, for its peak of memory; the vision side is a small random
tower, since it is frozen and costs both ways the same.
"""

import csv
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from cit_train.config import RunConfig, replace_fields
from cit_train.loop.session import open_session
from cit_train.recipes import default
from cit_train.streaming.batches import LaneBatch

if __name__ == "__main__":  # as a file, this finds what stands beside it
    sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.bench.own_process import in_own_process, peak_memory
from scripts.bench.side_by_side import (
    Comparison,
    Facts,
    Timing,
    add_device,
    bench_parser,
    seconds_of,
    show,
)


def main() -> None:
    """Print the table."""
    parser = bench_parser(__doc__)
    parser.add_argument("captions", type=Path, help="CSV with the captions")
    parser.add_argument("--column", default="caption")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--micro-batches", default="64,16")
    parser.add_argument("--text-encoder", default="package:minilm")
    add_device(parser)
    options = parser.parse_args()
    sizes = (0, *map(int, options.micro_batches.split(",")))
    timings = tuple(in_own_process(measure, options, size).result for size in sizes)
    facts: Facts = {
        name: getattr(options, name) for name in ("device", "text_encoder", "lanes", "batch_size")
    }
    show([Comparison("One update", "updates", timings, facts)], options.json)


def measure(options: Namespace, micro_batch: int) -> Timing:
    """Seconds of some updates, and the peak of memory above what the model takes."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(options, micro_batch, Path(folder))
        session = open_session(config, Path(folder) / "run")
        trainer, state = session.trainer, session.state
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # so that both ways have the same loss
        batches = _batches(options)
        before, losses = _peak_gb(options.device), []

        def update() -> None:
            _, report = trainer.step(batches, state)  # the first update's rate is 0
            losses.append(report.loss)

        seconds = tuple(seconds_of(update) for _ in range(options.repeats))
        notes = {
            "GB above rest": f"{_peak_gb(options.device) - before:.2f}",
            "loss": f"{losses[-1]:.4f}",
        }
    return Timing(f"--micro-batch {micro_batch}" if micro_batch else "plain", seconds, 1, notes)


def _peak_gb(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_memory() * 1024**2 / 1e9


def _batches(options: Namespace) -> list[LaneBatch]:
    with options.captions.open(newline="", encoding="utf-8") as stream:
        captions = [row[options.column] for row in csv.DictReader(stream)]
    torch.manual_seed(0)
    size = options.batch_size
    batches = []
    for lane in range(options.lanes):
        rows = range(lane * size, (lane + 1) * size)
        own, keys = (
            [captions[row % len(captions)] for row in rows],
            [f"{row}_title" for row in rows],
        )
        views = torch.randint(0, 255, (size, 3, 32, 32), dtype=torch.uint8)
        batches.append(LaneBatch(0, lane, 0, own, keys, [b""] * size, views))
    return batches


def _config(options: Namespace, micro_batch: int, folder: Path) -> RunConfig:
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
    rows = [f"{number},one.png,one" for number in range(64 * options.lanes)]
    (folder / "pairs.csv").write_text("\n".join(["image_id,image,title", *rows]))
    columns = Columns(image_id="image_id", image="image", text=("title",))
    Pool.build([folder / "pairs.csv"], folder / "pool", columns=columns)
    (folder / "classes.txt").write_text("one\n")
    return replace_fields(
        default(),
        pool=str(folder / "pool"),
        metadata=str(folder / "classes.txt"),
        text_encoder=options.text_encoder,
        pooling="mean",
        vision_encoder=str(folder / "vision"),
        lanes=options.lanes,
        batch_size=options.batch_size,
        device=options.device,
        micro_batch=micro_batch or None,
    )


if __name__ == "__main__":
    main()
