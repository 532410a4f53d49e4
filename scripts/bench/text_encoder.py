"""The text encoder against a padded loop and against its matrix products alone.

    python -m scripts.bench.text_encoder [--captions 16384] [--tune] [--device cuda] [--json FILE]

The limit is the tower's own matrix products on the captions' real tokens and nothing else: no
tokeniser, no attention, no activation. With `--tune`, passes of other sizes and numbers of threads
stand beside it, which is what `PASS_TOKENS` was chosen from.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from cit_curate.config import TextTowerConfig
from cit_curate.text_encoder import packed
from cit_curate.text_encoder.encoder import TextEncoder, choose_device
from cit_curate.text_encoder.load import load_text_tower
from scripts.bench.caption_pools import distinct_captions
from scripts.bench.side_by_side import Comparison, Timing, add_device, add_output, show, take_turns

PASSES = {
    "cpu": (128, 256, 512, 1_024, 2_048, 4_096),
    "cuda": (4_096, 8_192, 16_384, 32_768, 65_536, 131_072),
}
PADDED_ROWS = 256


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=16_384)
    parser.add_argument("--text-encoder", default="package:minilm")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--tune", action="store_true", help="passes and threads side by side")
    add_device(parser)
    add_output(parser)
    asked = parser.parse_args()
    text = TextTowerConfig(text_encoder=asked.text_encoder, pooling="mean")
    captions = distinct_captions()[: asked.captions]
    device = choose_device(asked.device)
    comparisons = [against_limit(text, captions, asked, device)]
    if asked.tune:
        comparisons.append(passes_and_threads(text, captions[:2_048], asked.repeats, device))
    show(comparisons, asked.json)


def against_limit(
    text: TextTowerConfig,
    captions: Sequence[str],
    asked: argparse.Namespace,
    device: torch.device,
) -> Comparison:
    """The encoder, its matrix products alone, and a loop that pads to 32 tokens."""
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
    if asked.compile:
        compiled = TextEncoder(*load_text_tower(text), device=device, compiled=True)
        ways["cit, --compile"] = lambda: compiled.embed(captions)
    seconds = take_turns(ways, repeats=asked.repeats, warm_up=False)
    timings = [Timing(name, times, len(captions)) for name, times in seconds.items()]
    share = timings[2].median / timings[1].median
    return Comparison(
        "Text encoder", "captions", "padded loop", tuple(timings),
        {
            "captions": len(captions), "tokens each": tokens / len(captions),
            "threads": torch.get_num_threads(), "share of the matrix products' rate": share,
        },
    )  # fmt: skip


def passes_and_threads(
    text: TextTowerConfig, captions: Sequence[str], repeats: int, device: torch.device
) -> Comparison:
    """The encoder with passes of several sizes, on each number of threads."""
    ways: dict[str, Callable[[], object]] = {}
    most_threads = torch.get_num_threads() if device.type == "cpu" else 1
    for threads in range(1, most_threads + 1):
        for tokens in PASSES[device.type]:
            with _pass_tokens(device, tokens):
                encoder = TextEncoder(*load_text_tower(text), device=device)
            ways[f"{tokens:,} tokens, {threads} threads"] = _embedding(encoder, captions, threads)
    most = torch.get_num_threads()
    seconds = take_turns(ways, repeats=repeats, warm_up=False)
    torch.set_num_threads(most)
    timings = tuple(Timing(name, times, len(captions)) for name, times in seconds.items())
    return Comparison("Sizes of a pass", "captions", timings[0].name, timings)


def _embedding(encoder: TextEncoder, captions: Sequence[str], threads: int) -> Callable[[], object]:
    def embed() -> None:
        torch.set_num_threads(threads)
        encoder.embed(captions)

    return embed


@contextmanager
def _pass_tokens(device: torch.device, tokens: int) -> Iterator[None]:
    chosen = packed.PASS_TOKENS
    packed.PASS_TOKENS = {**chosen, device.type: tokens}
    try:
        yield
    finally:
        packed.PASS_TOKENS = chosen


@torch.inference_mode()
def padded_loop(tower: PreTrainedModel, tokenizer: object, captions: Sequence[str]) -> torch.Tensor:
    """Every caption in the order they come, padded to 32: float32 [captions, dim]."""
    pooled = []
    for start in range(0, len(captions), PADDED_ROWS):
        inputs = tokenizer(  # type: ignore[operator]
            list(captions[start : start + PADDED_ROWS]),
            padding="max_length", truncation=True, max_length=32, return_tensors="pt",
        ).to(tower.device)  # fmt: skip
        pooled.append(tower(**inputs).pooler_output)
    return torch.nn.functional.normalize(torch.cat(pooled), dim=-1).cpu()


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
