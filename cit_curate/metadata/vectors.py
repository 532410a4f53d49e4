"""The vectors of the metadata entries."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from cit_curate.errors import BrokenVectorsError, NotFiniteError
from cit_curate.metadata.lines import MetadataEntry
from cit_curate.records import Float32


def metadata_fingerprint(entries: Sequence[MetadataEntry], templates: Sequence[str]) -> str:
    """SHA-256 of the entries, including their own prompts, and the templates."""
    described = json.dumps([[asdict(entry) for entry in entries], templates])
    return hashlib.sha256(described.encode()).hexdigest()


def distinct_prompts(entries: Sequence[MetadataEntry], templates: Sequence[str]) -> tuple[str, ...]:
    """The distinct texts from which the entries' vectors are computed."""
    return tuple(dict.fromkeys(text for entry in entries for text in entry.texts(templates)))


def embed_or_nan(embed: Callable[[Sequence[str]], Float32], texts: Sequence[str]) -> Float32:
    """The vectors of texts; one that is NaN, infinite or zero becomes NaN throughout.

    Args:
        embed: Texts to float32 [texts, dim], unit norm.
        texts: Any number of texts.
    """
    try:
        return embed(texts)
    except BrokenVectorsError as error:
        return np.where(error.broken[:, None], np.float32(np.nan), error.vectors)


def embed_metadata(
    embed: Callable[[Sequence[str]], Float32],
    entries: Sequence[MetadataEntry],
    templates: Sequence[str],
) -> Float32:
    """One vector per entry: the mean over its names and prompts (docs/method.md, outer step, 2).

    Args:
        embed: Texts to float32 [texts, dim], unit norm.
        entries: The metadata.
        templates: Prompts with `{}` for the name.

    Returns:
        float32 [entries, dim], unit norm.

    Raises:
        NotFiniteError: The vector of an entry is NaN, infinite or zero; the message names it.
    """
    texts = [entry.texts(templates) for entry in entries]
    vectors = embed_or_nan(embed, [text for group in texts for text in group])
    ends = np.cumsum([len(group) for group in texts])
    means = np.stack([group.mean(axis=0) for group in np.split(vectors, ends[:-1])])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    for entry, norm in zip(entries, norms[:, 0], strict=True):
        if not np.isfinite(norm) or norm == 0:
            raise NotFiniteError(
                f"the vector of metadata entry {entry.name!r} is NaN, infinite or zero (norm "
                f"{norm}); the text tower is broken or has diverged: check --text-encoder"
            )
    return np.asarray(means / norms, dtype=np.float32)
