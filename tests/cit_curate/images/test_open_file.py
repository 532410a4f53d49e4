"""What is remembered of files: bounded, shared by threads, never inherited by a fork."""

import os
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from cit_curate.images.open_file import BoundedCache, opened_inside


def test_the_least_recently_used_value_goes_first():
    cache, made = BoundedCache(10), []

    def get(key, size=4):
        return cache.get(key, lambda: (made.append(key) or key, size))

    assert [get("a"), get("b"), get("a"), get("c"), get("a"), get("b")] == list("abacab")
    assert made == ["a", "b", "c", "b"]
    get("huge", 100)
    assert get("huge") == "huge"
    assert made.count("huge") == 1, "one that is too large is kept until the next one comes"


def test_threads_share_it_and_its_bookkeeping_holds():
    cache = BoundedCache(50)

    def work(seed):
        rng = Random(seed)
        for _ in range(2_000):
            key = rng.randrange(30)
            assert cache.get(key, lambda key=key: (key, key)) == key

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache._size == sum(size for _, size in cache._values.values()) <= 50


@pytest.mark.faults("I8")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_empty_though_the_lock_was_held():
    cache = BoundedCache(10)
    cache.get("a", lambda: ("parent", 1))
    with cache._lock:
        child = os.fork()
        if not child:
            os._exit(0 if cache.get("a", lambda: ("child", 1)) == "child" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cache.get("a", lambda: ("again", 1)) == "parent"


def test_a_read_gives_what_there_is(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    with opened_inside(tmp_path, "a") as file:
        assert file.num_bytes == 10
        assert [file.read(2, 3), file.read(8, 5), file.read(20, 5)] == [b"234", b"89", b""]
