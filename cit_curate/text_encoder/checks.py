"""Checks of a text tower and its tokenizer, before anything long runs.

A few short texts pass through the tower once. So a family that nobody has thought of is refused by
name when its vectors depend on padding, or leave out a part of the text.
"""

import re

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cit_curate.errors import ConfigError, first_line
from cit_curate.text_encoder.pooled_text import PaddedTextModel, PooledTextModel
from cit_curate.text_encoder.tokenizer import LENGTH_STEP, encode, num_ids, special_tokens

# Tables of learned positions, as transformers names them.
_POSITIONS = re.compile(r"(^|\.)(position_embeddings?|embed_positions|wpe)$")
# Entries of unit vectors that differ by less are equal but for rounding, and by more are different.
_ROUNDING = 2e-6
_DIFFERENT = 1e-4


def check_text_tower(
    tower: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_text_length: int,
    subject: str,
) -> None:
    """Refuse a text tower that would fail later, or whose vectors would not be those of its texts.

    Args:
        tower: The tower on the CPU, whose `pooler_output` is used; it is put into eval mode.
        tokenizer: Its tokenizer.
        max_text_length: The number of tokens to which texts are cut.
        subject: The option and its value, for error messages.

    Raises:
        ConfigError: The tokenizer has tokens that the tower does not know or is not what its file
            says, there are fewer positions than tokens, the tower does not take texts, or its
            vectors depend on padding or not on the whole text.
    """
    table = _token_table(tower, subject)
    known = num_ids(tokenizer)
    if known > table.num_embeddings:
        raise ConfigError(
            f"{subject}: its tokenizer has {known:,} tokens, its text tower "
            f"{table.num_embeddings:,}; put the tokenizer that it was trained with beside it"
        )
    check_positions(tower, max_text_length, subject=subject)
    _check_tokens(tokenizer, max_text_length, subject)
    special = set(tokenizer.all_special_ids)
    words = [token for token in range(known) if token not in special]
    _check_vectors(tower.eval(), tokenizer, words, max_text_length=max_text_length, subject=subject)


def _token_table(tower: PreTrainedModel, subject: str) -> torch.nn.Embedding:
    try:
        table = tower.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        table = None
    if not isinstance(table, torch.nn.Embedding):
        raise ConfigError(f"{subject} ({_kind(tower)}) has no table of tokens to embed texts with")
    return table


def check_positions(tower: PreTrainedModel, max_text_length: int, *, subject: str) -> None:
    """Refuse texts of more tokens than the text tower has positions.

    Raises:
        ConfigError: See above.
    """
    positions = num_positions(tower)
    # A text may be padded to the next step.
    most = max_text_length if positions is None else positions // LENGTH_STEP * LENGTH_STEP
    if max_text_length > most:
        raise ConfigError(
            f"{subject} ({_kind(tower)}) has positions for {positions} tokens, too few for "
            f"--max-text-length {max_text_length}; give at most --max-text-length {most}"
        )


def num_positions(tower: PreTrainedModel) -> int | None:
    """How many tokens a text may have; None = no table of positions limits it.

    RoBERTa and its kin begin to count after the padding id, OPT at an offset; their tables say so.
    """
    if isinstance(tower, PaddedTextModel):
        return tower.config.padded_length
    counts = []
    for name, table in tower.named_modules():
        if isinstance(table, torch.nn.Embedding) and _POSITIONS.search(name):
            first = getattr(table, "offset", 0)
            if table.padding_idx is not None:
                first = table.padding_idx + 1
            counts.append(table.num_embeddings - first)
    return min(counts, default=None)


def _check_tokens(tokenizer: PreTrainedTokenizerBase, max_text_length: int, subject: str) -> None:
    """Refuse a tokenizer whose tokens in training are not those of curation."""
    text = "A photo, of 2 Cats!"
    own = tokenizer(text, truncation=True, max_length=max_text_length).input_ids
    if own != encode(tokenizer, [text], cut_to=max_text_length).ids.tolist():
        raise ConfigError(
            f"{subject}: a {type(tokenizer).__name__} changes texts before its tokenizer.json "
            "does, which cit does not; save it as a PreTrainedTokenizerFast"
        )


def _check_vectors(
    tower: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: list[int],
    *,
    max_text_length: int,
    subject: str,
) -> None:
    """Refuse a tower that takes no texts, or whose vectors are not those of its texts."""
    if len(words) < 4:
        raise ConfigError(f"{subject}: its tokenizer has {len(words)} words; it is not a whole one")
    # Four words from all over the vocabulary.
    a, b, c, d = (words[len(words) * part // 4] for part in range(4))
    before, after = special_tokens(tokenizer)
    framed = [[*before, *body, *after] for body in ([a, b, c], [a, b, d], [d, b, c])]
    room = max(0, max_text_length - len(before) - len(after))
    longest = [*before, *([a, b, c, d] * max_text_length)[:room], *after]
    who, pad, hint = f"{subject} ({_kind(tower)})", tokenizer.pad_token_id, ""
    try:
        unpadded = _vectors(tower, framed, pad)
        hint = f"; is --max-text-length {max_text_length} too much for it?"
        beside_longest = _vectors(tower, [framed[0], longest], pad)
    except Exception as error:  # a family that was not made for this may raise anything
        raise ConfigError(
            f"{who} cannot be used as a text tower: {first_line(error)}{hint}"
        ) from error
    if unpadded is None or beside_longest is None:
        raise ConfigError(f"{who} has no pooler output; choose --pooling mean or --pooling cls")
    vectors = torch.cat([unpadded, beside_longest])
    if not torch.isfinite(vectors).all():
        return  # broken weights: reported with the caption
    alone, other_end, other_start, padded, _ = vectors
    for part, other in (("end", other_end), ("start", other_start)):
        if _pooling(tower) != "mean" and (alone - other).abs().max() < _ROUNDING:
            raise ConfigError(
                f"{who}: its vectors do not depend on the {part} of a text. Either it reads in one "
                "direction and the pooling takes a token of the other side, or its tokenizer does "
                "not add the end token that it pools. Choose --pooling mean"
            )
    if (alone - padded).abs().max() > _DIFFERENT:
        raise ConfigError(
            f"{who} cannot be used as a text tower: its vectors depend on the padding behind a "
            "text. Choose one of another family, such as package:minilm"
        )


@torch.inference_mode()
def _vectors(tower: PreTrainedModel, texts: list[list[int]], pad: int) -> torch.Tensor | None:
    """float32 [texts, dim], unit norm, zeros as NaN; None without a pooler output."""
    length = max(map(len, texts))
    ids = torch.tensor([[*text, *[pad] * (length - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    output = tower(input_ids=ids, attention_mask=mask)
    pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
    if pooled is None:
        return None
    width = int(tower.config.hidden_size)
    if pooled.shape != (len(texts), width):
        shape = " x ".join(map(str, pooled.shape[1:]))
        raise ValueError(f"its vectors are of {shape} numbers, and its config says {width}")
    pooled = pooled.float()
    return torch.as_tensor(pooled / pooled.norm(dim=1, keepdim=True))


def _kind(tower: PreTrainedModel) -> str:
    inner = tower.tower if isinstance(tower, PooledTextModel) else tower
    return str(inner.config.model_type)


def _pooling(tower: PreTrainedModel) -> str:
    return tower.config.pooling if isinstance(tower, PooledTextModel) else "pooler"
