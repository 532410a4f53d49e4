"""Captions of all lengths in forward passes of one shape, without padding.

A pass is one row of exactly `pass_tokens` tokens: captions one after the other, sorted by length.
Layers that work token by token are not affected; attention is computed by runs of captions of equal
length. So every matrix product has the same shape, and a caption's vector is bit-identical for any
set of captions. Only the end of a pass may hold filling tokens.
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

# Measured (scripts/bench/text_encoder.py --tune): on a CPU, more tokens exceed its cache, and fewer
# make the matrix products too small; a GPU needs enough to occupy all of its units.
PASS_TOKENS = {"cpu": 1_024, "cuda": 32_768}
# Captions per block of the work that is done once a caption: pooler, projection and norm.
POOLED_ROWS = 64
# Tokens of a pass of the check that a tower is packed rightly, which each outer step makes.
CHECK_TOKENS = 16
ATTENTION = "cit_packed"

Runs = Sequence[tuple[int, int]]
"""Runs of captions of equal length: the number of captions, and the tokens of each."""


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        captions: int64 [captions], the indices of its captions, in the order of their tokens.
        runs: Their runs, and a run of single tokens that fills up the pass.
        tokens: int64 [pass_tokens], indices into the tokens of all captions; -1 = filling.
        positions: int64 [pass_tokens], the position of each token in its caption.
    """

    captions: Int64
    runs: Runs
    tokens: Int64
    positions: Int64

    @property
    def lengths(self) -> Int64:
        """int64 [pass_tokens], the length of each token's caption: the runs in a fixed shape."""
        counts, lengths = np.array(self.runs).T
        return np.repeat(lengths, counts * lengths)


def plan_passes(num_tokens: Int64, pass_tokens: int) -> Iterator[Pass]:
    """Assign captions to passes, the shortest first.

    Args:
        num_tokens: int64 [captions], the tokens of each caption, at most `pass_tokens`.
        pass_tokens: The tokens of every pass.
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
    """A text tower for packed passes; it shares the weights of the original.

    Attributes:
        pass_tokens: The tokens of every pass.
    """

    def __init__(
        self,
        tower: PreTrainedModel,
        projection: torch.nn.Linear | None,
        device: torch.device,
        *,
        compiled: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Take over a tower, whose attention is replaced.

        Args:
            tower: A tower for which `is_packable` is true.
            projection: The projection of the pooled texts, if any.
            device: The device of both.
            compiled: Compile the passes with torch.compile; they all have one shape.
            autocast: The type of mixed precision; None = float16 on a GPU, else float32.

        Raises:
            ConfigError: torch.compile does not work on this machine.
        """
        self._inner = tower.tower if isinstance(tower, PooledTextModel) else tower
        self._pooling = tower.config.pooling if isinstance(tower, PooledTextModel) else "pooler"
        self._projection = projection
        self._device = device
        self._first_position = _first_position(self._inner)
        self._autocast = torch.float16 if device.type == "cuda" else autocast
        self.pass_tokens = PASS_TOKENS[device.type]
        # Layers of a tower from a dual encoder may hold configs of their own.
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
    def embed(self, tokens: Tokens, *, pass_tokens: int | None = None) -> torch.Tensor:
        """The pooled texts, projected if there is a projection, with unit norm.

        Args:
            tokens: The texts.
            pass_tokens: The tokens of every pass; None = those of all other calls.

        Returns:
            float32 [captions, dim], on the tower's device.
        """
        width = int(self._inner.config.hidden_size)
        pooled = torch.empty((len(tokens), width), device=self._device)
        padded = np.append(tokens.ids, self._inner.config.pad_token_id or 0)  # for index -1
        is_mixed = self._autocast is not None
        with torch.autocast(self._device.type, self._autocast, enabled=is_mixed):
            for planned in plan_passes(tokens.counts, pass_tokens or self.pass_tokens):
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
        """Check that captions do not attend to each other, as all would without `lengths`."""
        vocabulary = self._inner.get_input_embeddings().num_embeddings
        captions = [[token % vocabulary for token in ids] for ids in ([5, 6, 7, 8], [8, 6])]
        # A compiled tower would be compiled again for another size.
        size = CHECK_TOKENS if self._forward is self._inner else self.pass_tokens
        alone = [self.embed(Tokens.of([ids]), pass_tokens=size) for ids in captions]
        together = self.embed(Tokens.of(captions), pass_tokens=size)
        # Broken weights are reported later, by `embed_on_device`, with the caption.
        if not torch.equal(together.nan_to_num(), torch.cat(alone).nan_to_num()):
            raise RuntimeError("packed captions attend to each other; this is a bug in cit")

    def _pool(self, hidden: torch.Tensor, planned: Pass) -> torch.Tensor:
        """The mean over each caption's tokens, or its first token: float [captions, width]."""
        parts, start, captions = [], 0, len(planned.captions)
        for count, length in planned.runs:
            # tokens: [captions of this run, length, width]
            tokens = hidden[start : start + count * length].view(count, length, -1)
            parts.append(_mean(tokens) if self._pooling == "mean" else tokens[:, 0])
            start += count * length
        return torch.cat(parts)[:captions]

    def _to_device(self, values: Int64) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":  # the copy overlaps with the last pass
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor


def is_packable(tower: PreTrainedModel) -> bool:
    """Whether packed passes of the tower's family are known to equal padded ones."""
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
    """Attention within each caption of a packed pass; without lengths, the usual attention.

    Args:
        module: The attention layer.
        query: float [1, heads, tokens, width of a head].
        key: As `query`.
        value: As `query`.
        attention_mask: None for a packed pass.
        lengths: int64 [tokens] on the CPU, see `Pass.lengths`.
        scaling: The factor of the products; None = 1 / sqrt(width of a head).
        **kwargs: Further arguments of `transformers`.

    Returns:
        float [1, tokens, heads, width of a head], and None for the attention weights.
    """
    if lengths is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _by_captions(query, key, value, lengths, scale), None


# One operation for torch.compile, which would else generate code for each combination of lengths.
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
            tensor[0, :, start:stop].view(heads, count, length, width).transpose(0, 1)
            for tensor in (query, key, value)
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

# Families with packed passes. 0: positions begin at 0; 1: after the padding id, as in RoBERTa.
_FIRST_POSITION = {"bert": 0, "electra": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}


def _first_position(inner: PreTrainedModel) -> int:
    after_padding = _FIRST_POSITION[inner.config.model_type]
    return int(inner.config.pad_token_id) + 1 if after_padding else 0


def _mean(tokens: torch.Tensor) -> torch.Tensor:
    """The mean over tokens: float [captions, width].

    Tokens are added one by one: `mean` adds in another order for a single caption.
    """
    total = tokens[:, 0].clone()
    for position in range(1, tokens.shape[1]):
        total += tokens[:, position]
    return total / tokens.shape[1]


def _by_blocks(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Apply a module to rows in blocks of one size, the last padded: float32 [rows, dim]."""
    filled = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % POOLED_ROWS))
    return torch.cat([module(block).float() for block in torch.split(filled, POOLED_ROWS)])[
        : len(rows)
    ]
