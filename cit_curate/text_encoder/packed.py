"""Captions of all lengths in forward passes of one shape, without padding.

A pass is one row of exactly `pass_tokens` tokens: captions one after the other, by length. All
that a layer does token by token does not notice; attention goes by runs of captions of equal
length. So every matrix product has the same shape whatever is embedded, which keeps a caption's
vector bit-identical, and every token in it is a real one but for the end of the last pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cit_curate.errors import ConfigError
from cit_curate.records import Int64
from cit_curate.text_encoder.pooled_text import PooledTextModel
from cit_curate.text_encoder.tokens import Tokens

# Measured (scripts/bench/text_encoder.py --tune): more tokens fall out of the cache of a processor,
# fewer make its matrix products small; a GPU wants as many as its units can share.
PASS_TOKENS = {"cpu": 1_024, "cuda": 32_768}
# Rows of what is done once a caption: pooler, projection and norm.
POOLED_ROWS = 64
ATTENTION = "cit_packed"

Runs = Sequence[tuple[int, int]]
"""Captions in a row that have equally many tokens: how many captions, of how many tokens."""


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        captions: int64 [captions], which ones, in the order of their tokens.
        runs: Their runs, and one of single tokens that fills the pass up.
        tokens: int64 [pass_tokens], places in the concatenated tokens of all captions; -1: filling.
        positions: int64 [pass_tokens], place of each token in its caption.
    """

    captions: Int64
    runs: Runs
    tokens: Int64
    positions: Int64

    @property
    def lengths(self) -> Int64:
        """int64 [pass_tokens], tokens of each token's caption: the runs, in one shape for all."""
        counts, lengths = np.array(self.runs).T
        return np.repeat(lengths, counts * lengths)


def plan_passes(num_tokens: Int64, pass_tokens: int) -> Iterator[Pass]:
    """Share captions out to passes, the shortest first.

    Args:
        num_tokens: int64 [captions], tokens of each caption, at most `pass_tokens`.
        pass_tokens: Tokens of every pass.
    """
    order = np.argsort(num_tokens, kind="stable")
    lengths = num_tokens[order]
    ends = np.cumsum(lengths)
    starts = (np.cumsum(num_tokens) - num_tokens)[order]
    first = 0
    while first < len(order):
        done = ends[first] - lengths[first]
        last = int(np.searchsorted(ends, done + pass_tokens, side="right"))
        own, filling = lengths[first:last], pass_tokens - int(ends[last - 1] - done)
        positions = np.arange(int(own.sum())) - np.repeat(np.cumsum(own) - own, own)
        distinct, counts = np.unique(own, return_counts=True)
        runs = [(int(n), int(length)) for length, n in zip(distinct, counts, strict=True)]
        yield Pass(
            captions=order[first:last],
            runs=(*runs, (filling, 1)) if filling else tuple(runs),
            tokens=np.append(np.repeat(starts[first:last], own) + positions, [-1] * filling).astype(
                np.int64
            ),
            positions=np.append(positions, [0] * filling).astype(np.int64),
        )
        first = last


class PackedTower:
    """A text tower that takes packed passes; it shares the tower's weights.

    Attributes:
        pass_tokens: Tokens of every pass.
    """

    def __init__(
        self,
        tower: PreTrainedModel,
        projection: torch.nn.Linear | None,
        device: torch.device,
        *,
        compiled: bool = False,
    ) -> None:
        """Take a tower; its attention is changed.

        Args:
            tower: One for which `is_packable` holds.
            projection: Of the pooled texts.
            device: Where both are.
            compiled: Put the passes, which are all of one shape, through torch.compile.

        Raises:
            ConfigError: They cannot be compiled here.
        """
        self._inner = tower.tower if isinstance(tower, PooledTextModel) else tower
        self._pooling = tower.config.pooling if isinstance(tower, PooledTextModel) else "pooler"
        self._projection = projection
        self._device = device
        self._first_position = _first_position(self._inner)
        self.pass_tokens = PASS_TOKENS[device.type]
        # Layers of a tower that came out of a dual encoder may hold configs of their own.
        for module in self._inner.modules():
            if isinstance(getattr(module, "config", None), PreTrainedConfig):
                module.config._attn_implementation = ATTENTION
        self._forward: Any = torch.compile(self._inner) if compiled else self._inner
        try:
            self._check()
        except TorchDynamoException as error:
            raise ConfigError(
                f"--compile: torch.compile failed ({str(error).strip().splitlines()[0]}); on a CPU "
                "it needs a C++ compiler, g++ or clang++. Leave --compile out"
            ) from error

    @torch.inference_mode()
    def embed(self, tokens: Tokens) -> torch.Tensor:
        """Pooled texts, projected where there is a projection, with unit norm.

        Returns:
            float32 [captions, dim], on the tower's device.
        """
        width = int(self._inner.config.hidden_size)
        pooled = torch.empty((len(tokens), width), device=self._device)
        padded = np.append(tokens.ids, self._inner.config.pad_token_id or 0)  # what -1 stands for
        with torch.autocast("cuda", torch.float16, enabled=self._device.type == "cuda"):
            for planned in plan_passes(tokens.counts, self.pass_tokens):
                hidden = self._forward(
                    input_ids=self._to_device(padded[planned.tokens]).unsqueeze(0),
                    position_ids=self._to_device(planned.positions + self._first_position)[None],
                    lengths=torch.from_numpy(planned.lengths),
                ).last_hidden_state[0]
                pooled[self._to_device(planned.captions)] = self._pool(hidden, planned).float()
            if self._pooling == "pooler":
                pooler = self._inner.pooler
                pooled = _by_blocks(lambda rows: pooler(rows.unsqueeze(1)), pooled)
            if self._projection is not None:
                pooled = _by_blocks(self._projection, pooled)
        return _by_blocks(torch.nn.functional.normalize, pooled)

    @torch.inference_mode()
    def _check(self) -> None:
        """Make sure that no caption sees another one: without `lengths` all attend to all."""
        captions = [[5, 6, 7, 8], [8, 6]]
        alone = [self.embed(Tokens.of([ids])) for ids in captions]
        together = self.embed(Tokens.of(captions))
        # Broken weights are told by whoever embeds with them, with the caption.
        if not torch.equal(together.nan_to_num(), torch.cat(alone).nan_to_num()):
            raise RuntimeError("packed captions attend to each other; this is a bug in cit")

    def _pool(self, hidden: torch.Tensor, planned: Pass) -> torch.Tensor:
        """The mean or the first of each caption's tokens: float [captions, width]."""
        parts, start, captions = [], 0, len(planned.captions)
        for count, length in planned.runs:
            # tokens: [captions of this run, length, width]
            tokens = hidden[start : start + count * length].view(count, length, -1)
            parts.append(_mean(tokens) if self._pooling == "mean" else tokens[:, 0])
            start += count * length
        return torch.cat(parts)[:captions]

    def _to_device(self, values: Int64) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":  # the copy runs beside the last pass
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor


def is_packable(tower: PreTrainedModel) -> bool:
    """Whether a tower is of a family whose packed passes are known to equal its padded ones."""
    inner = tower.tower if isinstance(tower, PooledTextModel) else tower
    return inner.config.model_type in _FIRST_POSITION and not inner.config.is_decoder


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    lengths: torch.Tensor | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each caption of a packed pass; the usual one where no lengths are given.

    Args:
        module: The attention layer.
        query: float [1, heads, tokens, width of a head]; so are `key` and `value`.
        key: See `query`.
        value: See `query`.
        attention_mask: None for a packed pass.
        lengths: int64 [tokens] on the CPU, see `Pass.lengths`.
        scaling: Of the products.
        **kwargs: What `transformers` passes on besides.

    Returns:
        float [1, tokens, heads, width of a head], and no weights.
    """
    if lengths is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _by_captions(query, key, value, lengths, scale), None


# One operation for torch.compile, which would otherwise make code for each combination of lengths.
@torch.library.custom_op("cit::attention_by_captions", mutates_args=())
def _by_captions(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    _, heads, tokens, width = query.shape
    attended = query.new_empty((1, tokens, heads, width))
    start = 0
    distinct, num_tokens = torch.unique_consecutive(lengths, return_counts=True)
    for length, own in zip(distinct.tolist(), num_tokens.tolist(), strict=True):
        count, stop = own // length, start + own
        # by caption: [captions, heads, length, width]
        q, k, v = (
            each[0, :, start:stop].view(heads, count, length, width).transpose(0, 1)
            for each in (query, key, value)
        )
        run = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        attended[0, start:stop] = run.transpose(1, 2).reshape(own, heads, width)
        start = stop
    return attended


@_by_captions.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    _, heads, tokens, width = query.shape
    return query.new_empty((1, tokens, heads, width))


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)

# Where the positions of a caption begin: after the padding token's, in the RoBERTa family.
_FIRST_POSITION = {"bert": 0, "electra": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}


def _first_position(inner: PreTrainedModel) -> int:
    after_padding = _FIRST_POSITION[inner.config.model_type]
    return int(inner.config.pad_token_id) + 1 if after_padding else 0


def _mean(tokens: torch.Tensor) -> torch.Tensor:
    """The mean over tokens: float [captions, width].

    Token by token: `mean` adds in another order when there is a single caption.
    """
    total = tokens[:, 0].clone()
    for place in range(1, tokens.shape[1]):
        total += tokens[:, place]
    return total / tokens.shape[1]


def _by_blocks(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Rows through a module in blocks of one size, the last filled up: float32 [rows, dim]."""
    filled = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % POOLED_ROWS))
    return torch.cat([module(block).float() for block in torch.split(filled, POOLED_ROWS)])[
        : len(rows)
    ]
