"""Rows by key on disk: found again, bounded, whole or absent, whoever else writes or is killed."""

import logging
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from storing_rows import store_pairs

from cit_curate.errors import DamagedError
from cit_curate.storage.fail_points import VARIABLE
from cit_curate.storage.row_cache import KEYS_SUFFIX, RowCache, values_path

KEY = 4
LENIENT: dict[str, Any] = {"removes_damaged": True, "keeps_used": True}


def opened(folder: Path, **changes: Any) -> RowCache:
    return RowCache(folder, key_bytes=KEY, **changes)


def keys_of(numbers: Sequence[int]) -> list[bytes]:
    """Keys that end with zeros, too, which NumPy's byte strings leave out."""
    return [number.to_bytes(KEY, "little") for number in numbers]


def rows_of(numbers: Sequence[int]) -> np.ndarray:
    return np.array([[number, -number, 0.1] for number in numbers], np.float32)


def stored(folder: Path, numbers: Sequence[int], **changes: Any) -> RowCache:
    """A cache that has just written rows as a part."""
    cache = opened(folder, **changes)
    cache.add(keys_of(numbers), rows_of(numbers))
    cache.flush()
    return cache


def parts(root: Path) -> list[Path]:
    return sorted(root.rglob(f"part-*{KEYS_SUFFIX}"))


def num_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("part-*"))


def age(path: Path, seconds: float) -> None:
    for each in (path, values_path(path)):
        if each.exists():
            os.utime(each, (time.time() - seconds,) * 2)


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=8), max_size=6), st.data())
def test_what_was_added_is_found_from_memory_and_from_disk(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[int]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    cache, known = opened(folder), set()
    for group in groups:
        cache.add(keys_of(group), rows_of(group))
        known |= {*group}
        if data.draw(st.booleans()):
            cache.flush()
        if data.draw(st.booleans()):
            cache.flush()
            cache = opened(folder)
        asked = data.draw(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([*known, 0])))
        is_known = cache.knows(keys_of(asked))
        assert is_known.tolist() == [number in known for number in asked]
        found = [number for number in asked if number in known]
        if found:
            np.testing.assert_array_equal(cache.rows(keys_of(found)), rows_of(found))


def test_a_row_keeps_its_bits(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    cache = opened(tmp_path)
    cache.add(keys_of(range(5)), rows)
    cache.flush()
    for each in (cache, opened(tmp_path), opened(tmp_path, **LENIENT)):
        assert each.rows(keys_of([3, 1])).tobytes() == rows[[3, 1]].tobytes()
        assert each.rows(keys_of([3, 1])).dtype == np.float32


def test_two_keys_of_one_row_in_two_parts_are_one_row(tmp_path: Path) -> None:
    """As two processes that began at once have written it."""
    first, second = opened(tmp_path), opened(tmp_path)
    for cache, numbers in ((first, [1, 2]), (second, [2, 3])):
        cache.add(keys_of(numbers), rows_of(numbers))
        cache.flush()
    again = opened(tmp_path)
    np.testing.assert_array_equal(again.rows(keys_of([3, 2, 1])), rows_of([3, 2, 1]))
    assert len(parts(tmp_path)) == 2


def test_equal_parts_are_one_part(tmp_path: Path) -> None:
    stored(tmp_path, [1, 2])
    cache = opened(tmp_path / "none")
    cache.folder = tmp_path
    cache.add(keys_of([1, 2]), rows_of([1, 2]))
    cache.flush()
    assert len(parts(tmp_path)) == 1


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    opened(tmp_path / "rows").flush()
    assert not (tmp_path / "rows").exists()


def test_rows_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        stored(tmp_path, [1]).rows(keys_of([1, 2]))


CHANGES = {
    "flipped": lambda content: content[:-1] + bytes([content[-1] ^ 255]),
    "cut": lambda content: content[:-1],
    "header": lambda content: bytes([content[0] ^ 255]) + content[1:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("file", ["keys", "values"])
def test_a_damaged_part_is_named_or_removed_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str, file: str
) -> None:
    stored(tmp_path, [1, 2])
    stored(tmp_path, [3])
    damaged = next(path for path in parts(tmp_path) if len(np.load(path)) == 2)
    path = damaged if file == "keys" else values_path(damaged)
    path.write_bytes(CHANGES[change](path.read_bytes()))
    with pytest.raises(DamagedError, match=f"{values_path(damaged)}.*remove"):
        opened(tmp_path)
    cache = opened(tmp_path, **LENIENT)
    assert cache.knows(keys_of([1, 2, 3])).tolist() == [False, False, True]
    assert str(values_path(damaged)) in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    assert not damaged.exists()
    assert not values_path(damaged).exists()
    np.testing.assert_array_equal(cache.rows(keys_of([3])), rows_of([3]))
    caplog.clear()
    assert opened(tmp_path, **LENIENT).knows(keys_of([3])).all()
    assert not caplog.text


def test_a_lenient_cache_compares_a_part_once_before_its_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, [1])
    cache = opened(tmp_path, **LENIENT)
    compared = []
    monkeypatch.setattr("cit_curate.storage.row_cache.load_part", compared.append)
    cache.knows(keys_of([2]))
    assert not compared
    cache.knows(keys_of([1]))
    cache.knows(keys_of([1]))
    assert len(compared) == 1


def test_a_part_that_another_process_removed_is_left_out(tmp_path: Path) -> None:
    stored(tmp_path, [1])
    cache = opened(tmp_path, **LENIENT)
    values_path(parts(tmp_path)[0]).unlink()
    assert not cache.knows(keys_of([1])).any()
    assert not opened(tmp_path).knows(keys_of([1])).any()


def test_the_parts_not_used_for_longest_are_removed_first(tmp_path: Path) -> None:
    size = num_bytes(stored(tmp_path / "a", [1, 2]).folder)
    for number, folder in ((3, "b"), (5, "c")):
        stored(tmp_path / folder, [number, number + 1])
    for seconds, folder in ((30, "a"), (20, "b"), (10, "c")):
        age(parts(tmp_path / folder)[0], seconds)
    assert opened(tmp_path / "a", **LENIENT).knows(keys_of([1])).all()  # used again
    stored(tmp_path / "d", [7, 8], max_bytes=3 * size)
    assert [path.parent.name for path in parts(tmp_path)] == ["a", "c", "d"]
    assert num_bytes(tmp_path) <= 3 * size


def test_a_repeated_scan_of_more_than_fits_finds_as_much_as_fits(tmp_path: Path) -> None:
    size = num_bytes(stored(tmp_path / "other", [1, 2]).folder)
    for _ in range(2):
        cache = opened(tmp_path / "own", max_bytes=2 * size, **LENIENT)
        num_found = 0
        for number in range(10, 20, 2):
            keys, is_known = keys_of([number, number + 1]), None
            is_known = cache.knows(keys)
            num_found += int(is_known.sum())
            if not is_known.all():
                cache.add(keys, rows_of([number, number + 1]))
            cache.flush()
            assert num_bytes(tmp_path) <= 2 * size
    assert num_found == 4
    assert not parts(tmp_path / "other")


def test_a_bound_below_one_part_removes_nothing_for_it(tmp_path: Path) -> None:
    stored(tmp_path / "other", [1])
    cache = stored(tmp_path / "own", range(10), max_bytes=300)
    assert len(parts(tmp_path)) == 1
    assert cache.new_bytes == 0


def test_what_killed_writers_left_is_removed_after_a_day(tmp_path: Path) -> None:
    stored(tmp_path / "a", [1])
    (path,) = parts(tmp_path)
    orphan, temporary = path.with_name("part-0123.npy"), path.with_name(".tmp-1-part-0.npy")
    for left in (orphan, temporary):
        left.write_bytes(b"left")
    stored(tmp_path / "b", [2], max_bytes=10_000)
    assert orphan.exists()
    assert temporary.exists()
    for left in (orphan, temporary):
        os.utime(left, (time.time() - 100_000,) * 2)
    stored(tmp_path / "b", [3], max_bytes=10_000)
    assert not orphan.exists()
    assert not temporary.exists()
    assert len(parts(tmp_path)) == 3


@pytest.mark.parametrize("point", ["start", "written", "synced", "renamed"])
@pytest.mark.parametrize("number", [1, 2])
def test_killed_between_the_files_of_a_part_there_is_none_or_a_whole_one(
    tmp_path: Path, point: str, number: int
) -> None:
    fault = f"features.{point}:{number}:kill"
    process = get_context("forkserver").Process(
        target=store_pairs, args=(tmp_path, [1, 2], {VARIABLE: fault})
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    is_whole = (number, point) == (2, "renamed")
    assert opened(tmp_path).knows(keys_of([1, 2])).all() == is_whole
    stored(tmp_path, [1, 2])
    np.testing.assert_array_equal(opened(tmp_path).rows(keys_of([2, 1])), rows_of([2, 1]))


def test_processes_that_write_and_remove_at_once_find_whole_rows_or_none(tmp_path: Path) -> None:
    size = num_bytes(stored(tmp_path / "probe", [1, 2]).folder)
    groups = [range(first, first + 40, 2) for first in (0, 20, 100)]
    context = get_context("forkserver")
    processes = [
        context.Process(target=store_pairs, args=(tmp_path / "rows", [*group], {}, 4 * size))
        for group in groups
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        cache = opened(tmp_path / "rows", **LENIENT)
        numbers = [number for number in range(141) if cache.knows(keys_of([number])).all()]
        if numbers:
            np.testing.assert_array_equal(cache.rows(keys_of(numbers)), rows_of(numbers))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    # Each may have made room before the last part of another one was there.
    assert num_bytes(tmp_path) <= (4 + len(groups)) * size
