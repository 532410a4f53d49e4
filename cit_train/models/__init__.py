"""The dual encoder; importing this registers our Hugging Face model types."""

from cit_curate.pooled_text import PooledTextConfig, PooledTextModel

__all__ = ["PooledTextConfig", "PooledTextModel"]
