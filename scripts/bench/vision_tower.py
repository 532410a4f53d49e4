"""Pictures/s of a frozen vision tower on a CPU, by engine, against PyTorch as it is.

    python -m scripts.bench.vision_tower [--towers lite0 vit-s] [--repeats 3] [--json FILE]

`lite0` is the packaged EfficientNet-Lite0. `vit-s` is timm's ViT-S/16 with random weights, which
computes the same products. bfloat16 is measured where the processor has it. The note `prepare` is
how much longer the first pass takes than a later one; `cosine` is the smallest to PyTorch's.
"""

import time
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperModel

from cit_curate.processor import has_bfloat16
from cit_train.models.pooled_vision import PooledVision
from cit_train.models.towers import load_vision_tower
from cit_train.transforms import Normalizer, image_statistics
from scripts.bench.side_by_side import Comparison, Timing, bench_parser, show, take_turns

SIDE = 224


def main() -> None:
    """Print a table for each tower."""
    parser = bench_parser(__doc__)
    parser.add_argument("--towers", nargs="+", default=["lite0", "vit-s"])
    parser.add_argument("--num-images", type=int, default=64)
    options = parser.parse_args()
    show(
        [compare(name, options.num_images, options.repeats) for name in options.towers],
        options.json,
    )


def compare(name: str, num_images: int, repeats: int) -> Comparison:
    """Each engine and precision on the same pictures, in turn."""
    tower = load(name)
    statistics = image_statistics(tower.config)
    normalizer = Normalizer(statistics.mean, statistics.std)
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(
        0, 256, (num_images, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator
    )

    def vision(engine: str | None, autocast: torch.dtype | None = None) -> PooledVision:
        device = torch.device("cpu")
        return PooledVision(tower, normalizer, device, engine=engine, autocast=autocast)

    ways = {
        "PyTorch": vision(None),
        "PyTorch, folded": vision("torch"),
        "OpenVINO": vision("openvino"),
    }
    if has_bfloat16():
        ways |= {
            "PyTorch, folded, bfloat16": vision("torch", torch.bfloat16),
            "OpenVINO, bfloat16": vision("openvino", torch.bfloat16),
        }
    first = {way: _timed(each, views) for way, each in ways.items()}
    later = take_turns(
        {way: partial(each, views) for way, each in ways.items()}, repeats=repeats, warm_up=False
    )
    reference = first["PyTorch"][1]
    timings = []
    for way, (seconds, features) in first.items():
        cosine = functional.cosine_similarity(features, reference).min()
        prepare = f"{seconds - min(later[way]):.1f}"
        notes = {"prepare s": prepare, "cosine": f"{float(cosine):.7f}"}
        timings.append(Timing(way, later[way], num_images, notes))
    return Comparison(f"frozen {name}", "images", tuple(timings), {"rows": ways["PyTorch"].rows})


def load(name: str) -> PreTrainedModel:
    """The tower of a name, in eval mode and channels last."""
    if name == "vit-s":
        config = TimmWrapperConfig(architecture="vit_small_patch16_224", num_labels=0)
        tower: PreTrainedModel = TimmWrapperModel(config)
    else:
        tower = load_vision_tower("package:efficientnet-lite0")
    tower.eval().requires_grad_(False)
    return tower.to(memory_format=torch.channels_last)


def _timed(vision: PooledVision, views: Tensor) -> tuple[float, Tensor]:
    started = time.perf_counter()
    features = vision(views)
    return time.perf_counter() - started, features


if __name__ == "__main__":
    main()
