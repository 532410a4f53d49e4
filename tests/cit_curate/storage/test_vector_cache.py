"""Text vectors beside a pool: by text and encoder, sound ones only, and never worth a failure."""

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from cit_curate.storage import vector_cache
from cit_curate.storage.row_cache import RowCache
from cit_curate.storage.vector_cache import VectorCache, text_keys

ENCODER, OTHER = "a" * 64, "b" * 64
TEXTS = ["a cat", "", "ein Hündchen", "a cat "]
KEYS = text_keys(TEXTS)
VECTORS = np.eye(4, dtype=np.float32)


def opened(folder: Path, max_bytes: int | None = None) -> VectorCache:
    return VectorCache(folder / "vectors", max_bytes=max_bytes)


def filled(folder: Path) -> VectorCache:
    cache = opened(folder)
    cache.keep(ENCODER, KEYS, VECTORS)
    cache.flush()
    return cache


def test_the_key_of_a_text_is_the_first_half_of_its_sha256() -> None:
    assert KEYS[2] == hashlib.sha256("ein Hündchen".encode()).digest()[:16]
    assert len(set(KEYS)) == len(TEXTS)
    assert len(text_keys(["\ud800"])) == 1  # no pool holds one, but a prompt may


def test_kept_vectors_come_in_the_order_of_the_texts_with_those_that_are_missing_marked(
    tmp_path: Path,
) -> None:
    for cache in (filled(tmp_path), opened(tmp_path)):
        is_kept, vectors = cache.find(ENCODER, text_keys(["a dog", "a cat ", "a cat"]))
        assert is_kept.tolist() == [False, True, True]
        np.testing.assert_array_equal(vectors, VECTORS[[3, 0]])
        assert vectors.dtype == np.float32


def test_nothing_is_found_under_another_encoder(tmp_path: Path) -> None:
    is_kept, vectors = filled(tmp_path).find(OTHER, KEYS)
    assert not is_kept.any()
    assert not len(vectors)
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == [ENCODER[:16]]


@pytest.mark.faults("E1")
def test_vectors_that_are_not_usable_are_not_kept(tmp_path: Path) -> None:
    vectors = VECTORS.copy()
    vectors[0], vectors[1, 1], vectors[2, 0] = 0, np.nan, np.inf
    cache = opened(tmp_path)
    cache.keep(ENCODER, KEYS, vectors)
    assert cache.find(ENCODER, KEYS)[0].tolist() == [False, False, False, True]


def test_a_full_part_is_written_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_cache, "PART_BYTES", VECTORS.nbytes)
    opened(tmp_path).keep(ENCODER, KEYS, VECTORS)
    assert opened(tmp_path).find(ENCODER, KEYS)[0].all()


def test_the_bound_is_that_of_all_encoders_together(tmp_path: Path) -> None:
    filled(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("part-*"))
    cache = opened(tmp_path, max_bytes=size)
    cache.keep(OTHER, KEYS, VECTORS)
    cache.flush()
    assert not opened(tmp_path).find(ENCODER, KEYS)[0].any()
    assert opened(tmp_path).find(OTHER, KEYS)[0].all()


def test_a_full_disk_ends_the_keeping_with_one_warning_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: RowCache) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RowCache, "flush", fail)
    cache = opened(tmp_path)
    for _ in range(2):
        cache.keep(ENCODER, KEYS, VECTORS)
        cache.flush()
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_vectors_lie_beside_the_first_pool_that_can_be_written_else_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIT_CACHE", str(tmp_path / "cache"))
    pools = [tmp_path / name for name in ("read-only", "one", "two")]

    def folder(*, writable: tuple[str, ...]) -> Path:
        monkeypatch.setattr(os, "access", lambda path, mode: path.name in writable)
        cache = VectorCache.beside(pools, max_bytes=None)
        assert cache is not None
        return cache.folder

    assert folder(writable=("one", "two")) == tmp_path / "one" / "vectors"
    assert folder(writable=()) == tmp_path / "cache" / "vectors"
    assert VectorCache.beside([], max_bytes=1).folder == tmp_path / "cache" / "vectors"
    assert VectorCache.beside(pools, max_bytes=0) is None
