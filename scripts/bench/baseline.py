"""A plain loop that curates with the habits of the first implementation of the method.

It pads every caption to 32 tokens, takes them in the order they come, runs one forward pass per
class name, reads the pool's metadata anew for every outer step, and collects pairs in Python sets.
It is written for comparison only, and gives the same selection.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 32


@torch.inference_mode()
def curate_plainly(
    metadata_file: Path,
    class_names: Sequence[str],
    tower: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    threshold: float,
    min_ratio: float,
    scan_batch: int,
) -> set[str]:
    """The pair keys that one pass over the pool keeps.

    Args:
        metadata_file: JSON list of (pair key, caption), in scan order.
        class_names: The metadata.
        tower: Gives `pooler_output`.
        tokenizer: Its tokenizer.
        threshold: Captions above it are kept.
        min_ratio: Or the best of them, when a smaller share passes.
        scan_batch: Captions of a batch.
    """
    pairs = json.loads(metadata_file.read_text(encoding="utf-8"))
    classes = torch.cat([embed_padded([name], tower, tokenizer) for name in class_names])
    kept: set[str] = set()
    for start in range(0, len(pairs), scan_batch):
        batch = pairs[start : start + scan_batch]
        texts = embed_padded([caption for _, caption in batch], tower, tokenizer)
        rows = keep_plainly(texts, classes, threshold=threshold, min_ratio=min_ratio)
        kept |= {batch[row][0] for row in rows}
    return kept


def keep_plainly(
    texts: torch.Tensor, classes: torch.Tensor, *, threshold: float, min_ratio: float
) -> list[int]:
    """The rows above the threshold, or the best ones, when a smaller share passes."""
    scores = (texts @ classes.T).max(dim=1).values
    rows = [row for row, score in enumerate(scores.tolist()) if score > threshold]
    if len(rows) / len(texts) < min_ratio:
        best = scores.argsort(descending=True, stable=True)
        rows = best[: int(min_ratio * len(texts))].tolist()
    return rows


def embed_padded(
    texts: Sequence[str], tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """float32 [texts, width], unit norm; each text is padded to 32 tokens."""
    return torch.nn.functional.normalize(pool_padded(texts, tower, tokenizer), dim=-1)


def pool_padded(
    texts: Sequence[str], tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """float32 [texts, width] of one forward pass."""
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    ).to(tower.device)
    pooled: torch.Tensor = tower(**tokens).pooler_output
    return pooled
