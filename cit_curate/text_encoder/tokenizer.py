"""Texts to token ids, as one tokenizer makes them."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from cit_curate.text_encoder.tokens import Tokens

# The padded length of a text is rounded up to a multiple of this many tokens.
LENGTH_STEP = 4


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, cut_to: int) -> Tokens:
    """The token ids of texts, cut to so many tokens."""
    # Not the tokenizer's own call, which takes twice as long to put its results together.
    backend = tokenizer.backend_tokenizer
    if backend.padding is not None:
        backend.no_padding()
    if (backend.truncation or {}).get("max_length") != cut_to:
        backend.enable_truncation(cut_to)
    return Tokens.of([encoded.ids for encoded in backend.encode_batch_fast(texts)])


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and behind a text."""
    whole = encode(tokenizer, ["a"], cut_to=LENGTH_STEP * 4).ids.tolist()
    bare = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
    starts = [at for at in range(len(whole)) if whole[at : at + len(bare)] == bare]
    first = starts[0] if starts else len(whole)
    return whole[:first], whole[first + len(bare) :]


def tokenizer_key(tokenizer: PreTrainedTokenizerBase, max_text_length: int) -> str:
    """SHA-256 of all that the tokens of a text depend on."""
    return hashlib.sha256(f"{max_text_length} {_described(tokenizer)}".encode()).hexdigest()


def _described(tokenizer: PreTrainedTokenizerBase) -> str:
    # Truncation and padding are what the last call set, not part of the tokenizer.
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps(described | {"truncation": None, "padding": None}, sort_keys=True)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_text_length: int
) -> dict[str, Any]:
    """Texts for one training forward pass, padded to the longest: int64 [texts, tokens] each."""
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
