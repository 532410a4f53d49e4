"""A text tower that embeds hundreds of captions in a second."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from cit_curate.config import TextTowerConfig
from cit_curate.text_encoder.load import resolve_model_name


def small_tower(folder: Path) -> TextTowerConfig:
    """A random BERT of one layer, with a real tokenizer."""
    AutoTokenizer.from_pretrained(resolve_model_name("package:minilm")).save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, vocab_size=30_522, initializer_range=0.5)
    BertModel(config).save_pretrained(folder)
    return TextTowerConfig(text_encoder=str(folder), pooling="mean")
