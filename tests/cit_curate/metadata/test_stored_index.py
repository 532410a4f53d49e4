"""The stored index: whole or built anew, and rebuilt when its version changes."""

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cit_curate.errors import DamagedError
from cit_curate.metadata.stored_index import VersionedIndex, load_vectors, save_index
from cit_curate.storage.durable import describe_file, read_json, write_sealed
from indexes.build import build_index


def unit_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.faults("E5")
def test_the_index_is_rebuilt_when_its_version_changes_and_only_then(tmp_path: Path) -> None:
    index = VersionedIndex("exact", tmp_path)
    for version in ("a" * 64, "a" * 64, "b" * 64, "b" * 64):
        index.refresh(version, lambda: unit_vectors(3, 8, 0))
    assert index.num_builds == 2
    again = VersionedIndex("exact", tmp_path)
    found = again.refresh("b" * 64, lambda: pytest.fail("it is stored"))
    assert again.num_builds == 0
    np.testing.assert_array_equal(found.vectors, unit_vectors(3, 8, 0))


@pytest.mark.faults("E5")
def test_a_stored_index_with_any_byte_changed_or_cut_is_refused(tmp_path: Path) -> None:
    save_index(build_index(unit_vectors(3, 8, 0), "flat"), tmp_path, version="v" * 64)
    path = next(tmp_path.glob("*.npy"))
    whole = path.read_bytes()
    for offset in range(0, len(whole), 7):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(DamagedError):
            load_vectors(tmp_path)
        path.write_bytes(whole[:offset])
        with pytest.raises(DamagedError):
            load_vectors(tmp_path)


@pytest.mark.faults("E5")
def test_a_damaged_index_is_built_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    VersionedIndex("exact", tmp_path).refresh("a" * 64, lambda: unit_vectors(3, 8, 0))
    next(tmp_path.glob("*.npy")).write_bytes(b"cut")
    index = VersionedIndex("exact", tmp_path)
    with caplog.at_level(logging.WARNING):
        index.refresh("a" * 64, lambda: unit_vectors(3, 8, 0))
    assert index.num_builds == 1
    assert "will be rebuilt" in caplog.text


@pytest.mark.faults("E5")
@pytest.mark.parametrize("changed", ["manifest", "vectors"])
def test_an_index_of_another_dimension_than_its_manifest_says_is_built_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: str
) -> None:
    vectors = unit_vectors(3, 8, 0)
    VersionedIndex("exact", tmp_path).refresh("a" * 64, lambda: vectors)
    manifest = read_json(tmp_path / "manifest.json")
    if changed == "manifest":
        manifest["dim"] = 9
    else:  # whose size and hash are told as they are, so that nothing but their shape is wrong
        path = next(tmp_path.glob("*.npy"))
        np.save(path, unit_vectors(3, 9, 0))
        manifest["file"] = asdict(describe_file(path, tmp_path, rows=3))
    write_sealed(tmp_path / "manifest.json", manifest)
    with pytest.raises(DamagedError, match=r"holds float32 \(3, \d\); its manifest says .*3, \d"):
        load_vectors(tmp_path)
    index = VersionedIndex("exact", tmp_path)
    found = index.refresh("a" * 64, lambda: vectors)
    assert index.num_builds == 1
    assert "will be rebuilt" in caplog.text
    np.testing.assert_array_equal(found.vectors, vectors)
    np.testing.assert_array_equal(load_vectors(tmp_path)[1], vectors)


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf", "hnsw"])
def test_a_stored_index_is_made_again_from_its_vectors(kind: str, tmp_path: Path) -> None:
    vectors, asked = unit_vectors(700, 16, 0), unit_vectors(50, 16, 1)
    first = VersionedIndex(kind, tmp_path).refresh("a" * 64, lambda: vectors).search(asked)
    again = VersionedIndex(kind, tmp_path)
    found = again.refresh("a" * 64, lambda: pytest.fail("it is stored")).search(asked)
    np.testing.assert_array_equal(found.ids, first.ids)
