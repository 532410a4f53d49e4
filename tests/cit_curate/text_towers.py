"""Random text towers of many families, each with a tokenizer of its kind, in milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CONFIG_MAPPING, PreTrainedModel, PreTrainedTokenizerFast

TEXTS = ["old lamp", "a lamp under the old bridge at night", "bell", "two geese cross the wet road"]
WORDS = sorted({word for text in TEXTS for word in text.split()} | {"of", "photo", "by", "green"})

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,  # so that the vectors of texts differ well
}
T5_SIZES = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
PIXELS = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1}
VISION = {**PIXELS, "num_attention_heads": 2, "intermediate_size": 16}

# The special tokens of a tokenizer, before its words, and what it puts around a text.
_FRAMES: dict[str, tuple[dict[str, str], str]] = {
    "bert": ({"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]"}, "[CLS] $A [SEP]"),
    "roberta": ({"bos": "<s>", "pad": "<pad>", "eos": "</s>"}, "<s> $A </s>"),
    "end": ({"pad": "<pad>", "eos": "</s>"}, "$A </s>"),
    "gpt": ({"eos": "<|end|>"}, "$A"),
    "bare": ({}, "$A"),
    "clip": ({"bos": "<|start|>", "eos": "<|end|>"}, "<|start|> $A <|end|>"),
}
KINDS = {
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "gpt2": "gpt",
    "opt": "roberta",
    "bart": "roberta",
    "t5": "end",
    "mt5": "end",
    "umt5": "end",
    "xlnet": "end",
    "clip": "clip",
    "clip_text_model": "clip",
    "siglip": "end",
    "siglip_text_model": "end",
}
# What differs from a BERT's sizes.
_OTHER: dict[str, dict[str, Any]] = {
    "t5": T5_SIZES,
    "mt5": T5_SIZES,
    "umt5": T5_SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
    "albert": {**SIZES, "embedding_size": 32},
    "electra": {**SIZES, "embedding_size": 32},
}


def make_tokenizer(kind: str, *, words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """A tokenizer that knows `words`; the end token of a CLIP has the highest id, as it must."""
    names, frame = _FRAMES[kind]
    special = [*names.values(), "[UNK]"]
    order = [*special, *words]
    if kind == "clip":
        order = [*special[:1], "[UNK]", *words, special[1]]
    vocabulary = {token: number for number, token in enumerate(order)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    framing = [(token, vocabulary[token]) for token in frame.split() if token != "$A"]
    if framing:
        backend.post_processor = TemplateProcessing(single=frame, special_tokens=framing)
    tokens = {f"{name}_token": token for name, token in names.items()}
    if kind == "clip":
        tokens["pad_token"] = tokens["eos_token"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **tokens)


def save_tokenizer(folder: Path, kind: str, **settings: object) -> PreTrainedTokenizerFast:
    """Save a tokenizer with further settings, such as `padding_side`, and open it."""
    make_tokenizer(kind).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_config(family: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Any:
    """The config of a tower, or of a whole CLIP or SigLIP, that fits a tokenizer."""
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    known = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if family in ("clip", "siglip", "siglip2", "metaclip_2", "chinese_clip"):
        text = {**known, **SIZES, "bos_token_id": ids["bos"] or 0, "eos_token_id": ids["eos"]}
        vision = dict(VISION)
        return CONFIG_MAPPING[family](text_config={**text, **changes}, vision_config=vision)
    if family in ("clip_text_model", "siglip_text_model"):
        known |= {"bos_token_id": ids["bos"] or 0, "eos_token_id": ids["eos"]}
    sizes = _OTHER.get(family, SIZES)
    return CONFIG_MAPPING[family](**{**known, **sizes, **changes})


def save_tower(
    folder: Path,
    family: str,
    *,
    without: str | None = None,
    kind: str | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """Save a random model and its tokenizer.

    Args:
        folder: The folder.
        family: The model type.
        without: Weights whose names begin so are not saved.
        kind: The kind of tokenizer; None = the family's own.
        **changes: Fields of the config, or of a whole model's text config.

    Returns:
        The model, in eval mode.
    """
    tokenizer = make_tokenizer(kind or KINDS.get(family, "bert"))
    torch.manual_seed(5)
    config = make_config(family, tokenizer, **changes)
    if family == "siglip_text_model":
        model = transformers.SiglipTextModel(config)
    else:
        model = transformers.AutoModel.from_config(config)
    kept = None
    if without is not None:
        state = model.state_dict()
        kept = {name: state[name] for name in state if not name.startswith(without)}
    model.eval().save_pretrained(folder, state_dict=kept)
    tokenizer.save_pretrained(folder)
    return model


def unit(vectors: torch.Tensor) -> Any:
    """Vectors of length 1, as a NumPy array."""
    return torch.nn.functional.normalize(vectors.detach(), dim=-1).numpy()
