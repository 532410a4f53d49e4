"""Vectors kept from earlier: the bits that embedding gives, and no text embedded twice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_tower import small_tower

from cit_curate.config import TextTowerConfig
from cit_curate.errors import BrokenVectorsError
from cit_curate.storage.row_cache import values_path
from cit_curate.storage.vector_cache import VectorCache
from cit_curate.text_encoder.encoder import TextEncoder

TEXTS = [f"a photo of {number} dogs {'and cats ' * (number % 5)}" for number in range(40)]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> TextTowerConfig:
    return small_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def plain(tower: TextTowerConfig) -> np.ndarray:
    return TextEncoder.load(tower).embed(TEXTS)


@pytest.fixture
def encoder(tower: TextTowerConfig, tmp_path: Path) -> Callable[[], TextEncoder]:
    """Gives an encoder with the vectors of a folder, as another process opens it."""
    return lambda: TextEncoder.load(tower, kept=VectorCache(tmp_path, max_bytes=None))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts went through a tower, at each call."""
    counts: list[int] = []
    embed = TextEncoder._embed_tokens

    def count(self: TextEncoder, tokens) -> torch.Tensor:
        counts.append(len(tokens))
        return embed(self, tokens)

    monkeypatch.setattr(TextEncoder, "_embed_tokens", count)
    return counts


def written(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    vectors = encoder.embed(texts)
    assert encoder._kept is not None
    encoder._kept.flush()
    return vectors


@pytest.mark.faults("E10")
def test_a_vector_has_the_same_bits_from_an_empty_a_half_full_and_a_full_cache(
    encoder: Callable[[], TextEncoder], plain: np.ndarray, embedded: list[int]
) -> None:
    np.testing.assert_array_equal(encoder().embed([]), plain[:0])
    np.testing.assert_array_equal(written(encoder(), TEXTS[::2]), plain[::2])
    np.testing.assert_array_equal(written(encoder(), TEXTS), plain)
    np.testing.assert_array_equal(encoder().embed(TEXTS[::-1]), plain[::-1])
    np.testing.assert_array_equal(encoder().embed([TEXTS[3]] * 2), plain[[3, 3]])
    assert embedded == [20, 20]


@pytest.mark.faults("E10")
def test_a_damaged_part_is_removed_and_its_texts_embedded_again(
    encoder: Callable[[], TextEncoder],
    plain: np.ndarray,
    embedded: list[int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    written(encoder(), TEXTS[:30])
    written(encoder(), TEXTS[30:])
    damaged = next(path for path in tmp_path.rglob("*.keys.npy") if len(np.load(path)) == 30)
    content = bytearray(values_path(damaged).read_bytes())
    content[-1] ^= 1  # the last bit of a number
    values_path(damaged).write_bytes(content)
    np.testing.assert_array_equal(written(encoder(), TEXTS), plain)
    assert embedded == [30, 10, 30]
    assert "has changed" in caplog.text
    np.testing.assert_array_equal(encoder().embed(TEXTS), plain)
    assert embedded == [30, 10, 30]


def test_texts_wait_in_memory_until_they_are_written(
    encoder: Callable[[], TextEncoder], embedded: list[int], tmp_path: Path
) -> None:
    first = encoder()
    for _ in range(2):
        first.embed(TEXTS)
    assert embedded == [40]
    assert not list(tmp_path.rglob("*.npy"))


def test_other_weights_another_length_and_another_machine_have_other_vectors(
    tower: TextTowerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TextEncoder.load(tower)
    changed = TextEncoder.load(tower)
    with torch.no_grad():
        next(changed.tower.parameters()).mul_(2)
    shorter = TextTowerConfig(
        text_encoder=tower.text_encoder, pooling=tower.pooling, max_text_length=8
    )
    keys = {each.vector_key for each in (first, changed, TextEncoder.load(shorter))}
    monkeypatch.setattr("cit_curate.text_encoder.encoder._processor", lambda: "another")
    keys.add(TextEncoder.load(tower).vector_key)
    assert len(keys) == 4


@pytest.mark.faults("E1")
def test_a_text_without_a_usable_vector_is_reported_each_time(
    tower: TextTowerConfig, tmp_path: Path
) -> None:
    for _ in range(2):
        encoder = TextEncoder.load(tower, kept=VectorCache(tmp_path, max_bytes=None))
        (token,) = encoder.tokenizer("zebra", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            encoder.tower.get_input_embeddings().weight[token] = torch.nan
        with pytest.raises(BrokenVectorsError, match="'a zebra'") as caught:
            written(encoder, ["a dog", "a zebra", "a cat"])
        assert caught.value.broken.tolist() == [False, True, False]
        encoder._kept.flush()
