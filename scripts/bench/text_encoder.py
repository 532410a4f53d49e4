"""The text encoder against a padded loop and against its matrix products alone.

    python -m scripts.bench.text_encoder [--captions 16384] [--tune] [--device cuda] [--json FILE]

The limit is the tower's own matrix products on the captions' real tokens and nothing else: no
tokeniser, no attention, no activation. With `--tune`, passes of other sizes and numbers of threads
stand beside it, which is what `PASS_TOKENS` was chosen from.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cit_curate.config import TextTowerConfig
from cit_curate.text_encoder import packed
from cit_curate.text_encoder.encoder import TextEncoder, choose_device
from cit_curate.text_encoder.load import load_text_tower
from scripts.bench.baseline import embed_padded
from scripts.bench.caption_pools import distinct_captions
from scripts.bench.side_by_side import Comparison, add_device, bench_parser, compare_ways, show

PASSES = {
    "cpu": (128, 256, 512, 1_024, 2_048, 4_096),
    "cuda": (4_096, 8_192, 16_384, 32_768, 65_536, 131_072),
}
PADDED_ROWS = 256


def main() -> None:
    """Print the tables."""
    parser = bench_parser(__doc__)
    parser.add_argument("--captions", type=int, default=16_384)
    parser.add_argument("--text-encoder", default="package:minilm")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--tune", action="store_true", help="passes and threads side by side")
    add_device(parser)
    options = parser.parse_args()
    text = TextTowerConfig(text_encoder=options.text_encoder, pooling="mean")
    captions = distinct_captions()[: options.captions]
    comparisons = [against_limit(text, captions, options)]
    if options.tune:
        comparisons.append(passes_and_threads(text, captions[:2_048], options))
    show(comparisons, options.json)


def against_limit(text: TextTowerConfig, captions: Sequence[str], options: Namespace) -> Comparison:
    """The encoder, its matrix products alone, and a loop that pads to 32 tokens."""
    device = choose_device(options.device)
    tower, tokenizer = load_text_tower(text)
    tower = tower.eval().to(device)
    encoder = TextEncoder(*load_text_tower(text), device=device)
    tokens = len(encoder.tokenize(list(captions)).ids)
    shape = tower.tower.config if hasattr(tower, "tower") else tower.config
    ways: dict[str, Callable[[], object]] = {
        "padded loop": lambda: padded_loop(tower, tokenizer, captions),
        "cit": lambda: encoder.embed(captions),
        "matrix products": lambda: matrix_products(shape, tokens, device),
    }
    if options.compile:
        compiled = TextEncoder(*load_text_tower(text), device=device, compiled=True)
        ways["cit, --compile"] = lambda: compiled.embed(captions)
    found = compare_ways(
        "Text encoder",
        "captions",
        ways,
        len(captions),
        repeats=options.repeats,
        warm_up=device.type == "cuda",  # which loads its kernels at first use
    )
    return replace(
        found,
        facts={
            "captions": len(captions),
            "tokens each": tokens / len(captions),
            "threads": torch.get_num_threads(),
            "share of the matrix products' rate": found["cit"].rate / found["matrix products"].rate,
        },
    )


def passes_and_threads(
    text: TextTowerConfig, captions: Sequence[str], options: Namespace
) -> Comparison:
    """The encoder with passes of several sizes, on each number of threads."""
    device = choose_device(options.device)
    ways: dict[str, Callable[[], object]] = {}
    most = torch.get_num_threads()
    for threads in range(1, (most if device.type == "cpu" else 1) + 1):
        for tokens in PASSES[device.type]:
            with pass_tokens(device, tokens):
                encoder = TextEncoder(*load_text_tower(text), device=device)
            ways[f"{tokens:,} tokens, {threads} threads"] = partial(
                _embed, encoder, captions, threads
            )
    found = compare_ways(
        "Sizes of a pass", "captions", ways, len(captions), repeats=options.repeats, warm_up=False
    )
    torch.set_num_threads(most)
    return found


def _embed(encoder: TextEncoder, captions: Sequence[str], threads: int) -> None:
    torch.set_num_threads(threads)
    encoder.embed(captions)


@contextmanager
def pass_tokens(device: torch.device, tokens: int) -> Iterator[None]:
    """Encoders that are made meanwhile take passes of so many tokens."""
    chosen = packed.PASS_TOKENS
    packed.PASS_TOKENS = {**chosen, device.type: tokens}
    try:
        yield
    finally:
        packed.PASS_TOKENS = chosen


@torch.inference_mode()
def padded_loop(
    tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]
) -> torch.Tensor:
    """Every caption in the order they come, padded to 32: float32 [captions, dim]."""
    starts = range(0, len(captions), PADDED_ROWS)
    parts = [captions[start : start + PADDED_ROWS] for start in starts]
    with torch.autocast("cuda", torch.float16, enabled=tower.device.type == "cuda"):
        return torch.cat([embed_padded(part, tower, tokenizer) for part in parts]).cpu()


@torch.inference_mode()
def matrix_products(shape: PreTrainedConfig, num_tokens: int, device: torch.device) -> None:
    """All products of a tower of this shape with its weights, for so many tokens."""
    width, inner = shape.hidden_size, shape.intermediate_size
    rows = packed.PASS_TOKENS[device.type]
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    sizes = ((rows, width), (rows, inner), (width, width), (inner, width), (width, inner))
    tokens, wide, square, up, down = (
        torch.randn(*size, device=device, dtype=dtype) for size in sizes
    )
    for _ in range(-(-num_tokens // rows)):
        for _ in range(shape.num_hidden_layers):
            for _ in range(4):  # query, key, value, output
                torch.nn.functional.linear(tokens, square)
            torch.nn.functional.linear(tokens, up)
            torch.nn.functional.linear(wide, down)
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
