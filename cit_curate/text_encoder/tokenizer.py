"""Tokenizers, and texts to token ids."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cit_curate.errors import DamagedError, first_line
from cit_curate.text_encoder.tokens import Tokens

# The padded length of a text is rounded up to a multiple of this many tokens.
LENGTH_STEP = 4
_FAST_FILE = "tokenizer.json"
# Files that hold a vocabulary. Without any, transformers makes a tokenizer of a few tokens.
_VOCABULARIES = (_FAST_FILE, "vocab.txt", "vocab.json", "*.model", "*.tiktoken")


def open_tokenizer(source: str, *, cached_only: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer that `tokenizer.json` describes, with a pad token.

    A tokenizer without a pad token gets its end token: what is padded is masked.

    Args:
        source: A folder, or the id of a model in the hub's cache.
        cached_only: Whether to leave the hub alone.

    Raises:
        OSError: There is no such tokenizer.
        ValueError: It cannot be loaded; the message says why.
        DamagedError: `tokenizer.json` is cut.
    """
    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise OSError(f"{source} has no tokenizer (tokenizer.json)")
    described = folder / _FAST_FILE
    try:
        tokenizer = _load_tokenizer(source, described, cached_only=cached_only)
    except Exception as error:  # the Rust library raises no other type
        _refuse_cut(described)
        reason = first_line(error)
        if not isinstance(error, OSError | ValueError):
            reason = f"its tokenizer gives {type(error).__name__} ({reason})"
        raise ValueError(reason) from error
    if tokenizer.pad_token_id is None:
        pads = (tokenizer.eos_token, tokenizer.sep_token, tokenizer.cls_token, tokenizer.unk_token)
        tokenizer.pad_token = next((token for token in pads if token is not None), None)
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer of {source} has no pad token, and no end token to take for it; "
            "set tokenizer.pad_token, and save it with save_pretrained"
        )
    return tokenizer


def _load_tokenizer(source: str, described: Path, *, cached_only: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=cached_only
        )
    except ImportError:  # its class needs a package, which tokenizer.json does not
        if not described.is_file():
            raise
        return PreTrainedTokenizerFast.from_pretrained(source)
    if not tokenizer.is_fast and described.is_file():
        return PreTrainedTokenizerFast.from_pretrained(source)
    return tokenizer


def _refuse_cut(described: Path) -> None:
    try:
        json.loads(described.read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise DamagedError(f"{described} is cut or damaged; copy or fetch it again") from error


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


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of rows that a table of a tokenizer's tokens needs."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def tokenizer_key(tokenizer: PreTrainedTokenizerBase, max_text_length: int) -> str:
    """SHA-256 of everything the tokens of a text depend on: tokenizer and maximum length."""
    definition = _definition(tokenizer.backend_tokenizer.to_str())
    return hashlib.sha256(f"{max_text_length} {definition}".encode()).hexdigest()


# Each outer step has a copy of the tokenizer, and sorting 30,000 tokens takes a tenth of a second.
@lru_cache(maxsize=4)
def _definition(described: str) -> str:
    # Truncation and padding were set by the last call; they do not define the tokenizer.
    definition = json.loads(described)
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
        padding_side="right",  # tokens in front would move the positions of a text
        pad_to_multiple_of=LENGTH_STEP,
        return_tensors="pt",
        return_attention_mask=True,
        return_token_type_ids=False,
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
