"""Texts to token ids."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from cit_curate.text_encoder.tokens import Tokens

# The padded length of a text is rounded up to a multiple of this many tokens.
LENGTH_STEP = 4


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, cut_to: int) -> Tokens:
    """The token ids of texts, each cut to `cut_to` tokens."""
    # Calling the tokenizer itself takes twice as long, to assemble its results.
    backend = tokenizer.backend_tokenizer
    if backend.padding is not None:
        backend.no_padding()
    if (backend.truncation or {}).get("max_length") != cut_to:
        backend.enable_truncation(cut_to)
    return Tokens.of([encoded.ids for encoded in backend.encode_batch_fast(texts)])


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds before and after a text."""
    whole = encode(tokenizer, ["a"], cut_to=LENGTH_STEP * 4).ids.tolist()
    bare = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
    starts = [at for at in range(len(whole)) if whole[at : at + len(bare)] == bare]
    first = starts[0] if starts else len(whole)
    return whole[:first], whole[first + len(bare) :]


def tokenizer_key(tokenizer: PreTrainedTokenizerBase, max_text_length: int) -> str:
    """SHA-256 of everything the tokens of a text depend on: tokenizer and maximum length."""
    return hashlib.sha256(f"{max_text_length} {_definition(tokenizer)}".encode()).hexdigest()


def _definition(tokenizer: PreTrainedTokenizerBase) -> str:
    # Truncation and padding were set by the last call; they do not define the tokenizer.
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps(definition | {"truncation": None, "padding": None}, sort_keys=True)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_text_length: int
) -> dict[str, Any]:
    """The inputs of a training forward pass, padded to the longest text: int64 [texts, tokens]."""
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_text_length,
        padding=True,
        pad_to_multiple_of=LENGTH_STEP,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
